# SPDX-License-Identifier: GPL-3.0-or-later
"""The first step in the sidebar: the cameras. It draws and decides nothing."""

from __future__ import annotations

from typing import Any

import bpy

from .. import readiness
from ..capture.rig_list import previewed
from .layout import SidebarPanel, sentence

MAKERS = (
    ("viewtime.rig_arc", "Arc", "SPHERECURVE"),
    ("viewtime.rig_orbit", "Orbit", "MESH_CIRCLE"),
    ("viewtime.rig_dolly", "Dolly", "ARROW_LEFTRIGHT"),
    ("viewtime.rig_grid", "Grid", "MESH_GRID"),
    ("viewtime.rig_curve", "Along Curve", "CURVE_BEZCURVE"),
    ("viewtime.rig_from_selection", "Selected", "RESTRICT_SELECT_OFF"),
)
MOST_DOUBTS = 3


class VIEWTIME_UL_rig(bpy.types.UIList):
    """The views in order: number, camera, whether it is the fixed view, look through."""

    def draw_item(
        self,
        context: bpy.types.Context,
        layout: bpy.types.UILayout,
        settings: Any,
        item: Any,
        _icon: int,
        _active_data: Any,
        _active_name: str,
        index: int = 0,
        _flag: int = 0,
    ) -> None:
        camera = item.camera
        row = layout.row(align=True)
        if camera is None:
            row.label(text=f"{index}  (camera is gone)", icon="ERROR")
            return
        row.label(text=f"{index}  {camera.name}", icon="OUTLINER_OB_CAMERA")
        fixed = camera == context.scene.camera
        button = row.operator(
            "viewtime.rig_activate",
            text="",
            icon="PINNED" if fixed else "UNPINNED",
            emboss=fixed,
            depress=fixed,
        )
        button.index = index
        looking = camera == previewed(context)
        button = row.operator(
            "viewtime.look_through",
            text="",
            icon="HIDE_OFF" if looking else "HIDE_ON",
            emboss=looking,
            depress=looking,
        )
        button.index = index


class VIEWTIME_MT_rig_more(bpy.types.Menu):
    bl_label = "More on the Rig"
    bl_idname = "VIEWTIME_MT_rig_more"

    def draw(self, _context: bpy.types.Context) -> None:
        self.layout.operator("viewtime.rig_reverse", icon="ARROW_LEFTRIGHT")
        self.layout.operator("viewtime.rig_from_file", text="Rig from File...", icon="FILE_FOLDER")


class VIEWTIME_PT_rig(SidebarPanel, bpy.types.Panel):
    bl_label = "Rig"
    bl_idname = "VIEWTIME_PT_rig"
    bl_order = 0

    def draw(self, context: bpy.types.Context) -> None:
        layout, scene = self.layout, context.scene
        settings = scene.viewtime
        # A capture lends itself the scene's camera; nobody should change it meanwhile.
        layout.enabled = not settings.capture_message
        column = layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(scene, "camera", text="Fixed View")
        if missing := readiness.missing_for_rig(scene):
            sentence(layout, context, missing, "INFO")
        layout.label(text="Make a rig:" if not len(settings.rig) else "Make another rig:")
        grid = layout.grid_flow(columns=2, even_columns=True, align=True, row_major=True)
        for name, text, icon in MAKERS:
            grid.operator(name, text=text, icon=icon)
        if not len(settings.rig):
            sentence(layout, context, "There is no rig yet: make one around the subject", "INFO")
            row = layout.row()
            row.operator("viewtime.rig_from_file", text="From File...", icon="FILE_FOLDER")
            return
        row = layout.row()
        row.template_list(
            "VIEWTIME_UL_rig", "", settings, "rig", settings, "rig_index", rows=5, maxrows=10
        )
        column = row.column(align=True)
        column.operator("viewtime.rig_add", text="", icon="ADD")
        column.operator("viewtime.rig_remove", text="", icon="REMOVE")
        column.separator()
        column.operator("viewtime.rig_move", text="", icon="TRIA_UP").direction = "UP"
        column.operator("viewtime.rig_move", text="", icon="TRIA_DOWN").direction = "DOWN"
        column.separator()
        column.menu("VIEWTIME_MT_rig_more", text="", icon="DOWNARROW_HLT")
        if looked := previewed(context):
            row = layout.row()
            row.operator(
                "viewtime.look_back", text=f"Leave {looked.name}", icon="LOOP_BACK", depress=True
            )
        doubts = readiness.rig_doubts(scene)
        for doubt in doubts[:MOST_DOUBTS]:
            sentence(layout, context, doubt, "ERROR")
        if len(doubts) > MOST_DOUBTS:
            layout.label(text=f"and {len(doubts) - MOST_DOUBTS} more", icon="BLANK1")


CLASSES = (VIEWTIME_UL_rig, VIEWTIME_MT_rig_more, VIEWTIME_PT_rig)
