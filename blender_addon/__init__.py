# SPDX-License-Identifier: GPL-3.0-or-later
"""Registers the parts of the Viewtime extension, in order, and unregisters them in reverse.
It never does any work of its own: each part says what it adds by CLASSES and register()."""

import bpy

from . import (
    backend_ops,
    capture,
    cli,
    display,
    export,
    generate,
    job_ops,
    joblist,
    panels,
    playback,
    preferences,
    properties,
    session,
)

# A part exposes CLASSES (registered first, in order) and, where it has handlers, timers or
# properties to attach, register() (called after its classes) and unregister().
PARTS = (
    properties,
    preferences,
    capture,
    joblist,
    session,
    backend_ops,
    generate,
    job_ops,
    playback,
    display,
    export,
    cli,
    panels,
)


def register() -> None:
    for part in PARTS:
        for cls in getattr(part, "CLASSES", ()):
            bpy.utils.register_class(cls)
        if hasattr(part, "register"):
            part.register()


def unregister() -> None:
    for part in reversed(PARTS):
        if hasattr(part, "unregister"):
            part.unregister()
        for cls in reversed(getattr(part, "CLASSES", ())):
            bpy.utils.unregister_class(cls)
