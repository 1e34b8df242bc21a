# SPDX-License-Identifier: GPL-3.0-or-later
"""What import and export still need, and what a sequence is, in words. It reads the scene and the
disk and changes neither."""

from __future__ import annotations

import bpy

from viewtime_formats import SplatSequence, ViewtimeError

from .. import playback
from .places import NotReady, result_folder

ROUTES = {
    "captured": "From captured geometry: rendered pixels, depth and cameras",
    "generated": "From generated frames",
}


def missing_for_result(scene: bpy.types.Scene) -> str | None:
    try:
        folder = result_folder(scene)
    except NotReady as reason:
        return str(reason)
    if not (folder / "sequence.json").is_file():
        return "Generate first, or choose an output folder that holds splats"
    return None


def missing_for_export(scene: bpy.types.Scene, active: bpy.types.Object | None) -> str | None:
    if active is not None and active.viewtime.sequence_id:
        return None
    if any(ob.viewtime.sequence_id for ob in scene.objects):
        return "Select the object that plays the sequence"
    return "Import a splat sequence first"


def missing_for_native(ob: bpy.types.Object) -> str | None:
    if not bpy.data.filepath:
        return "Save the .blend first: the files for render farms go beside it"
    try:
        sequence = playback.open_sequence(ob)
    except ViewtimeError as reason:
        return str(reason)
    if len(sequence.steps) < sequence.times:
        return f"{len(sequence.steps)} of {sequence.times} steps are written; wait for the job"
    return None


def is_lost(ob: bpy.types.Object) -> bool:
    """Whether the object's sequence is not where it was, so that it must be relinked."""
    return not (playback.absolute_folder(ob) / "sequence.json").is_file()


def sequence_in_words(ob: bpy.types.Object) -> list[str]:
    """What the object plays, line by line; empty when it cannot be read."""
    try:
        sequence = playback.open_sequence(ob)
    except ViewtimeError:
        return []
    first, last = playback.timing(ob, sequence).frame_range()
    lines = [
        f"{_steps(sequence)}, one every {sequence.frame_step} frames ({sequence.fps:g} fps)"
        if sequence.frame_step > 1
        else f"{_steps(sequence)}, {sequence.fps:g} fps",
        "Sequence time decides" if ob.viewtime.use_time else f"Frames {first} to {last}",
    ]
    counts = [step.count for step in sequence.steps]
    if counts:
        low, high = min(counts), max(counts)
        some = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        lines.append(f"{some} splats a step, colour of degree {sequence.sh_degree}")
    if sequence.bounds is not None:
        size = sequence.bounds[1] - sequence.bounds[0]
        lines.append("Size " + " x ".join(f"{length:.3g}" for length in size))
    route = sequence.provenance.get("route")
    if isinstance(route, str):
        lines.append(ROUTES.get(route, f"Made by: {route}"[:80]))
    return lines


def _steps(sequence: SplatSequence) -> str:
    if len(sequence.steps) == sequence.times:
        return f"{sequence.times} steps"
    return f"{len(sequence.steps)} of {sequence.times} steps so far"
