# SPDX-License-Identifier: GPL-3.0-or-later
"""Splat sequences as files for other programs.
It never changes the scene: its frame is put back after an export."""

from __future__ import annotations

from .ops import CLASSES, chosen_frames
from .ply_sequence import export_ply, sequence_object

__all__ = ["CLASSES", "chosen_frames", "export_ply", "sequence_object"]
