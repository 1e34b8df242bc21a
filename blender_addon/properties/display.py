# SPDX-License-Identifier: GPL-3.0-or-later
"""How an object's splats are drawn. Plain values; it never acts on them: who must follow a change
adds a function to DISPLAY_LISTENERS."""

from __future__ import annotations

from collections.abc import Callable

import bpy
from bpy.props import BoolProperty, EnumProperty, FloatProperty, IntProperty, PointerProperty

# Called with the object whenever a person edits one of the values below.
DISPLAY_LISTENERS: list[Callable[[bpy.types.Object], None]] = []

MODES = (
    (
        "SPLATS",
        "Splats",
        "Soft Gaussians, sorted for each view, drawn by Viewtime. Renders use quads",
    ),
    ("POINTS", "Points", "Coloured dots: fast, and shows where the Gaussians are"),
    (
        "QUADS",
        "Quads",
        "The geometry that Cycles and EEVEE render, in the viewport too: slow, faces the camera "
        "of the scene",
    ),
    (
        "NATIVE",
        "Native",
        "Blender's own Gaussian splats, in the viewport and in renders (Blender 5.3 and later; "
        "before, the same as Splats)",
    ),
)
BLENDS = (
    (
        "SCENE",
        "Scene",
        "Quads are blended in scene linear light, as everything else in the render: right for "
        "splats among meshes and for every view transform",
    ),
    (
        "DISPLAY",
        "Display",
        "Quads carry display values, blended as splats were trained. Only with the view transform "
        "Raw, or with a Convert Colorspace node from sRGB in the compositor",
    ),
)


def _changed(settings: bpy.types.PropertyGroup, _context: bpy.types.Context) -> None:
    for listener in tuple(DISPLAY_LISTENERS):
        listener(settings.id_data)


class DisplaySettings:
    """The part of object.viewtime about drawing. Not animatable: an edit sets the modifier."""

    display_mode: EnumProperty(
        name="Draw as",
        description="How the viewport draws the splats; renders always show all of them",
        items=MODES,
        default="SPLATS",
        options=set(),
        update=_changed,
    )
    display_density: FloatProperty(
        name="While playing",
        description="Share of the splats that the viewport draws while the animation plays: the "
        "same random ones at every frame, made larger to cover the same area",
        default=1.0,
        min=0.01,
        max=1.0,
        subtype="FACTOR",
        options=set(),
        update=_changed,
    )
    display_sh: BoolProperty(
        name="View-dependent",
        description="Use spherical harmonics beyond the first, where the sequence has them: "
        "colours change with the direction of view",
        default=True,
        options=set(),
        update=_changed,
    )
    display_crop: PointerProperty(
        name="Crop box",
        description="Only splats whose centre lies in this object's own cube from -1 to 1 are "
        "drawn: an empty or a default cube, which can be moved, turned, scaled and animated",
        type=bpy.types.Object,
        update=_changed,
    )
    display_min_opacity: FloatProperty(
        name="Opacity from",
        description="Splats that are fainter than this are not drawn",
        default=0.0,
        min=0.0,
        max=1.0,
        subtype="FACTOR",
        options=set(),
        update=_changed,
    )
    display_max_size: FloatProperty(
        name="Size up to",
        description="Splats whose largest standard deviation is above this are not drawn, in units "
        "of the sequence; 0 draws every size",
        default=0.0,
        min=0.0,
        soft_max=1.0,
        precision=3,
        step=1,
        options=set(),
        update=_changed,
    )
    display_point_size: IntProperty(
        name="Point size",
        description="Diameter of the dots in the mode Points",
        default=3,
        min=1,
        max=64,
        subtype="PIXEL",
        options=set(),
        update=_changed,
    )
    display_cloud: BoolProperty(
        name="Blender's own points",
        description="Keep the grey points of the point cloud in the viewport as well: they can be "
        "clicked to select the object",
        default=False,
        options=set(),
        update=_changed,
    )
    display_blend: EnumProperty(
        name="Blend in renders",
        description="The light in which the quads of Cycles and EEVEE are blended",
        items=BLENDS,
        default="SCENE",
        options=set(),
        update=_changed,
    )
