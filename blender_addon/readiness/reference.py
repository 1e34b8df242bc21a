# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rig and the capture still need. It reads the scene and the disk and changes neither."""

from __future__ import annotations

import bpy

from viewtime_formats.errors import ViewtimeError

from ..capture.frames import most_times, nearest_times
from ..capture.outlook import Outlook, outlook
from ..capture.pixels import ShapeError
from ..capture.rig import rig_cameras, warnings_of
from .places import NotReady, absolute_folder


def missing_for_rig(scene: bpy.types.Scene) -> str | None:
    if scene.camera is None:
        return "Add a camera and make it the scene's active camera"
    return None


def rig_doubts(scene: bpy.types.Scene) -> list[str]:
    """What is doubtful about the scene's rig, or wrong with it; [] for a good one or none."""
    if not len(scene.viewtime.rig):
        return []
    try:
        return warnings_of(rig_cameras(scene))
    except ViewtimeError as problem:
        return [str(problem)]


def times_fit(scene: bpy.types.Scene) -> bool:
    """Whether the number of times is one that the video model makes and the range holds."""
    times = scene.viewtime.times
    return times == nearest_times(times, most_times(scene))


def capture_outlook(scene: bpy.types.Scene) -> Outlook | str:
    """What a capture will make, or the sentence that says what is in its way."""
    if reason := missing_for_rig(scene):
        return reason
    try:
        return outlook(scene)
    except ViewtimeError as problem:
        return str(problem)


def wrong_shape(scene: bpy.types.Scene) -> bool:
    """Whether a capture is kept back by pictures of another shape than the render's."""
    try:
        outlook(scene)
    except ShapeError:
        return True
    except ViewtimeError:
        pass
    return False


def reads_files(scene: bpy.types.Scene) -> bool:
    """Whether some of the frames are not rendered but taken from a clip or from files."""
    settings = scene.viewtime
    kind = settings.capture_kind
    clip = kind in {"REFERENCES", "CLIP"} and settings.clip_source != "RENDER"
    return clip or (kind in {"REFERENCES", "FREEZE"} and settings.freeze_source == "FILES")


def missing_for_capture(scene: bpy.types.Scene, found: Outlook | str | None = None) -> str | None:
    """found: what capture_outlook said, where it was asked already."""
    found = found or capture_outlook(scene)
    if isinstance(found, str):
        return found
    try:
        folder = absolute_folder(scene.viewtime.capture_folder, "the capture folder")
    except NotReady as reason:
        return str(reason)
    if captured(scene):
        return f"Captured in {folder}. To capture again, choose another folder"
    return None


def captured(scene: bpy.types.Scene) -> bool:
    """Whether the capture folder holds a capture already."""
    try:
        folder = absolute_folder(scene.viewtime.capture_folder, "the capture folder")
    except NotReady:
        return False
    return (folder / "capture.json").exists()
