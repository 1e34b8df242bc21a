# SPDX-License-Identifier: GPL-3.0-or-later
"""The object that plays a splat sequence: made once, then brought to the frame of the scene.
All it remembers lies in ob.viewtime and two custom properties; it never raises into Blender's
frame change, and shows what is wrong as a line on the object instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bpy

from viewtime_formats import SequenceError, SplatSequence, ViewtimeError

from .. import preferences
from . import cloud
from .folders import absolute_folder, moved_with_library, stored_folder
from .frames import Course, Timing, existing_step
from .prefetch import Prefetch, Wanted
from .reader import SequenceReader, read_step

# What is wrong with the sequence, in one line, on the object; absent when all is well.
MESSAGE = "viewtime_message"
# On the cloud that a linked object is lent: the one it has in its own file.
LENT_FOR = "viewtime_linked"
# Steps to read ahead for each object, as far as the memory budget goes.
_DEPTH = 8
_DEFAULT_BUDGET = 512 << 20

# None of these outlives the open file: see forget().
reader = SequenceReader()
ahead = Prefetch()
_courses: dict[int, Course] = {}
_paused = False


def sequences() -> Iterator[bpy.types.Object]:
    """All objects of the file that play a sequence, of every scene."""
    for ob in bpy.data.objects:
        if ob.type == "POINTCLOUD" and ob.viewtime.folder:
            yield ob


def is_animated(ob: bpy.types.Object) -> bool:
    """Whether keyframes, NLA strips or drivers may have a say in when the object shows what."""
    data = ob.animation_data
    return data is not None and bool(data.action or data.drivers or data.nla_tracks)


def message(ob: bpy.types.Object) -> str:
    """What is wrong with the object's sequence, in one line; empty when all is well."""
    return ob.get(MESSAGE, "")


def timing(ob: bpy.types.Object, sequence: SplatSequence) -> Timing:
    """How the object's sequence lies on the timeline; of an evaluated object, at its frame."""
    settings = ob.viewtime
    return Timing(
        times=sequence.times,
        frame_start=sequence.frame_start,
        frame_step=sequence.frame_step,
        offset=settings.offset,
        speed=settings.speed,
        loop=settings.loop,
        nearest=settings.sampling == "NEAREST",
        time=settings.time if settings.use_time else None,
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
    played = Timing(sequence.times, sequence.frame_start, sequence.frame_step)
    step = existing_step(played.step_at(scene.frame_float), sequence.has_step)
    if step is not None:
        read_step(sequence, step)
    for ob in sequences():
        if absolute_folder(ob) == folder and scene.objects.get(ob.name) is ob:
            ob.viewtime.sequence_id = sequence.id
            refresh(ob, scene)
            return ob
    name = folder.parent.name if folder.name == "splats" and folder.parent.name else folder.name
    ob = bpy.data.objects.new(name, bpy.data.pointclouds.new(name))
    collection.objects.link(ob)
    ob.viewtime.sequence_id = sequence.id
    ob.viewtime.folder = stored_folder(folder, bpy.data.filepath)
    # Steps have no correspondence between their points: blur between them would be streaks.
    if hasattr(ob, "cycles"):
        ob.cycles.use_deform_motion = False
    refresh(ob, scene)
    return ob


def refresh(
    ob: bpy.types.Object, scene: bpy.types.Scene, seen: bpy.types.Object | None = None
) -> None:
    """Bring the object to the scene's frame. Never raises: see message(ob).

    seen: the evaluated object, whose settings are those of animation and drivers at that frame.
    """
    settings = (seen or ob).viewtime
    if _paused or not settings.enabled or not ob.viewtime.folder:
        return
    try:
        text = _show(ob, scene, seen or ob)
    except ViewtimeError as error:
        text = str(error)
    except (OSError, RuntimeError, ReferenceError) as error:
        text = f"{ob.name}: the sequence cannot be shown: {error}"
    _tell(ob, text)


def pause(paused: bool) -> None:
    """Leave all objects as they are, whatever the frame, until pause(False)."""
    global _paused
    _paused = paused


def forget() -> None:
    """Close all sequences and drop what was read ahead (another file, or the add-on goes)."""
    ahead.forget()
    reader.forget()
    _courses.clear()


def _show(ob: bpy.types.Object, scene: bpy.types.Scene, seen: bpy.types.Object) -> str:
    """Fill the object's cloud for a frame; returns the line to show, empty when all is well."""
    sequence = _open_or_find(ob)
    played = timing(seen, sequence)
    step = existing_step(played.step_at(scene.frame_float), sequence.has_step)
    if step is None:
        return "No step of the sequence is written yet; the job may still be running"
    held = f"{sequence.id}:{step}"
    if cloud.held_step(ob.data) != held:
        arrays = ahead.take(sequence, step)
        _make_own(ob)
        cloud.hold_step(cloud.fill(ob, arrays), held)
    _look_ahead(ob, scene, sequence, played)
    if ob.viewtime.sequence_id and ob.viewtime.sequence_id != sequence.id:
        return "The folder now holds another sequence than the one imported; import it again"
    return ""


def _open_or_find(ob: bpy.types.Object) -> SplatSequence:
    folder = absolute_folder(ob)
    try:
        return reader.open(folder)
    except SequenceError:
        found = None if folder.is_dir() else moved_with_library(ob)
        if found is None:
            raise
        ob.viewtime.folder = stored_folder(found, bpy.data.filepath)
        return reader.open(found)


def _make_own(ob: bpy.types.Object) -> None:
    """Give the object a cloud of its own to write into, when the present one is not."""
    if ob.library is not None:
        if ob.data.library is not None:
            # Blender does not save what linked objects are changed to; save_pre takes it back.
            lent = bpy.data.pointclouds.new(f"{ob.name} (linked)")
            cloud.adopt(lent, ob.data)
            lent[LENT_FOR] = ob.data
            ob.data = lent
    elif ob.data.library is not None or _shared_with_another(ob):
        ob.data = ob.data.copy()


def _shared_with_another(ob: bpy.types.Object) -> bool:
    """Whether another object plays through the same cloud (a linked duplicate)."""
    return ob.data.users > 1 and any(other.data == ob.data and other != ob for other in sequences())


def _look_ahead(
    ob: bpy.types.Object, scene: bpy.types.Scene, sequence: SplatSequence, played: Timing
) -> None:
    """Have the steps read that come next if the timeline goes on as it did."""
    course = _courses.setdefault(ob.session_uid, Course())
    frames = (scene.frame_start, scene.frame_end)
    if scene.use_preview_range:
        frames = (scene.frame_preview_start, scene.frame_preview_end)
    steps = course.ahead(played, scene.frame_float, frames, _DEPTH)
    wanted = [Wanted(sequence, step) for step in steps if sequence.entry(step) is not None]
    ahead.want(ob.session_uid, wanted, _budget())


def _budget() -> int:
    """Bytes for reading ahead. An add-on enabled for one session only has no preferences."""
    try:
        return preferences.prefetch_bytes()
    except (KeyError, AttributeError):
        return _DEFAULT_BUDGET


def _tell(ob: bpy.types.Object, text: str) -> None:
    """Set the object's line only when it changes: a write would tag the object every frame."""
    if text == message(ob):
        return
    if text:
        ob[MESSAGE] = text
    else:
        del ob[MESSAGE]


__all__ = [
    "LENT_FOR",
    "MESSAGE",
    "SequenceError",
    "absolute_folder",
    "ahead",
    "create",
    "forget",
    "is_animated",
    "message",
    "open_sequence",
    "pause",
    "reader",
    "refresh",
    "sequences",
    "timing",
]
