# SPDX-License-Identifier: GPL-3.0-or-later
"""The modifier that turns an object's splats into quads, kept equal to object.viewtime.
It never builds the tree (quads does) and touches no other modifier."""

from __future__ import annotations

import bpy

from .quads import VERSION, quads_tree
from .settings import MINIMUM_OPACITY, mode_of

MODIFIER = "Viewtime Splats"


def add_modifier(ob: bpy.types.Object) -> bpy.types.NodesModifier:
    """The modifier that draws the object's splats as quads; added at the end when missing."""
    modifier = ob.modifiers.get(MODIFIER)
    if modifier is None:
        modifier = ob.modifiers.new(MODIFIER, "NODES")
    modifier.node_group = quads_tree()
    sync(ob)
    return modifier


def sync(ob: bpy.types.Object) -> None:
    """Bring the modifier, where the object has it, to what ob.viewtime says about drawing.

    In the viewport the quads appear in the mode Quads alone; in renders always.
    """
    modifier = ob.modifiers.get(MODIFIER)
    if modifier is None or modifier.node_group is None or ob.library is not None:
        return
    settings = ob.viewtime
    quads = mode_of(ob) == "QUADS"
    # Off, Blender draws the cloud's own points; on, the tree leaves nothing for it to draw.
    _put(modifier, "show_viewport", quads or not settings.display_cloud)
    values = {
        "In Viewport": quads,
        "View-dependent Colour": settings.display_sh,
        "Display Values": settings.display_blend == "DISPLAY",
        "Opacity From": max(settings.display_min_opacity, MINIMUM_OPACITY),
        "Size Up To": settings.display_max_size,
        "Crop Box": settings.display_crop,
        "Use Crop Box": settings.display_crop is not None,
    }
    changed = False
    for item in modifier.node_group.interface.items_tree:
        if item.item_type == "SOCKET" and item.in_out == "INPUT" and item.name in values:
            changed |= _set_input(modifier, item.identifier, values[item.name])
    if changed:
        # Values of a modifier are plain data before 5.2: nobody else says that they changed.
        ob.update_tag()


def _put(owner: object, name: str, value: object) -> None:
    if getattr(owner, name) != value:
        setattr(owner, name, value)


def _set_input(modifier: bpy.types.NodesModifier, identifier: str, value: object) -> bool:
    """Set one input of the modifier; whether it differed."""
    if hasattr(modifier, "properties"):  # 5.2
        held = getattr(modifier.properties.inputs, identifier)
        same = held.value == value
        if not same:
            held.value = value
        return not same
    same = identifier in modifier and modifier[identifier] == value
    if not same:
        modifier[identifier] = value
    return not same


def upgrade() -> None:
    """Renew the tree of every local object that has an older version's."""
    for ob in bpy.data.objects:
        held = ob.modifiers.get(MODIFIER) if ob.type == "POINTCLOUD" else None
        if held is None or held.type != "NODES" or held.node_group is None or ob.library:
            continue
        version = held.node_group.get("viewtime_version")
        if version is not None and version != VERSION:
            add_modifier(ob)
