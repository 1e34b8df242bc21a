# SPDX-License-Identifier: GPL-3.0-or-later
"""What Viewtime remembers in a .blend: scene.viewtime (the work) and object.viewtime (a sequence).
It never acts on these values: who must follow a change adds a function to OBJECT_LISTENERS."""

from __future__ import annotations

from collections.abc import Callable

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

# Called with the object whenever a person (or a driver's owner) edits ob.viewtime.
OBJECT_LISTENERS: list[Callable[[bpy.types.Object], None]] = []

ROUTES = (
    ("AUTO", "Automatic", "Captured geometry when the capture is a full grid with depth"),
    ("CAPTURED", "Captured", "Splats from rendered pixels, depth and cameras; no learned weights"),
    ("GENERATED", "Generated", "The generator fills the missing views and times"),
)
CAPTURE_KINDS = (
    ("REFERENCES", "Clip and freeze", "The active camera's clip and one frozen moment of the rig"),
    ("GRID", "Full grid", "Every camera of the rig at every time"),
)
# States of a job as the add-on shows them: those of the backend, and "" before the first job.
JOB_ACTIVE = ("submitting", "queued", "running", "cancelling")


def _is_camera(_self: object, ob: bpy.types.Object) -> bool:
    return ob.type == "CAMERA"


def _object_changed(settings: ViewtimeObject, _context: bpy.types.Context) -> None:
    for listener in tuple(OBJECT_LISTENERS):
        listener(settings.id_data)


class RigCamera(bpy.types.PropertyGroup):
    """One camera of the rig; its place in the collection is its view number."""

    camera: PointerProperty(name="Camera", type=bpy.types.Object, poll=_is_camera)


class ViewtimeScene(bpy.types.PropertyGroup):
    """scene.viewtime: the rig, what to capture, what to ask of the backend, and the last job."""

    rig: CollectionProperty(name="Rig", type=RigCamera)

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

    output_folder: StringProperty(
        name="Folder",
        description="Folder for the generated frames and splats; it must be empty or absent",
        subtype="DIR_PATH",
        default="//viewtime/run",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    route: EnumProperty(name="Route", items=ROUTES, default="AUTO")
    steps: IntProperty(
        name="Steps", description="Sampling steps of the generator", default=4, min=1, max=1000
    )
    seed: IntProperty(name="Seed", description="Seed of the generator's noise", default=0, min=0)
    prompt: StringProperty(name="Prompt", description="What the scene shows, in words")

    # Written by the add-on. They stay in the file, so that a reopened one finds its job again.
    job_id: StringProperty(name="Job")
    job_state: StringProperty(name="State")
    job_message: StringProperty(name="Message")
    job_progress: FloatProperty(name="Progress", min=0.0, max=1.0, subtype="FACTOR")
    job_eta: FloatProperty(name="Seconds left", description="Negative when unknown", default=-1.0)


class ViewtimeObject(bpy.types.PropertyGroup):
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


CLASSES = (RigCamera, ViewtimeScene, ViewtimeObject)


def register() -> None:
    bpy.types.Scene.viewtime = PointerProperty(type=ViewtimeScene)
    bpy.types.Object.viewtime = PointerProperty(type=ViewtimeObject)


def unregister() -> None:
    OBJECT_LISTENERS.clear()
    del bpy.types.Object.viewtime
    del bpy.types.Scene.viewtime
