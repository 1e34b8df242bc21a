# SPDX-License-Identifier: GPL-3.0-or-later
"""Connects an object with its sequence again after folders were moved.
It never moves files, and never takes another sequence unless a person points at it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import bpy

from viewtime_formats import ViewtimeError

from . import sequence_object
from .folders import absolute_folder, find_sequence, identity, sequence_folder, stored_folder


def relink(ob: bpy.types.Object, path: str) -> Path:
    """Point the object at the sequence that a person chose by `path`; returns its folder.

    A folder without a sequence is searched for the object's own. Other objects that lost the same
    folder follow. Raises ViewtimeError.
    """
    folder = sequence_folder(path)
    if not identity(folder):
        folder = find_sequence(ob.viewtime.sequence_id, [folder]) or folder
    sequence = sequence_object.reader.open(folder)
    _point(_companions(ob), folder, sequence.id)
    return folder


def find(ob: bpy.types.Object) -> Path:
    """Look for the object's sequence around its old folder and the .blend. Raises ViewtimeError."""
    old = absolute_folder(ob)
    places = [old]
    if bpy.data.filepath:
        places.append(Path(bpy.data.filepath).parent)
    folder = find_sequence(ob.viewtime.sequence_id, places)
    if folder is None:
        raise ViewtimeError(f"{ob.name}: its sequence is not near {old}; choose its folder")
    _point(_companions(ob), folder, ob.viewtime.sequence_id)
    return folder


def _companions(ob: bpy.types.Object) -> list[bpy.types.Object]:
    old, known = absolute_folder(ob), ob.viewtime.sequence_id
    return [
        other
        for other in sequence_object.sequences()
        if other.library is None
        and (other == ob or (other.viewtime.sequence_id == known and absolute_folder(other) == old))
    ]


def _point(objects: Iterable[bpy.types.Object], folder: Path, sequence_id: str) -> None:
    for ob in objects:
        ob.viewtime.sequence_id = sequence_id
        ob.viewtime.folder = stored_folder(folder, bpy.data.filepath)
