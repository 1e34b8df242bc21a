# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a sequence object as numbered 3DGS PLY files, one per scene frame, in world space.
It never leaves a part of a range behind: all files appear at the end, or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np

from viewtime_formats import ViewtimeError, write_ply

from .. import playback
from .similarity import moved


def sequence_object(name: str | None) -> bpy.types.Object:
    """The sequence object called `name`, or the only one of the file; raises ViewtimeError."""
    known = {ob.name: ob for ob in playback.sequences()}
    if name is not None:
        if name in known:
            return known[name]
        if name in bpy.data.objects:
            raise ViewtimeError(f"{name}: this object plays no splat sequence")
        raise ViewtimeError(f"{name}: no object of this name; {_listed(known)}")
    if len(known) != 1:
        raise ViewtimeError(f"name an object to export; {_listed(known)}")
    return next(iter(known.values()))


def export_ply(
    scene: bpy.types.Scene,
    ob: bpy.types.Object,
    folder: Path,
    frames: tuple[int, int] | None = None,
    *,
    on_frame: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write NAME.0001.ply and so on, numbered by scene frame; returns the files in order.

    frames: first and last scene frame, both inclusive; None is the whole sequence. Animation of
    the object is followed. The scene's frame is put back. Raises ViewtimeError with one line.
    """
    sequence = playback.open_sequence(ob)
    timing = playback.timing(ob, sequence)
    first, last = frames or timing.frame_range()
    if last < first:
        raise ViewtimeError(f"frames {first}:{last} end before they begin")
    numbers = range(first, last + 1)
    folder = Path(folder)
    stem = bpy.path.clean_name(ob.name)
    made = not folder.exists()
    before = (scene.frame_current, scene.frame_subframe)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{stem}.", suffix=".part", dir=folder))
    except OSError as error:
        raise ViewtimeError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        for frame in numbers:
            scene.frame_set(frame)
            # Keyframes and drivers may have a say in the step, as in the place.
            seen = _evaluated(scene, ob)
            step = playback.timing(seen, sequence).step_at(frame)
            if not sequence.has_step(step):
                raise ViewtimeError(f"{ob.name}: frame {frame} (step {step}) is not written yet")
            world = np.array(seen.matrix_world)
            write_ply(workshop / _file(stem, frame), moved(sequence.step(step), world, ob.name))
            if on_frame is not None:
                on_frame(frame)
        written = []
        for frame in numbers:
            os.replace(workshop / _file(stem, frame), folder / _file(stem, frame))
            written.append(folder / _file(stem, frame))
        return written
    except OSError as error:
        raise ViewtimeError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        scene.frame_set(before[0], subframe=before[1])
        shutil.rmtree(workshop, ignore_errors=True)
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _file(stem: str, frame: int) -> str:
    sign = "-" if frame < 0 else ""
    return f"{stem}.{sign}{abs(frame):04d}.ply"


def _listed(known: dict[str, bpy.types.Object]) -> str:
    if not known:
        return "the file has no splat sequence"
    return "splat sequences of the file: " + ", ".join(sorted(known))


def _evaluated(scene: bpy.types.Scene, ob: bpy.types.Object) -> bpy.types.Object:
    layer = next((each for each in scene.view_layers if each.objects.get(ob.name) == ob), None)
    return ob if layer is None else ob.evaluated_get(layer.depsgraph)
