# SPDX-License-Identifier: GPL-3.0-or-later
"""Follows the timeline, files being opened and files being saved, for every sequence object.
It never lets an exception reach Blender, and never writes splats into the .blend."""

from __future__ import annotations

from pathlib import Path

import bpy
from bpy.app.handlers import persistent

from . import sequence_object

# While a file is being written: the clouds kept aside and the folders as absolute paths, by
# session identity. Empty at any other time.
_aside: dict[int, bpy.types.PointCloud] = {}
_folders: dict[int, Path] = {}


def refresh_all() -> None:
    """Bring every sequence object to the current frame (a job wrote more, a file was opened)."""
    for scene in bpy.data.scenes:
        for ob in list(sequence_object.sequences()):
            if scene.objects.get(ob.name) == ob:
                sequence_object.refresh(ob, scene.frame_float)


def object_changed(ob: bpy.types.Object) -> None:
    """A person edited ob.viewtime. Quiet while saving, where only the path's spelling changes."""
    if ob.type == "POINTCLOUD" and not _folders:
        sequence_object.refresh(ob, bpy.context.scene.frame_float)


@persistent
def _frame_change(scene: bpy.types.Scene, _depsgraph: object = None) -> None:
    # Renders with motion blur come here with the frame before and a subframe: both count.
    for ob in list(sequence_object.sequences()):
        sequence_object.refresh(ob, scene.frame_float)


@persistent
def _load(_path: str = "", _more: object = None) -> None:
    sequence_object.reader.forget()
    _aside.clear()
    _folders.clear()
    refresh_all()


@persistent
def _before_save(path: str = "", _more: object = None) -> None:
    """Keep splats out of the file, and spell folders relative to where it is going."""
    target = path or bpy.data.filepath
    # A linked object belongs to another file, which this one does not write.
    own = [ob for ob in sequence_object.sequences() if ob.library is None]
    for ob in own:
        if sequence_object.home(ob) is None:
            _folders[ob.session_uid] = sequence_object.absolute_folder(ob)
    for ob in own:
        if ob.session_uid in _folders:
            ob.viewtime.folder = sequence_object.stored_folder(_folders[ob.session_uid], target)
        if ob.data.library is None and not ob.data.use_fake_user:
            _aside[ob.session_uid] = ob.data
            ob.data = _empty_twin(ob.data)


@persistent
def _after_save(_path: str = "", _more: object = None) -> None:
    """Undo _before_save in memory; after Save Copy the open file is still the old one."""
    for ob in list(sequence_object.sequences()):
        full = _aside.pop(ob.session_uid, None)
        if full is not None:
            empty = ob.data
            ob.data = full
            if empty.users == 0:
                name = empty.name
                bpy.data.pointclouds.remove(empty)
                full.name = name
        folder = _folders.get(ob.session_uid)
        if folder is not None:
            ob.viewtime.folder = sequence_object.stored_folder(folder, bpy.data.filepath)
    _aside.clear()
    _folders.clear()


def _empty_twin(full: bpy.types.PointCloud) -> bpy.types.PointCloud:
    """A cloud without points that takes the name and the materials of `full`, for the file."""
    name = full.name
    full.name = f"{name} (in memory)"
    empty = bpy.data.pointclouds.new(name)
    for material in full.materials:
        empty.materials.append(material)
    if hasattr(full, "type"):
        empty.type = full.type
    return empty


_HANDLERS = (
    ("frame_change_pre", _frame_change),
    ("load_post", _load),
    ("save_pre", _before_save),
    ("save_post", _after_save),
    ("save_post_fail", _after_save),
)


def register() -> None:
    """Attach the handlers, and catch up when a file is already open."""
    for name, function in _HANDLERS:
        getattr(bpy.app.handlers, name).append(function)
    if _file_is_there():
        refresh_all()
    else:
        bpy.app.timers.register(refresh_all, first_interval=0.0)


def _file_is_there() -> bool:
    """Whether paths of the .blend resolve. While Blender enables an add-on it hides the file."""
    try:
        bpy.path.abspath("//")
    except AttributeError:
        return False
    return hasattr(bpy.data, "objects")


def unregister() -> None:
    if bpy.app.timers.is_registered(refresh_all):
        bpy.app.timers.unregister(refresh_all)
    for name, function in _HANDLERS:
        handlers = getattr(bpy.app.handlers, name)
        if function in handlers:
            handlers.remove(function)
    sequence_object.reader.forget()
