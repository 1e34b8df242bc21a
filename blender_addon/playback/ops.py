# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators around sequences: import (also by dropping a file), relink, make native.
They never read or write splats themselves: arguments and messages only."""

from __future__ import annotations

from pathlib import Path

import bpy

from viewtime_formats import ViewtimeError

from .. import display
from . import native_sequence, relink, sequence_object
from .folders import INDEX, sequence_folder, stored_folder

_HIDDEN = {"HIDDEN", "SKIP_SAVE"}


class _Chosen:
    """The arguments that a file browser and a dropped file fill in."""

    directory: bpy.props.StringProperty(
        name="Folder",
        description=f"Folder of the sequence (the one that holds {INDEX})",
        subtype="DIR_PATH",
        options={"SKIP_SAVE"},
    )
    filepath: bpy.props.StringProperty(
        name="File", description=f"Its {INDEX}", subtype="FILE_PATH", options=_HIDDEN
    )
    files: bpy.props.CollectionProperty(type=bpy.types.OperatorFileListElement, options=_HIDDEN)
    filter_folder: bpy.props.BoolProperty(default=True, options=_HIDDEN)
    filter_glob: bpy.props.StringProperty(default=INDEX, options=_HIDDEN)

    def chosen(self) -> str:
        """The folder or the file that was meant; empty when there is none. Raises ViewtimeError."""
        file = Path(self.filepath)
        if file.name == INDEX:
            return self.filepath
        if file.is_file():
            raise ViewtimeError(f"{file}: not a splat sequence; choose its {INDEX}")
        return self.directory or self.filepath

    def fail(self, error: ViewtimeError | str) -> set[str]:
        self.report({"ERROR"}, str(error))
        return {"CANCELLED"}


class VIEWTIME_OT_import_sequence(_Chosen, bpy.types.Operator):
    """Add an object that plays a splat sequence along the timeline. Choose the folder of the
    sequence, or its sequence.json"""

    bl_idname = "viewtime.import_sequence"
    bl_label = "Import Splat Sequence"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if context.collection is None or context.collection.library is not None:
            cls.poll_message_set("The active collection is linked: choose one of this file")
            return False
        return True

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        if self.directory or self.filepath:
            return self.execute(context)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            chosen = self.chosen()
            if not chosen:
                return self.fail("Choose the folder of a splat sequence")
            folder = sequence_folder(chosen)
            ob = sequence_object.create(context.scene, context.collection, folder)
        except ViewtimeError as error:
            return self.fail(error)
        display.apply(ob)
        _make_active(context, ob)
        for line in _notes(context.scene, ob):
            self.report({"INFO"}, line)
        return {"FINISHED"}


class VIEWTIME_FH_sequence(bpy.types.FileHandler):
    """Dropping the sequence.json of a folder imports the sequence."""

    bl_idname = "VIEWTIME_FH_sequence"
    bl_label = "Viewtime splat sequence"
    bl_import_operator = VIEWTIME_OT_import_sequence.bl_idname
    bl_file_extensions = Path(INDEX).suffix

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        return context.area is None or context.area.type in {"VIEW_3D", "OUTLINER"}


class _OnSequence:
    """Operators on the active sequence object, or the only one of the file."""

    object_name: bpy.props.StringProperty(
        name="Object",
        description="Sequence object; empty is the active one, or the only one of the file",
        options={"SKIP_SAVE"},
    )

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        if next(sequence_object.sequences(), None) is None:
            cls.poll_message_set("Import a splat sequence first")
            return False
        return True

    def target(self, context: bpy.types.Context) -> bpy.types.Object:
        known = {ob.name: ob for ob in sequence_object.sequences()}
        active = context.active_object
        name = self.object_name or (active.name if active is not None else "")
        if name in known:
            return known[name]
        if self.object_name:
            raise ViewtimeError(f"{name}: no splat sequence of this name in the file")
        if len(known) != 1:
            raise ViewtimeError("Select the object that plays the sequence")
        return next(iter(known.values()))


class VIEWTIME_OT_relink_sequence(_OnSequence, _Chosen, bpy.types.Operator):
    """Connect the object with its splat sequence again after the folder was moved: look for it
    nearby, or choose the folder (or one above it)"""

    bl_idname = "viewtime.relink_sequence"
    bl_label = "Relink Splat Sequence"
    bl_options = {"REGISTER", "UNDO"}

    nearby: bpy.props.BoolProperty(
        name="Look nearby",
        description="Find the sequence by its identity around its old folder and the .blend",
        options={"SKIP_SAVE"},
    )

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        if self.nearby or self.directory or self.filepath:
            return self.execute(context)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            ob = self.target(context)
            if ob.library is not None:
                return self.fail(f"{ob.name} is linked: relink it in {ob.library.filepath}")
            before = ob.viewtime.sequence_id
            chosen = "" if self.nearby else self.chosen()
            if not self.nearby and not chosen:
                return self.fail("Choose the folder of the sequence, or look nearby")
            folder = relink.find(ob) if self.nearby else relink.relink(ob, chosen)
        except ViewtimeError as error:
            return self.fail(error)
        if ob.viewtime.sequence_id != before:
            self.report({"WARNING"}, f"{ob.name} now plays another sequence: {folder}")
        else:
            self.report({"INFO"}, f"{ob.name}: {folder}")
        return {"FINISHED"}


class VIEWTIME_OT_make_native_sequence(_OnSequence, bpy.types.Operator):
    """Write the sequence as numbered PLY files and add an object that plays them by geometry
    nodes: for render farms without Viewtime. The object that it was made from is hidden"""

    bl_idname = "viewtime.make_native_sequence"
    bl_label = "Make Native Sequence"
    bl_options = {"REGISTER", "UNDO"}

    directory: bpy.props.StringProperty(
        name="Folder",
        description="Where the PLY files go; empty is a folder beside the .blend",
        subtype="DIR_PATH",
        options={"SKIP_SAVE"},
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        manager = context.window_manager
        manager.progress_begin(0.0, 1.0)
        try:
            ob = self.target(context)
            folder = (
                Path(bpy.path.abspath(self.directory)).absolute()
                if self.directory
                else native_sequence.default_folder(ob)
            )
            native = native_sequence.make_native(
                context.scene,
                ob,
                folder,
                on_step=lambda done, total: manager.progress_update(done / total),
            )
        except ViewtimeError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        finally:
            manager.progress_end()
        _make_active(context, native)
        self.report({"INFO"}, f"{native.name} plays {stored_folder(folder, bpy.data.filepath)}")
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


CLASSES = (
    VIEWTIME_OT_import_sequence,
    VIEWTIME_FH_sequence,
    VIEWTIME_OT_relink_sequence,
    VIEWTIME_OT_make_native_sequence,
)
