# SPDX-License-Identifier: GPL-3.0-or-later
"""The object that plays a splat sequence: made once, then brought to the frame of the scene.
All it remembers lies in ob.viewtime and two custom properties; it never raises into Blender's
frame change, and shows what is wrong as a line on the object instead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import bpy

from viewtime_formats import SequenceError, SplatSequence, ViewtimeError

from . import cloud
from .frames import Timing, existing_step
from .reader import SequenceReader

# What is wrong with the sequence, in one line, on the object; absent when all is well.
MESSAGE = "viewtime_message"
# Which step a cloud holds ("sequence:step"), on the cloud: it follows undo and copies.
_HELD = "viewtime_step"

reader = SequenceReader()


def sequences() -> Iterator[bpy.types.Object]:
    """All objects of the file that play a sequence, of every scene."""
    for ob in bpy.data.objects:
        if ob.type == "POINTCLOUD" and ob.viewtime.folder:
            yield ob


def message(ob: bpy.types.Object) -> str:
    """What is wrong with the object's sequence, in one line; empty when all is well."""
    return ob.get(MESSAGE, "")


def absolute_folder(ob: bpy.types.Object) -> Path:
    """The sequence's folder on this machine."""
    return Path(os.path.normpath(bpy.path.abspath(ob.viewtime.folder, library=home(ob))))


def home(ob: bpy.types.Object) -> bpy.types.Library | None:
    """The file that the object's folder is relative to; None is the open one.

    A library override has its folder from the library, unless a person has set another.
    """
    if ob.override_library is not None:
        reference = ob.override_library.reference
        return reference.library if reference.viewtime.folder == ob.viewtime.folder else None
    return ob.library


def stored_folder(folder: Path, blend: str) -> str:
    """`folder` as it is kept in the file `blend`: relative (//) when it can be.

    It cannot while the .blend is unsaved (blend is empty), or lies on another drive.
    """
    if blend:
        try:
            relative = os.path.relpath(folder, os.path.dirname(os.path.abspath(blend)))
        except ValueError:
            return str(folder)
        return "//" + relative.replace(os.sep, "/")
    return str(folder)


def timing(ob: bpy.types.Object, sequence: SplatSequence) -> Timing:
    """How the object's sequence lies on the timeline."""
    return Timing(
        times=sequence.times,
        frame_start=sequence.frame_start,
        frame_step=sequence.frame_step,
        offset=ob.viewtime.offset,
        speed=ob.viewtime.speed,
    )


def open_sequence(ob: bpy.types.Object) -> SplatSequence:
    """The sequence that the object plays; raises SequenceError."""
    return reader.open(absolute_folder(ob))


def create(
    scene: bpy.types.Scene,
    collection: bpy.types.Collection,
    folder: Path,
) -> bpy.types.Object:
    """Make the object that plays the sequence in `folder`, or refresh the one that already does.

    Raises SequenceError before anything is made when the folder, its index or the step of the
    scene's frame does not hold up.
    """
    sequence = reader.open(folder)
    step = existing_step(_timing_of(sequence).step_at(scene.frame_float), sequence.has_step)
    if step is not None:
        reader.read(sequence, step)
    for ob in sequences():
        if absolute_folder(ob) == folder and scene.objects.get(ob.name) is ob:
            ob.viewtime.sequence_id = sequence.id
            refresh(ob, scene.frame_float)
            return ob
    name = folder.parent.name if folder.name == "splats" and folder.parent.name else folder.name
    ob = bpy.data.objects.new(name, bpy.data.pointclouds.new(name))
    collection.objects.link(ob)
    ob.viewtime.sequence_id = sequence.id
    ob.viewtime.folder = stored_folder(folder, bpy.data.filepath)
    # Steps have no correspondence between their points: blur between them would be streaks.
    if hasattr(ob, "cycles"):
        ob.cycles.use_deform_motion = False
    refresh(ob, scene.frame_float)
    return ob


def refresh(ob: bpy.types.Object, frame: float) -> None:
    """Bring the object to a scene frame. Never raises: see message(ob)."""
    if not ob.viewtime.enabled or not ob.viewtime.folder:
        return
    try:
        text = _show(ob, frame)
    except ViewtimeError as error:
        text = str(error)
    except (OSError, RuntimeError, ReferenceError) as error:
        text = f"{ob.name}: the sequence cannot be shown: {error}"
    _tell(ob, text)


def _timing_of(sequence: SplatSequence) -> Timing:
    return Timing(sequence.times, sequence.frame_start, sequence.frame_step)


def _show(ob: bpy.types.Object, frame: float) -> str:
    """Fill the object's cloud for a frame; returns the line to show, empty when all is well."""
    if ob.library is not None:
        return "Linked from another file: make a library override or a local copy to play it"
    sequence = open_sequence(ob)
    step = existing_step(timing(ob, sequence).step_at(frame), sequence.has_step)
    if step is None:
        return "No step of the sequence is written yet; the job may still be running"
    held = f"{sequence.id}:{step}"
    if ob.data.get(_HELD) != held:
        arrays = reader.read(sequence, step)
        if ob.data.library is not None or _shared_with_another(ob):
            ob.data = ob.data.copy()
        data = cloud.write(ob.data, arrays)
        data[_HELD] = held
    if ob.viewtime.sequence_id and ob.viewtime.sequence_id != sequence.id:
        return "The folder now holds another sequence than the one imported; import it again"
    return ""


def _shared_with_another(ob: bpy.types.Object) -> bool:
    """Whether another object plays through the same cloud (a linked duplicate)."""
    return ob.data.users > 1 and any(other.data == ob.data and other != ob for other in sequences())


def _tell(ob: bpy.types.Object, text: str) -> None:
    """Set the object's line only when it changes: a write would tag the object every frame."""
    if text == message(ob):
        return
    if text:
        ob[MESSAGE] = text
    else:
        del ob[MESSAGE]


__all__ = [
    "MESSAGE",
    "SequenceError",
    "absolute_folder",
    "create",
    "message",
    "open_sequence",
    "reader",
    "refresh",
    "sequences",
    "stored_folder",
    "timing",
]
