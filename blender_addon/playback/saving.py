# SPDX-License-Identifier: GPL-3.0-or-later
"""Files being saved, opened and taken from: folders stay relative, splats stay outside.
It never writes splats into a .blend, and what it changes for the file it undoes in memory."""

from __future__ import annotations

import os
from pathlib import Path

import bpy
from bpy.app.handlers import persistent

from . import cloud, sequence_object
from .folders import absolute_folder, home, stored_folder
from .sequence_object import LENT_FOR

# While a file is being written: the clouds kept aside and the folders as absolute paths, by
# session identity. Empty at any other time.
_aside: dict[int, bpy.types.PointCloud] = {}
_folders: dict[int, Path] = {}


def is_saving() -> bool:
    """Whether only the spelling of paths changes now."""
    return bool(_folders)


def forget() -> None:
    _aside.clear()
    _folders.clear()


@persistent
def before_save(path: str = "", _more: object = None) -> None:
    """Keep splats out of the file, and spell folders relative to where it is going."""
    target = path or bpy.data.filepath
    every = list(sequence_object.sequences())
    # A linked object belongs to another file, which this one does not write.
    own = [ob for ob in every if ob.library is None]
    for ob in own:
        if home(ob) is None:
            _folders[ob.session_uid] = absolute_folder(ob)
    for ob in own:
        if ob.session_uid in _folders:
            ob.viewtime.folder = stored_folder(_folders[ob.session_uid], target)
        if ob.data.library is None and not ob.data.use_fake_user:
            _aside[ob.session_uid] = ob.data
            ob.data = _empty_twin(ob.data)
    for ob in every:
        if ob.library is not None and LENT_FOR in ob.data:
            _aside[ob.session_uid] = ob.data
            ob.data = ob.data[LENT_FOR]


@persistent
def after_save(_path: str = "", _more: object = None) -> None:
    """Undo before_save in memory; after Save Copy the open file is still the old one."""
    for ob in list(sequence_object.sequences()):
        full = _aside.pop(ob.session_uid, None)
        if full is not None:
            empty = ob.data
            ob.data = full
            if empty.users == 0 and empty.library is None:
                name = empty.name
                bpy.data.pointclouds.remove(empty)
                full.name = name
        folder = _folders.get(ob.session_uid)
        if folder is not None:
            ob.viewtime.folder = stored_folder(folder, bpy.data.filepath)
    forget()


@persistent
def after_import(context: object, _more: object = None) -> None:
    """Objects appended from another .blend: their folders were relative to that one."""
    for item in context.import_items:
        ob, source = item.id, item.source_library
        if not isinstance(ob, bpy.types.Object) or ob.library is not None or source is None:
            continue
        if item.append_action == "REUSE_LOCAL" or not ob.viewtime.folder.startswith("//"):
            continue
        there = bpy.path.abspath(ob.viewtime.folder, library=source)
        folder = Path(os.path.normpath(there))
        ob.viewtime.folder = stored_folder(folder, bpy.data.filepath)


def _empty_twin(full: bpy.types.PointCloud) -> bpy.types.PointCloud:
    """A cloud without points that takes the name and what was set on `full`, for the file."""
    name = full.name
    full.name = f"{name} (in memory)"
    empty = bpy.data.pointclouds.new(name)
    cloud.adopt(empty, full)
    cloud.hold_step(empty, "")
    return empty
