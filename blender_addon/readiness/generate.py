# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job still needs. It reads the scene and the disk and changes neither."""

from __future__ import annotations

from pathlib import Path

import bpy

from .places import NotReady, absolute_folder


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
