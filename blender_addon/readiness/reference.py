# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rig and the capture still need. It reads the scene and the disk and changes neither."""

from __future__ import annotations

import bpy

from viewtime_formats.errors import ViewtimeError

from ..capture.render import capture_frames, capture_places
from ..capture.rig import rig_cameras
from .places import NotReady, absolute_folder


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
