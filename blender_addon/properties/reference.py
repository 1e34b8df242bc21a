# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scene remembers of its capture. Plain values; it never acts on them."""

from __future__ import annotations

from bpy.props import BoolProperty, EnumProperty, IntProperty, StringProperty

CAPTURE_KINDS = (
    ("REFERENCES", "Clip and freeze", "The active camera's clip and one frozen moment of the rig"),
    ("GRID", "Full grid", "Every camera of the rig at every time"),
)


class ReferenceSettings:
    """The part of scene.viewtime about what is captured."""

    capture_folder: StringProperty(
        name="Folder",
        description="Folder of the capture: frames, depth, capture.json and rig.json",
        subtype="DIR_PATH",
        default="//viewtime/capture",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    capture_kind: EnumProperty(name="Frames", items=CAPTURE_KINDS, default="REFERENCES")
    capture_depth: BoolProperty(
        name="Depth", description="Write the depth of every captured frame", default=True
    )
    capture_size: IntProperty(
        name="Size",
        description="Pixels along the frame's longer side",
        default=256,
        min=16,
        max=4096,
        subtype="PIXEL",
    )
    times: IntProperty(
        name="Times",
        description="Moments of the capture: 1, 5, 9, 13, ...",
        default=9,
        min=1,
        step=4,
    )
    # What a capture on its way is doing; empty at its end, and when a file is opened.
    capture_message: StringProperty(name="Capture message")
    freeze_time: IntProperty(
        name="Freeze at",
        description="The moment (counted from 0) at which every camera of the rig sees the scene",
        default=0,
        min=0,
    )
    prompt: StringProperty(name="Prompt", description="What the scene shows, in words")
