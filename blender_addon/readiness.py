# SPDX-License-Identifier: GPL-3.0-or-later
"""What is still missing before a step of the work can be taken, as one sentence or None.
It reads the scene and the disk, changes neither, and is cheap enough for every redraw."""

from __future__ import annotations

from pathlib import Path

import bpy

from viewtime_formats.errors import ViewtimeError

from .capture.render import capture_frames, capture_places
from .capture.rig import rig_cameras


class NotReady(Exception):
    """A step cannot be taken yet; the message is the sentence for the person."""


def absolute_folder(path: str, what: str) -> Path:
    """The folder that a property of the scene means. Raises NotReady when it means none.

    what: name of the property in a sentence, as in "the output folder".
    """
    if not path:
        raise NotReady(f"Choose {what}")
    if path.startswith("//") and not bpy.data.filepath:
        raise NotReady(f"Save the .blend first, or give {what} an absolute path")
    folder = Path(bpy.path.abspath(path))
    if not folder.is_absolute():
        raise NotReady(f"Give {what} an absolute path, or one that begins with //")
    return folder


def missing_for_rig(scene: bpy.types.Scene) -> str | None:
    if scene.camera is None:
        return "Add a camera and make it the scene's active camera"
    return None


def missing_for_capture(scene: bpy.types.Scene) -> str | None:
    settings = scene.viewtime
    if reason := missing_for_rig(scene):
        return reason
    try:
        views = len(rig_cameras(scene))
        capture_frames(*capture_range(scene), settings.times)
        capture_places(capture_what(scene), views, settings.times, 0, settings.freeze_time)
        folder = absolute_folder(settings.capture_folder, "the capture folder")
    except (NotReady, ViewtimeError) as reason:
        return str(reason)
    if (folder / "capture.json").exists():
        return f"Captured in {folder}. To capture again, choose another folder"
    return None


def capture_what(scene: bpy.types.Scene) -> set[str]:
    """What viewtime.capture is asked for, as the scene's settings say."""
    settings = scene.viewtime
    frames = {"GRID"} if settings.capture_kind == "GRID" else {"FIXED", "FREEZE"}
    return frames | ({"DEPTH"} if settings.capture_depth else set())


def capture_range(scene: bpy.types.Scene) -> tuple[int, int]:
    """The longest part of the scene's frame range that its times divide evenly.

    It begins where the scene begins. Where there are more times than frames it is the whole
    range, which capture_frames then refuses in words.
    """
    gaps = scene.viewtime.times - 1
    length = scene.frame_end - scene.frame_start
    if gaps == 0:
        return scene.frame_start, scene.frame_start
    even = length // gaps * gaps
    return scene.frame_start, scene.frame_start + (even or length)


def capture_range_in_words(scene: bpy.types.Scene) -> str:
    """ "Frames 1 to 249, every 31" and its simpler cases."""
    start, end = capture_range(scene)
    if start == end:
        return f"Frame {start}"
    step = (end - start) // (scene.viewtime.times - 1)
    return f"Frames {start} to {end}" + (f", every {step}" if step > 1 else "")


def missing_for_generate(
    scene: bpy.types.Scene, backend_python: str, announced: bool = False
) -> str | None:
    """backend_python: the interpreter from the preferences, "" when none is set.
    announced: whether a backend started by hand is there, so that none need be started.
    """
    settings = scene.viewtime
    try:
        capture = absolute_folder(settings.capture_folder, "the capture folder")
        output = absolute_folder(settings.output_folder, "the output folder")
    except NotReady as reason:
        return str(reason)
    if not (capture / "capture.json").is_file():
        return f"There is no capture in {capture}: capture the scene first"
    if capture == output or capture in output.parents or output in capture.parents:
        return "Choose an output folder outside the capture folder"
    if announced:
        return None
    if not backend_python:
        return "Choose the backend's Python in the preferences of Viewtime"
    if not Path(backend_python).is_file():
        return f"The backend's Python does not exist: {backend_python}"
    return None


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


def result_folder(scene: bpy.types.Scene) -> Path:
    """Where the splats of the scene's job are, or will be. Raises NotReady."""
    return absolute_folder(scene.viewtime.output_folder, "the output folder") / "splats"
