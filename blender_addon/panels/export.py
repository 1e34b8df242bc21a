# SPDX-License-Identifier: GPL-3.0-or-later
"""The last step in the sidebar: files. It draws and decides nothing."""

from __future__ import annotations

import bpy

from .. import readiness
from .layout import SidebarPanel


class VIEWTIME_PT_export(SidebarPanel, bpy.types.Panel):
    bl_label = "Export"
    bl_idname = "VIEWTIME_PT_export"
    bl_order = 4

    def draw(self, context: bpy.types.Context) -> None:
        missing = readiness.missing_for_export(context.scene, context.active_object)
        self.step(context, missing).operator("viewtime.export_ply", icon="EXPORT")


CLASSES = (VIEWTIME_PT_export,)
