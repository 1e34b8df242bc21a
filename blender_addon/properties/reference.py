# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scene remembers of its capture. Of a chosen clip it looks up the size and length, once."""

from __future__ import annotations

from pathlib import Path

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

from viewtime_formats.errors import ViewtimeError

CAPTURE_KINDS = (
    ("REFERENCES", "Clip and freeze", "The fixed view's clip and one frozen moment of the rig"),
    ("CLIP", "Clip alone", "The fixed view over all times"),
    ("FREEZE", "Freeze alone", "All cameras of the rig at one moment"),
    ("GRID", "Full grid", "Every camera of the rig at every time"),
)
CLIP_SOURCES = (
    ("RENDER", "Render", "Render the active camera"),
    ("MOVIE", "Movie", "A movie file that was filmed from the active camera"),
    ("SEQUENCE", "Images", "Numbered image files, or all images of a folder"),
    ("STRIP", "Strip", "A strip of the video sequencer"),
)
FREEZE_SOURCES = (
    ("RENDER", "Render", "Render every camera of the rig"),
    ("FILES", "Image Files", "One image file for each camera, in view order"),
)
ENGINES = (
    ("SCENE", "Scene's Engine", "The render engine that the scene uses"),
    ("CYCLES", "Cycles", "Cycles, whatever the scene uses"),
    ("EEVEE", "EEVEE", "EEVEE, whatever the scene uses"),
    ("WORKBENCH", "Workbench", "Workbench: fast and plain"),
    ("VIEWPORT", "Viewport", "As the 3D view shows it, without overlays and without depth"),
)


def _clip_changed(settings: ReferenceSettings, _context: bpy.types.Context) -> None:
    """Remember what the chosen clip is, so that the panel need not open it at every redraw."""
    from ..capture.media import probe_clip

    width = height = frames = 0
    fps, problem = 0.0, ""
    if settings.clip_source in {"MOVIE", "SEQUENCE"} and settings.clip_path:
        try:
            path = Path(bpy.path.abspath(settings.clip_path))
            media = probe_clip(settings.clip_source, path)
            width, height, frames, fps = *media.size, media.frames, media.fps or 0.0
        except ViewtimeError as error:
            problem = str(error)
    settings.clip_width, settings.clip_height = width, height
    settings.clip_frames, settings.clip_fps = frames, fps
    settings.clip_problem = problem


def _own_range(settings: ReferenceSettings, _context: bpy.types.Context) -> None:
    """An own range begins as the scene's."""
    scene = settings.id_data
    if settings.use_own_range and not settings.is_property_set("range_start"):
        settings.range_start, settings.range_end = scene.frame_start, scene.frame_end


def _freeze_frame(settings: ReferenceSettings) -> int:
    from ..capture.frames import scene_plan, scene_range

    try:
        plan = scene_plan(settings.id_data)
    except ViewtimeError:
        return scene_range(settings.id_data)[0]
    return plan.start + min(settings.freeze_time, plan.times - 1) * plan.step


def _set_freeze_frame(settings: ReferenceSettings, frame: int) -> None:
    from ..capture.frames import scene_plan

    try:
        plan = scene_plan(settings.id_data)
    except ViewtimeError:
        return
    now = settings.freeze_time
    nearest = plan.nearest_time(frame)
    # One click on the field's arrow asks for a frame between two times: go on to the next time.
    if nearest == now and abs(frame - (plan.start + now * plan.step)) == 1:
        nearest = now + (1 if frame > plan.start + now * plan.step else -1)
    settings.freeze_time = min(max(nearest, 0), plan.times - 1)


