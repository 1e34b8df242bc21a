# SPDX-License-Identifier: GPL-3.0-or-later
"""The material of a splat's quad: its own light, faded by its Gaussian.
It never reacts to lamps: a splat's colour already is what the camera sees."""

from __future__ import annotations

import bpy

from .nodes import Tree
from .settings import MINIMUM_OPACITY

MATERIAL = "Viewtime Splats"
VERSION = 2
# An attribute named "color" renders black in Cycles.
COLOR_ATTRIBUTE = "splat_color"  # scene linear rgb, opacity
AXES_ATTRIBUTE = "splat_uv"  # place on the quad, -1 to 1; at 1 alpha is MINIMUM_OPACITY


def splat_material() -> bpy.types.Material:
    """The material of this version of the add-on; made when the file has none."""
    material = bpy.data.materials.get(MATERIAL)
    if material is not None and material.get("viewtime_version") == VERSION:
        return material
    material = bpy.data.materials.new(MATERIAL)
    _build(material)
    material["viewtime_version"] = VERSION
    return material


def _build(material: bpy.types.Material) -> None:
    if not material.use_nodes:
        material.use_nodes = True
    material.node_tree.nodes.clear()
    material.surface_render_method = "BLENDED"
    material.use_transparent_shadow = True
    if hasattr(material, "cycles"):
        # Otherwise every quad becomes a lamp of the light tree.
        material.cycles.emission_sampling = "NONE"
    t = Tree(material.node_tree)
    color = t.node("ShaderNodeAttribute", attribute_name=COLOR_ATTRIBUTE)
    place = t.node("ShaderNodeAttribute", attribute_name=AXES_ATTRIBUTE).outputs["Vector"]
    # opacity * exp(-r^2 / 2), where r = |uv| sqrt(2 ln(opacity / MINIMUM_OPACITY)) sigma.
    opacity = color.outputs["Alpha"]
    square = t.vector("DOT_PRODUCT", place, place)
    steps = t.math("DIVIDE", opacity, MINIMUM_OPACITY)
    falloff = t.math("POWER", steps, t.math("MULTIPLY", square, -1.0))
    inside = t.math("LESS_THAN", square, 1.0)
    alpha = t.math("MULTIPLY", t.math("MULTIPLY", opacity, falloff), inside)
    # 3DGS ends there as well; a fully opaque quad would end rays that pass close by.
    alpha = t.math("MINIMUM", alpha, 0.999)
    clear = t.node("ShaderNodeBsdfTransparent").outputs[0]
    light = t.node("ShaderNodeEmission", {"Color": color.outputs["Color"]}).outputs[0]
    mixed = t.node("ShaderNodeMixShader", {0: alpha, 1: clear, 2: light}).outputs[0]
    t.node("ShaderNodeOutputMaterial", {"Surface": mixed})
