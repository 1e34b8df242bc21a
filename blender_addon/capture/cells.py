# SPDX-License-Identifier: GPL-3.0-or-later
"""One rendered cell: a camera at the current frame, by a render engine or by the 3D viewport.
It changes only what it is lent (lend.py) and writes only the files that it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bpy
import numpy as np

from viewtime_formats.errors import CaptureError
from viewtime_formats.rig import Camera, Rig

from ..conventions import camera_from_blender
from .exr import read_depth_pass
from .lend import picture_format, view_3d

SKY = 1e9  # planar z from which on a renderer means "nothing there"
Size = tuple[int, int]


def engine_name(scene: bpy.types.Scene, engine: str) -> str:
    """Blender's name of the engine that a capture asks for; SCENE and VIEWPORT are the scene's."""
    if engine == "EEVEE":
        return "BLENDER_EEVEE_NEXT" if bpy.app.version < (5, 0) else "BLENDER_EEVEE"
    if engine == "WORKBENCH":
        return "BLENDER_WORKBENCH"
    return engine if engine == "CYCLES" else scene.render.engine


def prepare(
    scene: bpy.types.Scene,
    cameras: Sequence[bpy.types.Object],
    layer: bpy.types.ViewLayer,
    size: Size,
    lend: Callable,
    *,
    depth: bool,
    engine: str = "SCENE",
    samples: int = 0,
) -> None:
    """One sharp, whole, uncomposited picture per cell: depth and colour meet pixel by pixel.

    engine: SCENE, EEVEE, CYCLES, WORKBENCH or VIEWPORT. samples: 0 leaves them as they are.
    """
    render = scene.render
    for name, value in (
        ("resolution_x", size[0]),
        ("resolution_y", size[1]),
        ("resolution_percentage", 100),
        ("use_border", False),
        ("use_crop_to_border", False),
        ("use_multiview", False),
        ("use_motion_blur", False),
        ("use_compositing", False),
        ("use_sequencer", False),
        ("use_single_layer", False),
        ("use_stamp", False),
        ("film_transparent", False),
        ("dither_intensity", 0.0),
    ):
        lend(render, name, value)
    try:
        if (name := engine_name(scene, engine)) != render.engine:
            lend(render, "engine", name)
    except TypeError:
        raise CaptureError(f"This Blender has no render engine {name}; choose another") from None
    if samples:
        if hasattr(scene, "cycles"):
            lend(scene.cycles, "samples", samples)
        lend(scene.eevee, "taa_render_samples", samples)
    for other in scene.view_layers:
        lend(other, "use", other == layer)
    if depth:
        lend(layer, "use_pass_z", True)
    for data in {camera.data for camera in cameras}:
        lend(data.dof, "use_dof", False)


def prepare_view(context: bpy.types.Context, lend: Callable) -> tuple[Any, Any, Any]:
    """Let the 3D view look through the scene's camera without overlays; where it is.

    Raises CaptureError where there is no window.
    """
    place = view_3d(context) if not bpy.app.background else None
    if place is None:
        raise CaptureError(
            "A viewport render needs a window with a 3D view; choose a render engine"
        )
    space = place[1].spaces.active
    region = space.region_3d
    for owner, name, value in (
        # In this order: the rotation goes back last, after the camera has let go of the view.
        (region, "view_rotation", region.view_rotation),
        (region, "view_location", region.view_location),
        (region, "view_distance", region.view_distance),
        (region, "view_perspective", "CAMERA"),
        (space, "use_local_camera", False),
        (space.overlay, "show_overlays", False),
        (space, "show_gizmo", False),
    ):
        lend(owner, name, value)
    return place


def render_cell(
    scene: bpy.types.Scene,
    camera: bpy.types.Object,
    image: Path,
    layers: Path | None = None,
    view: tuple[Any, Any, Any] | None = None,
) -> np.ndarray | None:
    """Render the current frame into `image`; (H, W) float32 depth when `layers` names a file.

    view: window, area and region of the 3D view that renders in place of the engine.
    """
    scene.camera = camera
    try:
        if view is None:
            # The operator's own argument `scene` would render the frame of the window's scene.
            with bpy.context.temp_override(scene=scene):
                answer = bpy.ops.render.render()
        else:
            window, area, region = view
            with bpy.context.temp_override(window=window, area=area, region=region):
                answer = bpy.ops.render.opengl(view_context=True)
        if "FINISHED" not in answer:
            raise CaptureError("The render was cancelled")
        result = bpy.data.images["Render Result"]
        picture_format(scene, "PNG")
        result.save_render(str(image), scene=scene)
        if layers is None:
            return None
        picture_format(scene, "OPEN_EXR_MULTILAYER")
        result.save_render(str(layers), scene=scene)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0].removeprefix("Error: ")
        raise CaptureError(f"Blender could not render: {reason}") from None
    depth = read_depth_pass(layers)
    layers.unlink()
    return depth


def sky_colour(picture: np.ndarray, depth: np.ndarray) -> np.ndarray | None:
    """(3,) display sRGB of the sky in a picture (H, W, 3); None where it shows none to speak of."""
    sky = ~(depth < SKY)
    return np.median(picture[sky], axis=0) if sky.mean() >= 0.002 else None


def still_cameras(
    scene: bpy.types.Scene,
    cameras: Sequence[bpy.types.Object],
    frames: Sequence[int],
    sizes: Sequence[Size],
    target: Size,
) -> Rig:
    """The rig at these frames, for pictures of `target` pixels. Raises CaptureError when a camera
    moves between them.

    sizes: per camera, the size of the picture that it took before that was brought to the target.
    """
    found: list[Camera] = []
    for frame in frames:
        scene.frame_set(frame)
        graph = bpy.context.evaluated_depsgraph_get() if scene == bpy.context.scene else None
        for view, ob in enumerate(cameras):
            seen = camera_from_blender(
                ob.evaluated_get(graph) if graph else ob, scene, *sizes[view]
            ).resized(*target)
            if frame == frames[0]:
                found.append(seen)
                continue
            first = found[view]
            moved = np.abs(seen.center - first.center).max()
            turned = np.abs(seen.rotation - first.rotation).max()
            zoomed = np.abs(seen.intrinsics - first.intrinsics).max()
            scale = 1.0 + np.abs(first.center).max()
            if moved > 1e-4 * scale or turned > 1e-4 or zoomed > 1e-3 * target[0]:
                raise CaptureError(
                    f"Camera '{ob.name}' moves between frames {frames[0]} and {frame}; "
                    "the cameras of a rig stand still"
                )
    return Rig(tuple(found))
