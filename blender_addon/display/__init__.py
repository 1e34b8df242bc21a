# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws splats: natively where Blender can, else as quads made by geometry nodes.
It never reads sequences and never changes a scene's render settings unasked."""

from __future__ import annotations

import bpy

from . import engine, native, ops, quads
from .ops import advice

CLASSES = (*ops.CLASSES, *engine.CLASSES)

__all__ = ["CLASSES", "advice", "apply"]


def apply(ob: bpy.types.Object) -> None:
    """Make a point cloud object with splat attributes draw as splats, in every engine."""
    if native.available():
        native.mark(ob.data)
    else:
        quads.add_modifier(ob)
