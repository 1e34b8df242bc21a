# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scene remembers of its rig. Plain values; it never acts on them."""

from __future__ import annotations

import bpy
from bpy.props import CollectionProperty, IntProperty, PointerProperty


def _is_camera(_self: object, ob: bpy.types.Object) -> bool:
    return ob.type == "CAMERA"


class RigCamera(bpy.types.PropertyGroup):
    """One camera of the rig; its place in the collection is its view number."""

    camera: PointerProperty(
        name="Camera", description="The camera of this view", type=bpy.types.Object, poll=_is_camera
    )


class RigSettings:
    """The part of scene.viewtime about the rig."""

    rig: CollectionProperty(
        name="Rig", description="The cameras of the rig in view order", type=RigCamera
    )
    rig_index: IntProperty(
        name="View", description="The highlighted view of the rig", default=0, min=0
    )


CLASSES = (RigCamera,)
