# SPDX-License-Identifier: GPL-3.0-or-later
"""The third step in the sidebar: the job. It draws and decides nothing."""

from __future__ import annotations

import bpy

from .. import preferences, readiness, session
from ..properties import JOB_ACTIVE
from .layout import SidebarPanel, duration, sentence


class VIEWTIME_PT_generate(SidebarPanel, bpy.types.Panel):
    bl_label = "Generate"
    bl_idname = "VIEWTIME_PT_generate"
    bl_order = 2

    def draw(self, context: bpy.types.Context) -> None:
        layout, scene = self.layout, context.scene
        settings = scene.viewtime
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.enabled = not settings.capture_message
        column = layout.column()
        column.enabled = session.current() is None
        column.prop(settings, "output_folder")
        column.prop(settings, "route")
        if settings.route != "CAPTURED":
            pair = column.column(align=True)
            pair.prop(settings, "steps")
            pair.prop(settings, "seed")
        if session.current() is not None:
            self.draw_progress(context, layout, settings)
        else:
            missing = readiness.missing_for_generate(
                scene, preferences.backend_python(), preferences.announced()
            )
            self.step(context, missing).operator("viewtime.generate", icon="PLAY")
            self.draw_last_job(context, layout, settings)
        row = layout.row(align=True)
        row.label(text=session.backend_in_words())
        row.operator("viewtime.backend_start", text="", icon="PLAY")
        row.operator("viewtime.backend_stop", text="", icon="SNAP_FACE")

    @staticmethod
    def draw_progress(
        context: bpy.types.Context,
        layout: bpy.types.UILayout,
        settings: bpy.types.PropertyGroup,
    ) -> None:
        text = f"{settings.job_progress:.0%}"
        if settings.job_eta >= 0:
            text = f"{text}, {duration(settings.job_eta)} left"
        row = layout.row(align=True)
        row.progress(factor=settings.job_progress, type="BAR", text=text)
        row.operator("viewtime.cancel", text="", icon="X")
        sentence(layout, context, settings.job_message)

    @staticmethod
    def draw_last_job(
        context: bpy.types.Context,
        layout: bpy.types.UILayout,
        settings: bpy.types.PropertyGroup,
    ) -> None:
        if not settings.job_state:
            return
        failed = settings.job_state in ("failed", "interrupted")
        icon = "ERROR" if failed else "INFO"
        text = settings.job_message or settings.job_state.capitalize()
        sentence(layout, context, text, icon)
        unseen = settings.job_state == "interrupted" or settings.job_state in JOB_ACTIVE
        if unseen and settings.job_id:
            layout.operator("viewtime.generate", text="Follow the Job").resume = True


CLASSES = (VIEWTIME_PT_generate,)
