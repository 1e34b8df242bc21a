# SPDX-License-Identifier: GPL-3.0-or-later
"""What object.viewtime says about drawing, as plain numbers for whoever draws.
It never draws and never changes the object."""

from __future__ import annotations

from dataclasses import dataclass

import bpy
import numpy as np
from mathutils import Matrix

from . import native

# Below one step of eight bits nothing can be seen; the backend's rasteriser ends there as well.
MINIMUM_OPACITY = 1.0 / 255.0
BASE = "radiance:base"
# While a scene is without a crop box: a matrix that puts every point into the cube.
_EVERYWHERE = np.zeros((4, 4), np.float32)


@dataclass(frozen=True)
class Look:
    """How one object's splats are drawn.

    mode: SPLATS, POINTS, QUADS or NATIVE, never one that this Blender lacks.
    crop: (4, 4) from the object's space into the cube from -1 to 1 that is kept.
    """

    mode: str
    view_dependent: bool
    min_opacity: float
    max_size: float  # infinite when there is no limit
    density: float  # share drawn while the animation plays
    point_size: int
    crop: np.ndarray


def holds_splats(ob: bpy.types.Object) -> bool:
    """Whether the object is a point cloud in the splat layout, played by Viewtime or not."""
    return ob.type == "POINTCLOUD" and BASE in ob.data.attributes


def mode_of(ob: bpy.types.Object) -> str:
    """The mode that this Blender can give the object."""
    mode = ob.viewtime.display_mode
    return "SPLATS" if mode in ("NATIVE", "") and not native.available() else mode


def look_of(
    ob: bpy.types.Object,
    matrix_world: Matrix | None = None,
    depsgraph: bpy.types.Depsgraph | None = None,
) -> Look:
    """The object's look.

    matrix_world: of an instance of it, where it is not its own. depsgraph: where an animated crop
    box is looked up; a render's, which does not move the objects of the file.
    """
    settings = ob.viewtime
    crop = _EVERYWHERE
    box = settings.display_crop
    if box is not None:
        if depsgraph is not None:
            box = box.evaluated_get(depsgraph)
        inverse = box.matrix_world.inverted_safe()
        crop = np.array(inverse @ (matrix_world or ob.matrix_world), np.float32)
    return Look(
        mode=mode_of(ob),
        view_dependent=settings.display_sh,
        min_opacity=max(settings.display_min_opacity, MINIMUM_OPACITY),
        max_size=settings.display_max_size or float("inf"),
        density=settings.display_density,
        point_size=settings.display_point_size,
        crop=crop,
    )
