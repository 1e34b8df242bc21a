# SPDX-License-Identifier: GPL-3.0-or-later
"""The second step in the sidebar: what is captured. It draws and decides nothing."""

from __future__ import annotations

import bpy

from .. import readiness
from ..capture.frames import VALID_TIMES, scene_range
from .layout import SidebarPanel, duration, sentence


class VIEWTIME_PT_reference(SidebarPanel, bpy.types.Panel):
    bl_label = "Reference"
    bl_idname = "VIEWTIME_PT_reference"
    bl_order = 1

    def draw(self, context: bpy.types.Context) -> None:
        layout, scene = self.layout, context.scene
        settings = scene.viewtime
        layout.use_property_split = True
        layout.use_property_decorate = False
        if settings.capture_message:
            self.draw_progress(context, settings)
            return
        layout.prop(settings, "capture_kind")
        kind = settings.capture_kind
        if kind in {"REFERENCES", "CLIP"}:
            self.draw_clip(context, scene, settings)
        if kind in {"REFERENCES", "FREEZE"}:
            self.draw_freeze(scene, settings)
        if readiness.reads_files(scene):
            layout.prop(settings, "capture_crop")
        self.draw_times(context, scene, settings)
        self.draw_picture(settings)
        layout.prop(settings, "prompt")
        layout.prop(settings, "capture_folder")
        self.draw_outlook(context, scene)

    def draw_progress(self, context: bpy.types.Context, settings: bpy.types.PropertyGroup) -> None:
        share = settings.capture_progress
        self.layout.progress(factor=share, type="BAR", text=f"{share:.0%}")
        sentence(self.layout, context, settings.capture_message, "RENDER_STILL")
        sentence(self.layout, context, "Esc cancels and leaves nothing behind", "BLANK1")

    def draw_clip(
        self,
        context: bpy.types.Context,
        scene: bpy.types.Scene,
        settings: bpy.types.PropertyGroup,
    ) -> None:
        header, column = self.layout.panel("viewtime_clip")
        header.label(text="Clip of the Fixed View")
        if column is None:
            return
        row = column.row()
        row.use_property_split = False
        row.prop(settings, "clip_source", expand=True)
        if settings.clip_source == "STRIP":
            editor = (settings.clip_scene or scene).sequence_editor
            if editor is not None:
                column.prop_search(settings, "clip_strip", editor, "strips_all", text="Strip")
            column.operator("viewtime.clip_from_strip", icon="SEQUENCE")
        elif settings.clip_source != "RENDER":
            row = column.row(align=True)
            row.prop(settings, "clip_path")
            row.operator("viewtime.clip_refresh", text="", icon="FILE_REFRESH")
            column.prop(settings, "clip_start")
            if settings.clip_width:
                size = f"{settings.clip_width} x {settings.clip_height}"
                sentence(column, context, f"{settings.clip_frames} frames of {size} pixels")

        if settings.clip_source != "RENDER":
            column.operator("viewtime.range_from_clip", icon="ARROW_LEFTRIGHT")

    def draw_freeze(self, scene: bpy.types.Scene, settings: bpy.types.PropertyGroup) -> None:
        header, column = self.layout.panel("viewtime_freeze")
        header.label(text="Freeze Time, All Views")
        if column is None:
            return
        row = column.row()
        row.use_property_split = False
        row.prop(settings, "freeze_source", expand=True)
        row = column.row(align=True)
        row.prop(settings, "freeze_frame", text="At Frame")
        row.operator("viewtime.freeze_here", text="", icon="TIME")
        if settings.freeze_source == "FILES":
            count = len(settings.freeze_files)
            column.operator(
                "viewtime.freeze_files_choose",
                text=f"{count} Pictures..." if count else "Choose Pictures...",
                icon="FILE_IMAGE",
            )

    def draw_times(
        self,
        context: bpy.types.Context,
        scene: bpy.types.Scene,
        settings: bpy.types.PropertyGroup,
    ) -> None:
        header, column = self.layout.panel("viewtime_times")
        header.label(text="Times")
        if column is None:
            return
        row = column.row(align=True)
        row.prop(settings, "times")
        if not readiness.times_fit(scene):
            row.operator("viewtime.times_fit", text="", icon="CHECKMARK")
        sentence(column, context, f"Valid: {VALID_TIMES}")
        column.prop(settings, "use_own_range")
        if settings.use_own_range:
            column = column.column(align=True)
            column.prop(settings, "range_start")
            column.prop(settings, "range_end")
            column.prop(settings, "range_step")
            if not settings.range_step:
                sentence(column, context, "Step 0 spreads the times over the range")
        else:
            start, end, _step = scene_range(scene)
            sentence(column, context, f"From the scene's frames {start} to {end}")

    def draw_picture(self, settings: bpy.types.PropertyGroup) -> None:
        header, column = self.layout.panel("viewtime_picture", default_closed=True)
        header.label(text="Render")
        if column is None:
            return
        column.prop(settings, "capture_size")
        column.prop(settings, "capture_engine")
        row = column.row()
        row.enabled = settings.capture_engine not in {"WORKBENCH", "VIEWPORT"}
        row.prop(settings, "capture_samples")
        row = column.row()
        row.enabled = settings.capture_engine != "VIEWPORT"
        row.prop(settings, "capture_depth")

    def draw_outlook(self, context: bpy.types.Context, scene: bpy.types.Scene) -> None:
        outlook = readiness.capture_outlook(scene)
        if not isinstance(outlook, str):
            column = self.layout.box().column()
            across, up = outlook.size
            sentence(column, context, f"{outlook.frames} frames of {across} x {up} pixels", "INFO")
            sentence(column, context, str(outlook.plan), "BLANK1")
            for line in outlook.lines:
                sentence(column, context, line, "BLANK1")
            disk = f"about {size_in_words(outlook.disk_bytes)} on disk"
            if outlook.seconds is None:
                sentence(column, context, disk, "BLANK1")
                column.operator("viewtime.capture_probe", icon="TIME")
            else:
                words = f"{duration(outlook.seconds)}, {disk}"
                sentence(column, context, words[0].upper() + words[1:], "TIME")
        missing = readiness.missing_for_capture(scene, outlook)
        row = self.step(context, missing)
        if isinstance(outlook, str) and readiness.wrong_shape(scene):
            row.enabled = True
            row.operator("viewtime.render_shape", icon="FULLSCREEN_ENTER")
            row = self.layout.row()
            row.enabled = False
        row.scale_y = 1.4
        row.operator("viewtime.capture", icon="RENDER_STILL")
        if readiness.captured(scene):
            self.layout.operator("viewtime.capture_folder_next", icon="FILE_NEW")


def size_in_words(size: float) -> str:
    """ "3 MB" and the like."""
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5 or unit == "GB":
            return f"{max(size, 1):.0f} {unit}" if unit != "GB" else f"{size:.1f} {unit}"
    return ""


CLASSES = (VIEWTIME_PT_reference,)
