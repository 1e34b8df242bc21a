# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays splat sequences on the timeline: folder -> step -> attributes of one point cloud object.
It never draws (display does) and never writes sequences (the backend does)."""

from __future__ import annotations

from .. import properties
from . import handlers
from .folders import absolute_folder
from .handlers import refresh_all
from .ops import CLASSES
from .sequence_object import message, open_sequence, sequences, timing

__all__ = [
    "CLASSES",
    "absolute_folder",
    "message",
    "open_sequence",
    "refresh_all",
    "register",
    "sequences",
    "timing",
    "unregister",
]


def register() -> None:
    properties.OBJECT_LISTENERS.append(handlers.object_changed)
    handlers.register()


def unregister() -> None:
    handlers.unregister()
    if handlers.object_changed in properties.OBJECT_LISTENERS:
        properties.OBJECT_LISTENERS.remove(handlers.object_changed)
