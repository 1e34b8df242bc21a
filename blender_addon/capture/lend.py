# SPDX-License-Identifier: GPL-3.0-or-later
"""The scene and the 3D view, lent: what a capture or a preview changes, and how it is put back.
It decides nothing about pictures; whatever it changes, it remembers first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bpy

# These depend on one another: remembered before, and put back in this order.
IMAGE_SETTINGS = (
    "media_type",
    "file_format",
    "color_mode",
    "color_depth",
    "exr_codec",
    "compression",
    "color_management",
)
REGION_3D = ("view_perspective", "view_location", "view_rotation", "view_distance")
SPACE_3D = ("use_local_camera", "camera")


@contextmanager
def borrowed(scene: bpy.types.Scene) -> Iterator[Callable]:
    """Lend the scene's settings: yields set(owner, name, value); all are put back on leaving.

    The frame, the camera and the cameras bound to timeline markers are put back as well.
    """
    taken: list[tuple[Any, str, Any]] = []

    def lend(owner: Any, name: str, value: Any) -> None:
        # Versions differ in what they have: a setting that is not there needs no change.
        if hasattr(owner, name):
            taken.append((owner, name, plain(getattr(owner, name))))
            setattr(owner, name, value)

    frame, subframe = scene.frame_current, scene.frame_subframe
    images = scene.render.image_settings
    image_state = [
        (name, getattr(images, name)) for name in IMAGE_SETTINGS if hasattr(images, name)
    ]
    try:
        lend(scene, "camera", scene.camera)
        for marker in scene.timeline_markers:
            if marker.camera is not None:  # else the marker would change the camera back
                lend(marker, "camera", None)
        yield lend
    finally:
        for owner, name, value in reversed(taken):
            setattr(owner, name, value)
        for name, value in image_state:
            if getattr(images, name) != value:
                setattr(images, name, value)
        scene.frame_set(frame, subframe=subframe)


def plain(value: Any) -> Any:
    """A value that no longer follows its owner: vectors and rotations are copied."""
    return value.copy() if hasattr(value, "freeze") else value


def picture_format(scene: bpy.types.Scene, file_format: str) -> None:
    """PNG as displayed, or the multilayer EXR that exr.py reads."""
    settings = scene.render.image_settings
    png = file_format == "PNG"
    if hasattr(settings, "media_type"):  # Blender 5
        settings.media_type = "IMAGE" if png else "MULTI_LAYER_IMAGE"
    settings.file_format = file_format
    settings.color_mode = "RGB" if png else "RGBA"
    settings.color_depth = "8" if png else "32"
    settings.color_management = "FOLLOW_SCENE"
    if png:
        settings.compression = 15
    else:
        settings.exr_codec = "NONE"


# ---- the 3D view ----


def view_state(space: bpy.types.SpaceView3D) -> dict[str, Any]:
    """How a 3D view looks at the scene, for put_view_back."""
    region = space.region_3d
    state = {f"region.{name}": plain(getattr(region, name)) for name in REGION_3D}
    return state | {f"space.{name}": getattr(space, name) for name in SPACE_3D}


def put_view_back(space: bpy.types.SpaceView3D, state: dict[str, Any]) -> None:
    """The view as view_state found it."""
    for key, value in state.items():
        kind, _, name = key.partition(".")
        setattr(space if kind == "space" else space.region_3d, name, value)


def view_3d(context: bpy.types.Context) -> tuple[Any, Any, Any] | None:
    """(window, area, region) of the 3D view that a person works in; None where there is none."""
    windows = [context.window] if context.window else []
    windows += [w for w in context.window_manager.windows if w not in windows]
    for window in windows:
        areas = [area for area in window.screen.areas if area.type == "VIEW_3D"]
        if context.area in areas:
            areas = [context.area]
        if areas:
            area = max(areas, key=lambda area: area.width * area.height)
            region = next(r for r in area.regions if r.type == "WINDOW")
            return window, area, region
    return None