class FreezeFile(bpy.types.PropertyGroup):
    """One picture of the frozen moment; its place in the collection is its view number."""

    path: StringProperty(
        name="File",
        description="The picture of this view",
        subtype="FILE_PATH",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    width: IntProperty(name="Width", description="Pixels across the picture")
    height: IntProperty(name="Height", description="Pixels up the picture")


class CaptureSpeed(bpy.types.PropertyGroup):
    """What the last capture took, for the next estimate. It holds for one machine."""

    machine: StringProperty(name="Machine", description="Mark of the machine that measured")
    engine: StringProperty(name="Engine")
    pixels: IntProperty(name="Pixels of a frame")
    rendered_seconds: FloatProperty(name="Seconds of a rendered frame")
    read_seconds: FloatProperty(name="Seconds of a frame that was read")
    image_bytes: FloatProperty(name="Bytes of a pixel's colour")
    depth_bytes: FloatProperty(name="Bytes of a pixel's depth")


class ReferenceSettings:
    """The part of scene.viewtime about what is captured."""

    capture_folder: StringProperty(
        name="Folder",
        description="Folder of the capture: frames, depth, capture.json and rig.json",
        subtype="DIR_PATH",
        default="//viewtime/capture",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    capture_kind: EnumProperty(
        name="Frames",
        description="Which frames of the grid of views and times are captured",
        items=CAPTURE_KINDS,
        default="REFERENCES",
    )
    capture_depth: BoolProperty(
        name="Depth", description="Write the depth of every rendered frame", default=True
    )
    capture_size: IntProperty(
        name="Size",
        description="Pixels along the frame's longer side",
        default=256,
        min=16,
        max=4096,
        subtype="PIXEL",
    )
    capture_engine: EnumProperty(
        name="Engine", description="What renders the frames", items=ENGINES, default="SCENE"
    )
    capture_samples: IntProperty(
        name="Samples",
        description="Render samples of a frame, for Cycles and EEVEE; 0 takes the scene's",
        default=0,
        min=0,
        max=65536,
    )
    capture_crop: BoolProperty(
        name="Crop to Render",
        description="Crop pictures of another shape than the render's to their middle. "
        "Otherwise they are refused, since the cameras would not fit them",
    )

    clip_source: EnumProperty(
        name="Clip",
        description="Where the fixed view's frames come from",
        items=CLIP_SOURCES,
        update=_clip_changed,
    )
    clip_path: StringProperty(
        name="File",
        description="The movie; or any picture of the image sequence, or its folder",
        subtype="FILE_PATH",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},
        update=_clip_changed,
    )
    clip_start: IntProperty(
        name="First Frame",
        description="The frame of the clip, counted from 1, that belongs to the first time",
        default=1,
        min=1,
    )
    clip_scene: PointerProperty(
        name="Scene",
        description="Whose sequencer holds the strip; empty is this scene",
        type=bpy.types.Scene,
    )
    clip_strip: StringProperty(
        name="Strip", description="Name of the strip; empty takes the active one"
    )
    # Written when a clip is chosen: what it is, and what is wrong with it.
    clip_width: IntProperty(name="Clip width", description="Pixels across the chosen clip")
    clip_height: IntProperty(name="Clip height", description="Pixels up the chosen clip")
    clip_frames: IntProperty(name="Clip frames", description="Frames of the chosen clip")
    clip_fps: FloatProperty(
        name="Clip rate", description="Frames a second of the chosen clip; 0 where it does not say"
    )
    clip_problem: StringProperty(
        name="Clip problem", description="Why the chosen clip cannot be read; empty when it can"
    )

    freeze_source: EnumProperty(
        name="Freeze",
        description="Where the frozen moment's frames come from",
        items=FREEZE_SOURCES,
    )
    freeze_files: CollectionProperty(
        name="Freeze-time pictures",
        description="One picture for each camera of the rig, in view order",
        type=FreezeFile,
    )
    freeze_time: IntProperty(
        name="Freeze at",
        description="The moment (counted from 0) at which every camera of the rig sees the scene",
        default=0,
        min=0,
    )
    freeze_frame: IntProperty(
        name="Freeze at Frame",
        description="The frame of the scene at which every camera of the rig sees it; "
        "it is one of the captured times, so others go to the nearest",
        get=_freeze_frame,
        set=_set_freeze_frame,
    )

    times: IntProperty(
        name="Times",
        description="Moments of the capture: 1, 5, 9, 13, ... (one, and then groups of four, "
        "as the video model packs them)",
        default=9,
        min=1,
        step=4,
    )
    use_own_range: BoolProperty(
        name="Own Range",
        description="Take the times from a range of your own instead of the scene's",
        update=_own_range,
    )
    range_start: IntProperty(name="Start", description="Frame of the first time", default=1)
    range_end: IntProperty(name="End", description="No time lies after this frame", default=250)
    range_step: IntProperty(
        name="Step",
        description="Frames from one time to the next; 0 spreads the times over the range",
        default=0,
        min=0,
    )
    prompt: StringProperty(name="Prompt", description="What the scene shows, in words")

    # What a capture on its way is doing; empty at its end, and when a file is opened.
    capture_message: StringProperty(
        name="Capture message", description="What the running capture does; empty without one"
    )
    capture_progress: FloatProperty(
        name="Progress",
        description="Share of the running capture that is done",
        min=0.0,
        max=1.0,
        subtype="FACTOR",
    )
    capture_speed: PointerProperty(
        name="Speed", description="What the last capture took", type=CaptureSpeed
    )


CLASSES = (FreezeFile, CaptureSpeed)
