# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes and fills point clouds in the attribute layout of Blender 5.3's native Gaussian splats.
It never knows where the numbers come from. Behind a large cloud it keeps one without users, its
spare, which Blender leaves out of saved files."""

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
SPARE = "viewtime_spare"
_HELD = "viewtime_step"
# Writing into a cloud that the scene shows makes Blender copy its old values first: about 25 ns a
# point. Writing into a spare and exchanging the two saves that, but makes Blender sort out anew
# what depends on what: up to 80 us an object.
_POINTS_PER_OBJECT = 3000


def fill(ob: bpy.types.Object, arrays: CloudArrays) -> bpy.types.PointCloud:
    """Make the object's cloud hold `arrays`; returns the cloud that the object now has."""
    shown = ob.data
    if not _worth_exchanging(shown, len(arrays)):
        written = write(shown, arrays)
        if ob.data != written:  # a linked object, whose data no remap touches
            name, ob.data = shown.name, written
            if shown.users == 0:
                bpy.data.pointclouds.remove(shown)
                written.name = name
        return written
    spare = write(_spare(shown, len(arrays)), arrays)
    adopt(spare, shown)
    ob.data = spare
    name = shown.name
    shown.name = f"{name} (spare)"
    spare.name = name
    if SPARE in spare:
        del spare[SPARE]
    shown[SPARE] = True
    return spare


def held_step(cloud: bpy.types.PointCloud) -> str:
    """What hold_step() said that the cloud holds; empty when nothing is known."""
    return cloud.get(_HELD, "")


def hold_step(cloud: bpy.types.PointCloud, which: str) -> None:
    """Note on the cloud which step it holds, so that the note follows undo and copies."""
    if which:
        cloud[_HELD] = which
    elif _HELD in cloud:
        del cloud[_HELD]


def drop_spares() -> None:
    """Remove all spares (a file is closed, the add-on goes, the objects are gone)."""
    for cloud in _spares():
        bpy.data.pointclouds.remove(cloud)


def _worth_exchanging(cloud: bpy.types.PointCloud, count: int) -> bool:
    if count < _POINTS_PER_OBJECT * len(bpy.data.objects) or cloud.users != 1:
        return False
    if _count(cloud) == 0:
        return False  # nothing to copy
    if cloud.library or cloud.override_library or cloud.use_fake_user or cloud.animation_data:
        return False
    return hasattr(cloud, "resize") or _count(cloud) == count


def _spares() -> list[bpy.types.PointCloud]:
    return [cloud for cloud in bpy.data.pointclouds if cloud.users == 0 and SPARE in cloud]


def _spare(shown: bpy.types.PointCloud, count: int) -> bpy.types.PointCloud:
    """A cloud that nothing shows: one of `count` points when there is one, never many of them."""
    spares = _spares()
    for cloud in spares:
        if _count(cloud) == count:
            return cloud
    for cloud in spares:
        if hasattr(cloud, "resize"):
            return cloud
        bpy.data.pointclouds.remove(cloud)
    if hasattr(shown, "resize"):
        return bpy.data.pointclouds.new(shown.name)
    return _bare(_new_of_size(count))


def adopt(fresh: bpy.types.PointCloud, old: bpy.types.PointCloud) -> None:
    """Give `fresh` what people and other parts set on `old`: materials, properties, type."""
    if list(fresh.materials) != list(old.materials):
        fresh.materials.clear()
        for material in old.materials:
            fresh.materials.append(material)
    for key in set(fresh.keys()) - set(old.keys()):
        del fresh[key]
    for key in old.keys():
        fresh[key] = old[key]
    if hasattr(old, "type") and fresh.type != old.type:
        fresh.type = old.type


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
    if attribute is not None and (attribute.data_type != kind or _shared(cloud, attribute)):
        cloud.attributes.remove(attribute)
        attribute = None
    if attribute is None:
        attribute = cloud.attributes.new(name, kind, "POINT")
    attribute.data.foreach_set(_FIELDS.get(kind, "color"), values.reshape(-1))


def _shared(cloud: bpy.types.PointCloud, attribute: bpy.types.Attribute) -> bool:
    """Whether the scene shows the attribute, so that a new one costs less than writing to it."""
    return cloud.users > 0 and not attribute.is_required


def _drop_higher(cloud: bpy.types.PointCloud, kept: int) -> None:
    """Remove coefficients that an earlier step of higher degree left."""
    while (attribute := cloud.attributes.get(f"{REST}{kept}")) is not None:
        cloud.attributes.remove(attribute)
        kept += 1


def _resized(cloud: bpy.types.PointCloud, count: int) -> bpy.types.PointCloud:
    if hasattr(cloud, "resize"):
        cloud.resize(count)
        return cloud
    fresh = bpy.data.pointclouds.new(cloud.name) if count == 0 else _bare(_new_of_size(count))
    adopt(fresh, cloud)
    name = cloud.name
    cloud.user_remap(fresh)
    # Removing a cloud that something still uses would remove its objects with it.
    if cloud.users == 0:
        bpy.data.pointclouds.remove(cloud)
        fresh.name = name
    return fresh


def _bare(cloud: bpy.types.PointCloud) -> bpy.types.PointCloud:
    radius = cloud.attributes.get("radius")
    if radius is not None:
        cloud.attributes.remove(radius)
    return cloud


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
