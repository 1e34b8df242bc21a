# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators behind the panel's export buttons: files, the command line, a farm's job.
They never change the scene, and a job file appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import bpy

from viewtime_formats import ViewtimeError, atomic_path

from .. import __package__ as ADD_ON
from .. import playback
from ..properties.export import FARM_KINDS, FARM_WORK
from .command import as_line, export_words
from .farm import FarmJob, flamenco, openjd
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
    frame_start: bpy.props.IntProperty(
        name="First frame", description="Where Whole sequence is off", default=1
    )
    frame_end: bpy.props.IntProperty(
        name="Last frame", description="Where Whole sequence is off; included", default=250
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return _has_sequence(cls, context)

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


class VIEWTIME_OT_export_command(bpy.types.Operator):
    """Copy the command that does this export without a window, for a terminal or a script"""

    bl_idname = "viewtime.export_command"
    bl_label = "Copy as Command Line"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return _has_sequence(cls, context) and _is_saved(cls)

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            job = _job(context, "EXPORT")
        except ViewtimeError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        frames = f"{job.first}:{job.last}"
        words = export_words(
            bpy.app.binary_path or "blender", job.add_on, job.blend, job.ob, job.out, frames
        )
        line = as_line(words)
        context.window_manager.clipboard = line
        print(line)
        self.report({"INFO"}, "The command is in the clipboard" + _if_changed())
        return {"FINISHED"}


class VIEWTIME_OT_export_farm(bpy.types.Operator):
    """Write a job for a render farm that exports or renders in parts, several frames a task"""

    bl_idname = "viewtime.export_farm"
    bl_label = "Write Farm Job"

    filepath: bpy.props.StringProperty(
        name="File", description="The job file to write", subtype="FILE_PATH"
    )
    filter_glob: bpy.props.StringProperty(default="*.json;*.js", options={"HIDDEN"})
    kind: bpy.props.EnumProperty(
        name="For", description="Which farm reads it; empty is the scene's", items=FARM_KINDS
    )
    work: bpy.props.EnumProperty(
        name="Work", description="What the farm does; empty is the scene's", items=FARM_WORK
    )

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        return _is_saved(cls)

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        self._from_scene(context)
        suffix = ".json" if self.kind == "OPENJD" else ".js"
        stem = Path(bpy.data.filepath).stem
        self.filepath = str(
            Path(bpy.data.filepath).with_name(f"{stem}_{self.work.lower()}{suffix}")
        )
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        self._from_scene(context)
        if not self.filepath:
            self.report({"ERROR"}, "Give the path of the job file")
            return {"CANCELLED"}
        path = Path(os.path.abspath(bpy.path.abspath(self.filepath)))
        try:
            job = _job(context, self.work)
            text = (openjd if self.kind == "OPENJD" else flamenco)(job)
            with atomic_path(path) as part:
                Path(part).write_text(text, encoding="utf-8")
        except ViewtimeError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        except OSError as error:
            self.report({"ERROR"}, f"{path}: cannot be written: {error.strerror}")
            return {"CANCELLED"}
        self.report({"INFO"}, f"{len(job.tasks())} tasks in {path}" + _if_changed())
        return {"FINISHED"}

    def _from_scene(self, context: bpy.types.Context) -> None:
        settings = context.scene.viewtime
        if not self.properties.is_property_set("kind"):
            self.kind = settings.farm_kind
        if not self.properties.is_property_set("work"):
            self.work = settings.farm_work


def _job(context: bpy.types.Context, work: str) -> FarmJob:
    """What the panel asks for, as absolute paths. Raises ViewtimeError."""
    scene, settings = context.scene, context.scene.viewtime
    frames, name, out = (scene.frame_start, scene.frame_end), "", ""
    if work == "EXPORT":
        ob = sequence_object(_active_sequence(context))
        name, out = ob.name, _export_folder(settings)
        frames = chosen_frames(scene, ob)
    return FarmJob(
        name=f"{Path(bpy.data.filepath).stem} {work.lower()}",
        work=work,
        add_on=ADD_ON,
        blend=bpy.data.filepath,
        ob=name,
        out=out,
        first=frames[0],
        last=frames[1],
        chunk=settings.farm_chunk,
    )


def chosen_frames(scene: bpy.types.Scene, ob: bpy.types.Object) -> tuple[int, int]:
    """First and last frame that the scene's settings choose. Raises ViewtimeError."""
    which = scene.viewtime.export_frames
    if which == "SCENE":
        return scene.frame_start, scene.frame_end
    if which == "CURRENT":
        return scene.frame_current, scene.frame_current
    return playback.timing(ob, playback.open_sequence(ob)).frame_range()


def _export_folder(settings: bpy.types.PropertyGroup) -> str:
    if not settings.export_folder:
        raise ViewtimeError("choose the folder of the PLY files")
    return os.path.abspath(bpy.path.abspath(settings.export_folder))


def _has_sequence(cls: type, context: bpy.types.Context) -> bool:
    if not any(True for _ in playback.sequences()):
        cls.poll_message_set("Import a splat sequence first")
        return False
    return True


def _is_saved(cls: type) -> bool:
    if not bpy.data.filepath:
        cls.poll_message_set("Save the .blend first: other machines open it")
        return False
    return True


def _if_changed() -> str:
    return "; save the .blend, it has changed since" if bpy.data.is_dirty else ""


def _active_sequence(context: bpy.types.Context) -> str | None:
    ob = context.active_object
    if ob is not None and ob.type == "POINTCLOUD" and ob.viewtime.folder:
        return ob.name
    return None


CLASSES = (VIEWTIME_OT_export_ply, VIEWTIME_OT_export_command, VIEWTIME_OT_export_farm)
