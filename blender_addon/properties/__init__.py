# SPDX-License-Identifier: GPL-3.0-or-later
"""What Viewtime remembers in a .blend: scene.viewtime (the work) and object.viewtime (a sequence).
Each step of the work has a module of its own; here they become two property groups."""

from __future__ import annotations

import bpy
from bpy.props import PointerProperty

from . import reference, rig, sequence
from .export import ExportSettings
from .generate import JOB_ACTIVE, GenerateSettings
from .reference import ReferenceSettings
from .rig import RigSettings
from .sequence import OBJECT_LISTENERS, ViewtimeObject


class ViewtimeScene(
    RigSettings, ReferenceSettings, GenerateSettings, ExportSettings, bpy.types.PropertyGroup
):
    """scene.viewtime: the rig, what to capture, what to ask of the backend, its job, exports."""


CLASSES = (*rig.CLASSES, *reference.CLASSES, ViewtimeScene, *sequence.CLASSES)

__all__ = ["CLASSES", "JOB_ACTIVE", "OBJECT_LISTENERS", "register", "unregister"]


def register() -> None:
    bpy.types.Scene.viewtime = PointerProperty(type=ViewtimeScene)
    bpy.types.Object.viewtime = PointerProperty(
        type=ViewtimeObject, override={"LIBRARY_OVERRIDABLE"}
    )


def unregister() -> None:
    OBJECT_LISTENERS.clear()
    del bpy.types.Object.viewtime
    del bpy.types.Scene.viewtime
