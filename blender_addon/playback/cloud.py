# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes and fills point clouds in the attribute layout of Blender 5.3's native Gaussian splats.
It never knows where the numbers come from, and never leaves a datablock without users behind."""

from __future__ import annotations

import bpy
import numpy as np

from .reader import CloudArrays

BASE = "radiance:base"
REST = "radiance:sh_"
# FLOAT4 attributes came with 5.2; before, a colour carries the same four floats.
BASE_TYPE = "FLOAT4" if bpy.app.version >= (5, 2, 0) else "FLOAT_COLOR"
_FIELDS = {"FLOAT_VECTOR": "vector", "QUATERNION": "value", "FLOAT4": "vector"}
_WORKSHOP = ".viewtime cloud of size"


def write(cloud: bpy.types.PointCloud, arrays: CloudArrays) -> bpy.types.PointCloud:
    """Make `cloud` hold `arrays`; returns the cloud that now has its name and its users.

    Before Blender 5.2 a point cloud cannot change its size: a new one takes over the old one's
    name, materials and users, and the old one is removed.
    """
    if _count(cloud) != len(arrays):
        cloud = _resized(cloud, len(arrays))
    if len(arrays) == 0:
        return cloud
    _set(cloud, "position", "FLOAT_VECTOR", arrays.position)
    _set(cloud, "scale", "FLOAT_VECTOR", arrays.scale)
    _set(cloud, "rotation", "QUATERNION", arrays.rotation)
    _set(cloud, BASE, BASE_TYPE, arrays.base)
    for index, coefficient in enumerate(arrays.rest):
        _set(cloud, f"{REST}{index}", "FLOAT_VECTOR", coefficient)
    _drop_higher(cloud, len(arrays.rest))
    cloud.update_tag()
    return cloud


def _count(cloud: bpy.types.PointCloud) -> int:
    return cloud.attributes.domain_size("POINT")


def _set(cloud: bpy.types.PointCloud, name: str, kind: str, values: np.ndarray) -> None:
    attribute = cloud.attributes.get(name)
    if attribute is not None and attribute.data_type != kind:
        cloud.attributes.remove(attribute)
        attribute = None
    if attribute is None:
        attribute = cloud.attributes.new(name, kind, "POINT")
    attribute.data.foreach_set(_FIELDS.get(kind, "color"), values.reshape(-1))


def _drop_higher(cloud: bpy.types.PointCloud, kept: int) -> None:
    """Remove coefficients that an earlier step of higher degree left."""
    while (attribute := cloud.attributes.get(f"{REST}{kept}")) is not None:
        cloud.attributes.remove(attribute)
        kept += 1


def _resized(cloud: bpy.types.PointCloud, count: int) -> bpy.types.PointCloud:
    if hasattr(cloud, "resize"):
        cloud.resize(count)
        return cloud
    fresh = bpy.data.pointclouds.new(cloud.name) if count == 0 else _new_of_size(count)
    radius = fresh.attributes.get("radius")
    if radius is not None:
        fresh.attributes.remove(radius)
    for material in cloud.materials:
        fresh.materials.append(material)
    for key in cloud.keys():
        fresh[key] = cloud[key]
    name = cloud.name
    cloud.user_remap(fresh)
    # Removing a cloud that something still uses would remove its objects with it.
    if cloud.users == 0:
        bpy.data.pointclouds.remove(cloud)
        fresh.name = name
    return fresh


def _new_of_size(count: int) -> bpy.types.PointCloud:
    """A point cloud of `count` points, made by a node tree in a scene of its own.

    object.convert does the same, but needs the user's selection and rebuilds the user's
    dependency graph, in the middle of a render.
    """
    tree = bpy.data.node_groups.new(_WORKSHOP, "GeometryNodeTree")
    scene = bpy.data.scenes.new(_WORKSHOP)
    seed = bpy.data.pointclouds.new(_WORKSHOP)
    ob = bpy.data.objects.new(_WORKSHOP, seed)
    try:
        tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
        points = tree.nodes.new("GeometryNodePoints")
        points.inputs["Count"].default_value = count
        output = tree.nodes.new("NodeGroupOutput")
        tree.links.new(points.outputs[0], output.inputs[0])
        ob.modifiers.new("size", "NODES").node_group = tree
        scene.collection.objects.link(ob)
        layer = scene.view_layers[0]
        layer.update()
        # Python must hold the geometry set: its point cloud dies with it.
        geometry = ob.evaluated_get(layer.depsgraph).evaluated_geometry()
        return geometry.pointcloud.copy()
    finally:
        bpy.data.objects.remove(ob)
        bpy.data.pointclouds.remove(seed)
        bpy.data.scenes.remove(scene)
        bpy.data.node_groups.remove(tree)
