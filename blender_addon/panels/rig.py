# SPDX-License-Identifier: GPL-3.0-or-later
"""The first step in the sidebar: the cameras. It draws and decides nothing."""

from __future__ import annotations

import bpy

from .. import readiness
from .layout import SidebarPanel


class VIEWTIME_PT_rig(SidebarPanel, bpy.types.Panel):
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


CLASSES = (VIEWTIME_PT_rig,)
