# SPDX-License-Identifier: GPL-3.0-or-later
"""The fourth step in the sidebar: the sequence. It draws and decides nothing."""

from __future__ import annotations

import bpy

from .. import display, playback, readiness
from .layout import SidebarPanel, sentence


class VIEWTIME_PT_result(SidebarPanel, bpy.types.Panel):
    bl_label = "Result"
    bl_idname = "VIEWTIME_PT_result"
    bl_order = 3

    def draw(self, context: bpy.types.Context) -> None:
        layout, scene, ob = self.layout, context.scene, context.active_object
        layout.use_property_split = True
        layout.use_property_decorate = False
        missing = readiness.missing_for_result(scene)
        button = self.step(context, missing).operator("viewtime.import_sequence", icon="IMPORT")
        if missing is None:
            button.directory = str(readiness.result_folder(scene))
        if ob is not None and ob.viewtime.sequence_id:
            layout.prop(ob.viewtime, "folder")
            column = layout.column(align=True)
            column.prop(ob.viewtime, "offset")
            column.prop(ob.viewtime, "speed")
            layout.prop(ob.viewtime, "enabled")
            if problem := playback.message(ob):
                sentence(layout, context, problem, "ERROR")
            advice = display.advice(scene)
            for line in advice:
                sentence(layout, context, line, "INFO")
            if advice:
                layout.operator("viewtime.prepare_render")


CLASSES = (VIEWTIME_PT_result,)
