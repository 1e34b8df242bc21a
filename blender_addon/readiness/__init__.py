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
    rig_doubts,
)
from .result import (
    is_lost,
    missing_for_export,
    missing_for_native,
    missing_for_result,
    sequence_in_words,
)

__all__ = [
    "NotReady",
    "absolute_folder",
    "capture_outlook",
    "captured",
    "is_lost",
    "missing_for_capture",
    "missing_for_export",
    "missing_for_generate",
    "missing_for_native",
    "missing_for_result",
    "missing_for_rig",
    "result_folder",
    "rig_doubts",
    "sequence_in_words",
]
