# SPDX-License-Identifier: GPL-3.0-or-later
"""The second step in the sidebar: what is captured. It draws and decides nothing."""

from __future__ import annotations

import bpy

from .. import readiness
from .layout import SidebarPanel, sentence


class VIEWTIME_PT_capture(SidebarPanel, bpy.types.Panel):
    bl_label = "Capture"
    bl_idname = "VIEWTIME_PT_capture"
    bl_order = 1

    def draw(self, context: bpy.types.Context) -> None:
        layout, scene = self.layout, context.scene
        settings = scene.viewtime
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.prop(settings, "capture_folder")
        layout.prop(settings, "capture_kind")
        column = layout.column(align=True)
        column.prop(settings, "capture_size")
        column.prop(settings, "times")
        if settings.capture_kind == "REFERENCES":
            column.prop(settings, "freeze_time")
        layout.prop(settings, "capture_depth")
        layout.prop(settings, "prompt")
        if settings.capture_message:
            sentence(layout, context, settings.capture_message, "RENDER_STILL")
            sentence(layout, context, "Esc cancels")
            return
        missing = readiness.missing_for_capture(scene)
        if missing is None:
            layout.label(text=readiness.capture_range_in_words(scene))
        button = self.step(context, missing).operator("viewtime.capture", icon="RENDER_STILL")
        button.what = readiness.capture_what(scene)
        button.folder = settings.capture_folder
        button.frame_start, button.frame_end = readiness.capture_range(scene)
        button.times, button.freeze_time = settings.times, settings.freeze_time


CLASSES = (VIEWTIME_PT_capture,)
