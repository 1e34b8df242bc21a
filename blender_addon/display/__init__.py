# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws splats: in viewports by a handler or natively, in renders by quads or an engine of its own.
It never reads sequences and never changes a scene's render settings unasked."""

from __future__ import annotations

import bpy

from ..properties.display import DISPLAY_LISTENERS
from . import engine, modifier, native, ops, viewport
from .ops import advice, colour_advice
from .settings import holds_splats, mode_of
from .viewport import problem

CLASSES = (*ops.CLASSES, *engine.CLASSES)

__all__ = [
    "CLASSES",
    "advice",
    "apply",
    "colour_advice",
    "problem",
    "register",
    "sync",
    "unregister",
]


def apply(ob: bpy.types.Object) -> None:
    """Make a point cloud object with splat attributes draw as splats, in every engine."""
    if native.available():
        ob.viewtime.display_mode = "NATIVE"
        native.mark(ob.data)
    else:
        modifier.add_modifier(ob)


def sync(ob: bpy.types.Object) -> None:
    """Bring the object to what its display settings say, after a person has edited them."""
    if ob.library is not None or not holds_splats(ob):
        return
    if native.available():
        own = mode_of(ob) == "NATIVE"
        native.mark(ob.data, own)
        if not own:
            modifier.add_modifier(ob)
    modifier.sync(ob)
    if not bpy.app.background:
        viewport.tag_redraw()


@bpy.app.handlers.persistent
def _loaded(_path: str = "", _more: object = None) -> None:
    """Give trees that an older version of the add-on made to objects anew."""
    modifier.upgrade()


def register() -> None:
    DISPLAY_LISTENERS.append(sync)
    bpy.app.handlers.load_post.append(_loaded)
    engine.register()
    viewport.register()


def unregister() -> None:
    viewport.unregister()
    engine.unregister()
    if _loaded in bpy.app.handlers.load_post:
        bpy.app.handlers.load_post.remove(_loaded)
    if sync in DISPLAY_LISTENERS:
        DISPLAY_LISTENERS.remove(sync)
