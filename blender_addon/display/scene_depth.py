# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws the scene's surfaces into the depth buffer, so that meshes hide splats behind them.
It never draws colours, and leaves no mesh behind in the file."""

from __future__ import annotations

from collections.abc import Iterator

import bpy
import gpu
import numpy as np

from . import shader
from .material import COLOR_ATTRIBUTE

# What to_mesh makes surfaces of.
_SOLID = {"MESH", "CURVE", "SURFACE", "FONT", "META"}


def surfaces(depsgraph: bpy.types.Depsgraph) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(4, 4) world matrix and (T, 3, 3) float32 triangles of each surface that renders.

    Holdouts count: they hide splats as they hide everything. Splats' own quads do not.
    """
    known: dict[int, np.ndarray | None] = {}
    for instance in depsgraph.object_instances:
        ob = instance.object
        if ob.type not in _SOLID or not _renders(instance):
            continue
        key = hash(ob) if ob.data is None else ob.data.as_pointer()
        if key not in known:
            known[key] = _triangles(ob)
        if known[key] is not None:
            yield np.array(instance.matrix_world, np.float32), known[key]


def _renders(instance: bpy.types.DepsgraphObjectInstance) -> bool:
    ob = instance.object
    owner = instance.parent if instance.is_instance and instance.parent else ob
    return instance.show_self and not ob.hide_render and owner.visible_camera


def _triangles(ob: bpy.types.Object) -> np.ndarray | None:
    mesh = ob.data if ob.type == "MESH" else ob.to_mesh()
    try:
        if mesh is None or not len(mesh.polygons) or COLOR_ATTRIBUTE in mesh.attributes:
            return None
        mesh.calc_loop_triangles()
        corners = np.empty(len(mesh.loop_triangles) * 3, np.int32)
        mesh.loop_triangles.foreach_get("vertices", corners)
        places = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", places)
        return places.reshape(-1, 3)[corners].reshape(-1, 3, 3)
    finally:
        if ob.type != "MESH":
            ob.to_mesh_clear()


def draw(depsgraph: bpy.types.Depsgraph, clip_from_world: np.ndarray) -> None:
    """Draw every surface into the bound framebuffer's depth."""
    program = shader.depth_shader()
    layout = gpu.types.GPUVertFormat()
    layout.attr_add(id="position", comp_type="F32", len=3, fetch_mode="FLOAT")
    gpu.state.depth_test_set("LESS_EQUAL")
    gpu.state.depth_mask_set(True)
    gpu.state.color_mask_set(False, False, False, False)
    try:
        for world, triangles in surfaces(depsgraph):
            places = gpu.types.GPUVertBuf(layout, triangles.size // 3)
            places.attr_fill("position", triangles.reshape(-1, 3))
            batch = gpu.types.GPUBatch(type="TRIS", buf=places)
            program.bind()
            program.uniform_float("clip_from_object", (clip_from_world @ world).T.reshape(-1))
            batch.draw(program)
    finally:
        gpu.state.color_mask_set(True, True, True, True)
        gpu.state.depth_mask_set(False)
        gpu.state.depth_test_set("NONE")
