# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator behind the panel's export button.
It never writes files itself: arguments and messages only."""

from __future__ import annotations

import os
from pathlib import Path

import bpy

from viewtime_formats import ViewtimeError

from .ply_sequence import export_ply, sequence_object


class VIEWTIME_OT_export_ply(bpy.types.Operator):
    """Write the active splat sequence as numbered 3DGS PLY files, one per frame"""

    bl_idname = "viewtime.export_ply"
    bl_label = "Export PLY Sequence"
    bl_options = {"REGISTER"}

    directory: bpy.props.StringProperty(
        name="Folder", description="Where the files go", subtype="DIR_PATH"
    )
    filter_folder: bpy.props.BoolProperty(default=True, options={"HIDDEN"})
    object_name: bpy.props.StringProperty(
        name="Object",
        description="Sequence object; empty is the active one, or the only one of the file",
    )
    whole: bpy.props.BoolProperty(
        name="Whole sequence", description="Every frame the sequence covers", default=True
    )
    frame_start: bpy.props.IntProperty(name="First frame", default=1)
    frame_end: bpy.props.IntProperty(name="Last frame", default=250)

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        if not self.directory:
            self.report({"ERROR"}, "Choose a folder for the PLY files")
            return {"CANCELLED"}
        folder = Path(os.path.abspath(bpy.path.abspath(self.directory)))
        frames = None if self.whole else (self.frame_start, self.frame_end)
        try:
            ob = sequence_object(self.object_name or _active_sequence(context))
            written = export_ply(context.scene, ob, folder, frames)
        except ViewtimeError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        self.report({"INFO"}, f"{len(written)} PLY files in {folder}")
        return {"FINISHED"}


def _active_sequence(context: bpy.types.Context) -> str | None:
    ob = context.active_object
    if ob is not None and ob.type == "POINTCLOUD" and ob.viewtime.folder:
        return ob.name
    return None


CLASSES = (VIEWTIME_OT_export_ply,)
