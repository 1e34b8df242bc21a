# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator that puts a splat sequence on the timeline.
It never reads or writes files itself: arguments and messages only."""

from __future__ import annotations

import os
from pathlib import Path

import bpy

from viewtime_formats import ViewtimeError

from .. import display
from . import sequence_object


class VIEWTIME_OT_import_sequence(bpy.types.Operator):
    """Add an object that plays a splat sequence along the timeline"""

    bl_idname = "viewtime.import_sequence"
    bl_label = "Import Splat Sequence"
    bl_options = {"REGISTER", "UNDO"}

    directory: bpy.props.StringProperty(
        name="Folder",
        description="Folder of the sequence (the one that holds sequence.json)",
        subtype="DIR_PATH",
    )
    filter_folder: bpy.props.BoolProperty(default=True, options={"HIDDEN"})

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        if not self.directory:
            self.report({"ERROR"}, "Choose the folder of a splat sequence")
            return {"CANCELLED"}
        folder = Path(os.path.abspath(bpy.path.abspath(self.directory)))
        try:
            ob = sequence_object.create(context.scene, context.collection, folder)
        except ViewtimeError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        display.apply(ob)
        _make_active(context, ob)
        for line in _notes(context.scene, ob):
            self.report({"INFO"}, line)
        return {"FINISHED"}


def _make_active(context: bpy.types.Context, ob: bpy.types.Object) -> None:
    if context.mode == "OBJECT" and context.view_layer.objects.get(ob.name) == ob:
        for other in context.selected_objects:
            other.select_set(False)
        ob.select_set(True)
        context.view_layer.objects.active = ob


def _notes(scene: bpy.types.Scene, ob: bpy.types.Object) -> list[str]:
    """What the person should know about the import, line by line."""
    sequence = sequence_object.open_sequence(ob)
    first, last = sequence_object.timing(ob, sequence).frame_range()
    lines = [f"{ob.name}: {sequence.times} steps on frames {first} to {last}"]
    if not bpy.data.filepath:
        lines.append("The .blend is not saved: the folder is kept as an absolute path until it is")
    fps = scene.render.fps / scene.render.fps_base
    if abs(fps - sequence.fps) > 0.01:
        lines.append(f"The sequence has {sequence.fps:g} frames per second, the scene {fps:g}")
    return lines + display.advice(scene)


CLASSES = (VIEWTIME_OT_import_sequence,)
