# SPDX-License-Identifier: GPL-3.0-or-later
"""The tab "Viewtime" of the 3D view's sidebar: rig, capture, generate, result, export, top down.
Panels draw and decide nothing: readiness says what is missing, operators do the work."""

from __future__ import annotations

import textwrap

import bpy

from . import display, playback, preferences, readiness, session
from .properties import JOB_ACTIVE

# Widths of Blender's interface font at scale 1, in pixels, for breaking sentences into labels.
CHARACTER_PIXELS = 6.5
MARGIN_PIXELS = 70


def sentence(
    layout: bpy.types.UILayout, context: bpy.types.Context, text: str, icon: str = "NONE"
) -> None:
    """A sentence over as many lines as the sidebar's width asks for: labels do not wrap."""
    scale = context.preferences.system.ui_scale
    characters = int((context.region.width / scale - MARGIN_PIXELS) / CHARACTER_PIXELS)
    column = layout.column(align=True)
    column.scale_y = 0.8
    for line in textwrap.wrap(text, max(20, characters)):
        column.label(text=line, icon=icon)
        icon = "BLANK1" if icon != "NONE" else "NONE"


def duration(seconds: float) -> str:
    """A remaining time in words: "about 8 s", "about 3 min"."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


class _SidebarPanel:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Viewtime"
    layout: bpy.types.UILayout

    def step(self, context: bpy.types.Context, missing: str | None) -> bpy.types.UILayout:
        """A row for the step's button, disabled with the reason above it when it cannot be taken"""
        if missing:
            sentence(self.layout, context, missing, "INFO")
        row = self.layout.row()
        row.enabled = missing is None
        return row


class VIEWTIME_PT_rig(_SidebarPanel, bpy.types.Panel):
    bl_label = "Rig"
    bl_idname = "VIEWTIME_PT_rig"
    bl_order = 0

    def draw(self, context: bpy.types.Context) -> None:
        layout, scene = self.layout, context.scene
        # A capture lends itself the scene's camera; nobody should change it meanwhile.
        layout.enabled = not scene.viewtime.capture_message
        layout.prop(scene, "camera")
        self.step(context, readiness.missing_for_rig(scene)).operator("viewtime.rig_arc")
        layout.operator("viewtime.rig_from_selection")
        count = len(scene.viewtime.rig)
        if count:
            layout.label(text=f"{count} views", icon="OUTLINER_OB_CAMERA")


class VIEWTIME_PT_capture(_SidebarPanel, bpy.types.Panel):
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


class VIEWTIME_PT_generate(_SidebarPanel, bpy.types.Panel):
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


class VIEWTIME_PT_result(_SidebarPanel, bpy.types.Panel):
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


class VIEWTIME_PT_export(_SidebarPanel, bpy.types.Panel):
    bl_label = "Export"
    bl_idname = "VIEWTIME_PT_export"
    bl_order = 4

    def draw(self, context: bpy.types.Context) -> None:
        missing = readiness.missing_for_export(context.scene, context.active_object)
        self.step(context, missing).operator("viewtime.export_ply", icon="EXPORT")


CLASSES = (
    VIEWTIME_PT_rig,
    VIEWTIME_PT_capture,
    VIEWTIME_PT_generate,
    VIEWTIME_PT_result,
    VIEWTIME_PT_export,
)
