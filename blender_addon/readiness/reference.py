# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rig and the capture still need. It reads the scene and the disk and changes neither."""

from __future__ import annotations

import bpy

from viewtime_formats.errors import ViewtimeError

from ..capture.outlook import Outlook, outlook
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


def capture_outlook(scene: bpy.types.Scene) -> Outlook | str:
    """What a capture will make, or the sentence that says what is in its way."""
    if reason := missing_for_rig(scene):
        return reason
    try:
        return outlook(scene)
    except ViewtimeError as problem:
        return str(problem)


def missing_for_capture(scene: bpy.types.Scene) -> str | None:
    found = capture_outlook(scene)
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
