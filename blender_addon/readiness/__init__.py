# SPDX-License-Identifier: GPL-3.0-or-later
"""What is still missing before a step of the work can be taken, as one sentence or None.
It reads the scene and the disk, changes neither, and is cheap enough for every redraw."""

from .generate import missing_for_generate
from .places import NotReady, absolute_folder, result_folder
from .reference import (
    capture_outlook,
    captured,
    missing_for_capture,
    missing_for_rig,
    reads_files,
    rig_doubts,
    times_fit,
    wrong_shape,
)
from .result import missing_for_export, missing_for_result

__all__ = [
    "NotReady",
    "absolute_folder",
    "capture_outlook",
    "captured",
    "missing_for_capture",
    "missing_for_export",
    "missing_for_generate",
    "missing_for_result",
    "missing_for_rig",
    "reads_files",
    "result_folder",
    "rig_doubts",
    "times_fit",
    "wrong_shape",
]
