# SPDX-License-Identifier: GPL-3.0-or-later
"""The last step in the sidebar: files, command line, farm. It draws and decides nothing."""

from __future__ import annotations

import bpy

from .. import readiness
from ..readiness.export import export_frames
from .layout import SidebarPanel, sentence


class VIEWTIME_PT_export(SidebarPanel, bpy.types.Panel):
    bl_label = "Export"
    bl_idname = "VIEWTIME_PT_export"
    bl_order = 4

    def draw(self, context: bpy.types.Context) -> None:
        layout, scene, ob = self.layout, context.scene, context.active_object
        settings = scene.viewtime
        layout.use_property_split = True
        layout.use_property_decorate = False
        missing, frames, words = readiness.missing_for_export(scene, ob), None, ""
        if missing is None:
            layout.prop(settings, "export_folder")
            layout.row().prop(settings, "export_frames", expand=True)
            frames, words = export_frames(scene, ob)
            missing = words if frames is None else None
        if missing is None:
            sentence(layout, context, words)
        row = self.step(context, missing)
        row.operator_context = "EXEC_DEFAULT"
        button = row.operator("viewtime.export_ply", icon="EXPORT")
        if frames is not None:
            button.directory = bpy.path.abspath(settings.export_folder)
            button.object_name = ob.name
            button.whole, (button.frame_start, button.frame_end) = False, frames
            layout.operator("viewtime.export_command", icon="COPYDOWN")


class VIEWTIME_PT_farm(SidebarPanel, bpy.types.Panel):
    bl_label = "Render Farm"
    bl_idname = "VIEWTIME_PT_farm"
    bl_parent_id = "VIEWTIME_PT_export"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.scene.viewtime
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.row().prop(settings, "farm_work", expand=True)
        layout.row().prop(settings, "farm_kind", expand=True)
        layout.prop(settings, "farm_chunk")
        if not context.blend_data.filepath:
            sentence(layout, context, "Save the .blend first: other machines open it", "INFO")
        button = layout.operator("viewtime.export_farm", icon="FILE_TEXT")
        button.kind, button.work = settings.farm_kind, settings.farm_work


CLASSES = (VIEWTIME_PT_export, VIEWTIME_PT_farm)
