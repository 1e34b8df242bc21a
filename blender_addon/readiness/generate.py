# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job still needs. It reads the scene and the disk and changes neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        return "Install the backend, or choose its Python in the preferences of Viewtime"
    if not Path(backend_python).is_file():
        return f"The backend's Python does not exist: {backend_python}"
    return None


def job_options(settings: bpy.types.PropertyGroup) -> dict[str, Any]:
    """What scene.viewtime asks of a job; what is left to the backend is left out."""
    options: dict[str, Any] = {"route": settings.route.lower(), "seed": settings.seed}
    if settings.steps:
        options["steps"] = settings.steps
    model = settings.generator or "bundled"
    options["generator"] = bpy.path.abspath(model) if model.startswith("//") else model
    if settings.work_size:
        options["size"] = max(settings.work_size, 16)
    if settings.guidance > 0:
        options["guidance"] = max(1.0, round(settings.guidance, 3))
    if settings.device and settings.device != "auto":
        options["device"] = settings.device
    return options
