# SPDX-License-Identifier: GPL-3.0-or-later
"""How the selected sequence is drawn, below the result. It draws and decides nothing."""

from __future__ import annotations

import bpy

from .. import display
from .layout import SidebarPanel, sentence


class VIEWTIME_PT_display(SidebarPanel, bpy.types.Panel):
    bl_label = "Display"
    bl_idname = "VIEWTIME_PT_display"
    bl_parent_id = "VIEWTIME_PT_result"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        ob = context.active_object
        return ob is not None and ob.type == "POINTCLOUD" and bool(ob.viewtime.folder)

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.active_object.viewtime
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.prop(settings, "display_mode")
        column = layout.column(align=True)
        if settings.display_mode == "POINTS":
            column.prop(settings, "display_point_size")
        if settings.display_mode != "QUADS":
            column.prop(settings, "display_density")
            column.prop(settings, "display_cloud")
        layout.prop(settings, "display_sh")
        column = layout.column(align=True)
        column.prop(settings, "display_min_opacity")
        column.prop(settings, "display_max_size")
        row = layout.row(align=True)
        row.prop(settings, "display_crop")
        row.operator("viewtime.add_crop_box", text="", icon="ADD")
        layout.prop(settings, "display_blend")
        if problem := display.problem():
            sentence(layout, context, problem, "ERROR")
        for line in display.colour_advice(context.scene, context.active_object):
            sentence(layout, context, line, "COLOR")


CLASSES = (VIEWTIME_PT_display,)
