# SPDX-License-Identifier: GPL-3.0-or-later
"""What an object remembers of the sequence it plays. It never acts on these values: who must
follow a change adds a function to OBJECT_LISTENERS."""

from __future__ import annotations

from collections.abc import Callable

import bpy
from bpy.props import BoolProperty, FloatProperty, IntProperty, StringProperty

from .display import DisplaySettings

# Called with the object whenever a person (or a driver's owner) edits ob.viewtime.
OBJECT_LISTENERS: list[Callable[[bpy.types.Object], None]] = []


def _object_changed(settings: ViewtimeObject, _context: bpy.types.Context) -> None:
    for listener in tuple(OBJECT_LISTENERS):
        listener(settings.id_data)


class ViewtimeObject(DisplaySettings, bpy.types.PropertyGroup):
    """object.viewtime: which SplatSequence the object plays, and how it maps to the timeline."""

    folder: StringProperty(
        name="Sequence",
        description="Folder of the splat sequence",
        subtype="DIR_PATH",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},
        update=_object_changed,
    )
    sequence_id: StringProperty(name="Sequence identity")
    offset: IntProperty(
        name="Offset",
        description="Frames by which the sequence is moved along the timeline",
        update=_object_changed,
    )
    speed: FloatProperty(
        name="Speed",
        description="Sequence frames per timeline frame",
        default=1.0,
        min=0.001,
        soft_max=10.0,
        update=_object_changed,
    )
    enabled: BoolProperty(
        name="Play",
        description="Follow the timeline",
        default=True,
        update=_object_changed,
    )


CLASSES = (ViewtimeObject,)
