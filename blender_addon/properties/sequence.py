# SPDX-License-Identifier: GPL-3.0-or-later
"""What an object remembers of the sequence it plays. It never acts on these values: who must
follow a change adds a function to OBJECT_LISTENERS."""

from __future__ import annotations

from collections.abc import Callable

import bpy
from bpy.props import BoolProperty, EnumProperty, FloatProperty, IntProperty, StringProperty

from .display import DisplaySettings

LOOPS = (
    ("HOLD", "Hold", "The first step before the sequence begins, the last after it has ended"),
    ("LOOP", "Loop", "From the first step again after the last, and so on in both directions"),
    ("PING_PONG", "Ping-pong", "Back and forth; the steps at the turns are shown once"),
)
SAMPLINGS = (
    ("HOLD", "Hold", "A step is shown from its frame until the next one begins"),
    ("NEAREST", "Nearest", "The step whose frame is closest"),
)
# Edits of an override of a linked object are kept in the file.
_OVERRIDABLE = {"LIBRARY_OVERRIDABLE"}

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
        override=_OVERRIDABLE,
        update=_object_changed,
    )
    sequence_id: StringProperty(
        name="Sequence identity",
        description="Tells the sequence from others wherever its folder is moved",
        options=set(),
        override=_OVERRIDABLE,
    )
    offset: IntProperty(
        name="Offset",
        description="Frames by which the sequence is moved along the timeline",
        override=_OVERRIDABLE,
        update=_object_changed,
    )
    # Not animatable: the steps in between would jump, since frames are multiplied by it.
    speed: FloatProperty(
        name="Speed",
        description="Sequence frames per timeline frame. To change the speed over time, use and "
        "keyframe the sequence time",
        default=1.0,
        min=0.001,
        soft_max=10.0,
        options=set(),
        override=_OVERRIDABLE,
        update=_object_changed,
    )
    loop: EnumProperty(
        name="Outside",
        description="What is shown before the first and after the last step",
        items=LOOPS,
        default="HOLD",
        options=set(),
        override=_OVERRIDABLE,
        update=_object_changed,
    )
    sampling: EnumProperty(
        name="Between steps",
        description="Which step is shown at frames between two steps",
        items=SAMPLINGS,
        default="HOLD",
        options=set(),
        override=_OVERRIDABLE,
        update=_object_changed,
    )
    use_time: BoolProperty(
        name="Use Sequence Time",
        description="Show the step that Sequence time says, in place of the timeline with its "
        "offset and speed",
        override=_OVERRIDABLE,
        update=_object_changed,
    )
    time: FloatProperty(
        name="Sequence time",
        description="Place in the sequence, in steps: 0 is the first. Keyframe or drive it to "
        "retime the sequence",
        override=_OVERRIDABLE,
        update=_object_changed,
    )
    enabled: BoolProperty(
        name="Play",
        description="Follow the timeline",
        default=True,
        override=_OVERRIDABLE,
        update=_object_changed,
    )


CLASSES = (ViewtimeObject,)
