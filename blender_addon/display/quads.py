# SPDX-License-Identifier: GPL-3.0-or-later
"""Splats as quads, for every engine: EWA splatting written as a geometry node tree.
It never changes the point cloud: one modifier turns it into quads that face the active camera.

With the Gaussian's axes e_i in camera space and its centre p, a point of the Gaussian is seen
where its image on the plane z = p.z through the centre is: f_i = e_i - d e_i.z with d = p / p.z.
(That is the Jacobian of the perspective projection at p, the affine approximation of EWA, in
scene units instead of pixels, so that neither the focal length nor the resolution enter.) The
covariance on that plane is sum f_i f_i^T; its eigenvectors span the quad, out to three sigma.
"""

from __future__ import annotations

import bpy

from .material import AXES_ATTRIBUTE, COLOR_ATTRIBUTE, splat_material
from .nodes import Tree, Value

GROUP = "Viewtime Splats"
MODIFIER = "Viewtime Splats"
# Raise when the tree below changes: older trees in a file are replaced.
VERSION = 2

SIGMAS = 3.0
SH_C0 = 0.28209479177387814
# Below one step of eight bits nothing can be seen.
_MINIMUM_OPACITY = 1.0 / 255.0
# EWA's affine approximation explodes far outside the frame; clamped as in INRIA's rasteriser.
_GUARD_BAND = 1.3
# Cycles meets surfaces at exactly equal distance only once: splats of a flat wall seen
# frontally are set apart along their own line of sight, which does not move them in the picture.
# A share of the depth: the wall of test_display reaches 14 dB at 0, 36 at 4e-6, 53 at 1e-4.
_DEPTH_JITTER = 1e-4
_CENTER, _AXIS_U, _AXIS_V = "splat_center", "splat_axis_u", "splat_axis_v"


def add_modifier(ob: bpy.types.Object) -> bpy.types.NodesModifier:
    """The modifier that draws the object's splats as quads; added at the end when missing."""
    modifier = ob.modifiers.get(MODIFIER)
    if modifier is None:
        modifier = ob.modifiers.new(MODIFIER, "NODES")
    modifier.node_group = quads_tree()
    return modifier


def quads_tree() -> bpy.types.NodeTree:
    """The node group of this version of the add-on; made when the file has none."""
    tree = bpy.data.node_groups.get(GROUP)
    if tree is not None and tree.get("viewtime_version") == VERSION:
        return tree
    fresh = bpy.data.node_groups.new(GROUP, "GeometryNodeTree")
    _build(fresh)
    fresh["viewtime_version"] = VERSION
    if tree is not None and "viewtime_version" in tree:
        tree.user_remap(fresh)
        bpy.data.node_groups.remove(tree)
        fresh.name = GROUP
    return fresh


def _build(tree: bpy.types.NodeTree) -> None:
    tree.is_modifier = True
    tree.interface.new_socket("Geometry", in_out="INPUT", socket_type="NodeSocketGeometry")
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    t = Tree(tree)
    points = t.node("NodeGroupInput").outputs["Geometry"]
    base = t.node(
        "GeometryNodeInputNamedAttribute", {"Name": "radiance:base"}, data_type="FLOAT_COLOR"
    ).outputs[0]
    split = t.node("FunctionNodeSeparateColor", {0: base})
    opacity = split.outputs["Alpha"]
    camera = _Camera(t)

    position = t.node("GeometryNodeInputPosition").outputs[0]
    center = camera.to_camera_point(position)
    direction, guarded = camera.directions(center)
    depth = t.separate(center)[2]
    axis_u, axis_v = _quad_axes(t, camera, guarded)
    random = t.node(
        "FunctionNodeRandomValue", {"Min": -_DEPTH_JITTER, "Max": _DEPTH_JITTER}, data_type="FLOAT"
    )
    jitter = t.math("MULTIPLY", depth, next(s for s in random.outputs if s.enabled))
    moved = t.vector("ADD", center, t.vector("SCALE", direction, jitter))

    points = t.node(
        "GeometryNodeDeleteGeometry",
        {
            "Geometry": points,
            "Selection": _hidden(t, camera, depth, opacity),
        },
        domain="POINT",
    ).outputs[0]
    points = t.store(points, _CENTER, "FLOAT_VECTOR", camera.from_camera_point(moved))
    points = t.store(points, _AXIS_U, "FLOAT_VECTOR", camera.from_camera_direction(axis_u))
    points = t.store(points, _AXIS_V, "FLOAT_VECTOR", camera.from_camera_direction(axis_v))
    points = t.store(points, COLOR_ATTRIBUTE, "FLOAT_COLOR", _scene_linear(t, split, opacity))
    # Eevee's blended surfaces are drawn in the order of the mesh: far to near.
    points = t.node(
        "GeometryNodeSortElements", {"Geometry": points, "Sort Weight": depth}, domain="POINT"
    ).outputs[0]
    instances = t.node(
        "GeometryNodeInstanceOnPoints",
        {
            "Points": _without(t, points, "scale", "rotation", "radiance:*"),
            "Instance": _unit_quad(t),
        },
    ).outputs[0]
    mesh = t.node("GeometryNodeRealizeInstances", {"Geometry": instances}).outputs[0]
    mesh = t.node("GeometryNodeSetPosition", {"Geometry": mesh, "Position": _corner(t)}).outputs[0]
    mesh = _without(t, mesh, _CENTER, _AXIS_U, _AXIS_V)
    mesh = t.node(
        "GeometryNodeSetMaterial",
        {"Geometry": mesh, "Material": splat_material()},
    ).outputs[0]
    t.node("NodeGroupOutput", {"Geometry": mesh})


class _Camera:
    """The active camera seen from the object's own space; its space is Blender's (-z forward)."""

    def __init__(self, t: Tree) -> None:
        self.t = t
        camera = t.node("GeometryNodeInputActiveCamera").outputs[0]
        self._from_camera = t.node(
            "GeometryNodeObjectInfo", {"Object": camera}, transform_space="RELATIVE"
        ).outputs["Transform"]
        self._to_camera = t.node("FunctionNodeInvertMatrix", {0: self._from_camera}).outputs[0]
        info = t.node("GeometryNodeCameraInfo", {"Camera": camera})
        self.clip_start = info.outputs["Clip Start"]
        self._perspective = t.math("SUBTRACT", 1.0, info.outputs["Is Orthographic"])
        projection = t.node("FunctionNodeSeparateMatrix", {0: info.outputs["Projection Matrix"]})
        self._limit_x = self._limit(projection, "Column 1 Row 1", "Column 3 Row 1")
        self._limit_y = self._limit(projection, "Column 2 Row 2", "Column 3 Row 2")

    def _limit(self, projection: bpy.types.Node, slope: str, shift: str) -> Value:
        """Largest |x / z| for which the projection is believed."""
        t = self.t
        reach = t.math("ADD", t.math("ABSOLUTE", projection.outputs[shift]), _GUARD_BAND)
        return t.math("DIVIDE", reach, projection.outputs[slope])

    def to_camera_point(self, point: Value) -> Value:
        return self.t.node(
            "FunctionNodeTransformPoint", {"Vector": point, "Transform": self._to_camera}
        ).outputs[0]

    def to_camera_direction(self, direction: Value) -> Value:
        return self.t.node(
            "FunctionNodeTransformDirection", {"Direction": direction, "Transform": self._to_camera}
        ).outputs[0]

    def from_camera_point(self, point: Value) -> Value:
        return self.t.node(
            "FunctionNodeTransformPoint", {"Vector": point, "Transform": self._from_camera}
        ).outputs[0]

    def from_camera_direction(self, direction: Value) -> Value:
        return self.t.node(
            "FunctionNodeTransformDirection",
            {"Direction": direction, "Transform": self._from_camera},
        ).outputs[0]

    def directions(self, center: Value) -> tuple[Value, Value]:
        """The line of sight through `center` with z = 1, as it is and within the guard band."""
        t = self.t
        x, y, z = t.separate(center)
        x = t.math("MULTIPLY", t.math("DIVIDE", x, z), self._perspective)
        y = t.math("MULTIPLY", t.math("DIVIDE", y, z), self._perspective)
        guarded = t.combine(self._clamp(x, self._limit_x), self._clamp(y, self._limit_y), 1.0)
        return t.combine(x, y, 1.0), guarded

    def _clamp(self, value: Value, limit: Value) -> Value:
        t = self.t
        return t.math("MAXIMUM", t.math("MINIMUM", value, limit), t.math("MULTIPLY", limit, -1.0))


def _hidden(t: Tree, camera: _Camera, depth: Value, opacity: Value) -> Value:
    """Nearer than the camera's clip start, behind it, or too faint to be seen."""
    return t.node(
        "FunctionNodeBooleanMath",
        {
            0: t.math("LESS_THAN", depth, t.math("MULTIPLY", camera.clip_start, -1.0)),
            1: t.math("GREATER_THAN", opacity, _MINIMUM_OPACITY),
        },
        operation="NAND",
    ).outputs[0]


def _quad_axes(t: Tree, camera: _Camera, direction: Value) -> tuple[Value, Value]:
    """Half axes of the quad in camera space, at SIGMAS standard deviations."""
    scale = t.separate(t.attribute("scale", "FLOAT_VECTOR"))
    rotation = t.attribute("rotation", "QUATERNION")
    seen = []
    for index in range(3):
        unit = [0.0, 0.0, 0.0]
        unit[index] = scale[index]
        axis = t.node(
            "FunctionNodeRotateVector", {"Vector": t.combine(*unit), "Rotation": rotation}
        ).outputs[0]
        axis = camera.to_camera_direction(axis)
        depth = t.separate(axis)[2]
        seen.append(t.separate(t.vector("SUBTRACT", axis, t.vector("SCALE", direction, depth))))
    row_x = t.combine(*(axis[0] for axis in seen))
    row_y = t.combine(*(axis[1] for axis in seen))
    xx = t.vector("DOT_PRODUCT", row_x, row_x)
    xy = t.vector("DOT_PRODUCT", row_x, row_y)
    yy = t.vector("DOT_PRODUCT", row_y, row_y)
    half = t.math("MULTIPLY", t.math("SUBTRACT", xx, yy), 0.5)
    spread = t.math(
        "SQRT", t.math("ADD", t.math("MULTIPLY", half, half), t.math("MULTIPLY", xy, xy))
    )
    major = t.math("SQRT", t.math("ADD", t.math("MULTIPLY", t.math("ADD", xx, yy), 0.5), spread))
    # The determinant as a cross product: no cancellation for thin splats.
    area = t.vector("LENGTH", t.vector("CROSS_PRODUCT", row_x, row_y))
    minor = t.math("DIVIDE", area, major)
    angle = t.math("MULTIPLY", t.math("ARCTAN2", xy, half), 0.5)
    cosine, sine = t.math("COSINE", angle), t.math("SINE", angle)
    along = t.combine(cosine, sine, 0.0)
    across = t.combine(t.math("MULTIPLY", sine, -1.0), cosine, 0.0)
    return (
        t.vector("SCALE", along, t.math("MULTIPLY", major, SIGMAS)),
        t.vector("SCALE", across, t.math("MULTIPLY", minor, SIGMAS)),
    )


def _scene_linear(t: Tree, split: bpy.types.Node, opacity: Value) -> Value:
    """Display sRGB of the splat, 0.5 + C0 * DC, as scene linear colour with opacity as alpha."""
    dc = t.combine(*(split.outputs[name] for name in ("Red", "Green", "Blue")))
    display = t.vector("MAXIMUM", t.vector("ADD", t.vector("SCALE", dc, SH_C0), 0.5), 0.0)
    low = t.vector("DIVIDE", display, 12.92)
    high = t.vector("POWER", t.vector("DIVIDE", t.vector("ADD", display, 0.055), 1.055), 2.4)
    above = t.vector("SIGN", t.vector("MAXIMUM", t.vector("SUBTRACT", display, 0.04045), 0.0))
    linear = t.vector("ADD", low, t.vector("MULTIPLY", above, t.vector("SUBTRACT", high, low)))
    red, green, blue = t.separate(linear)
    return t.node(
        "FunctionNodeCombineColor", {"Red": red, "Green": green, "Blue": blue, "Alpha": opacity}
    ).outputs[0]


def _unit_quad(t: Tree) -> Value:
    """A square from -1 to 1 that remembers where each corner is."""
    square = t.node(
        "GeometryNodeMeshGrid",
        {
            "Size X": 2.0,
            "Size Y": 2.0,
            "Vertices X": 2,
            "Vertices Y": 2,
        },
    ).outputs[0]
    place = t.node("GeometryNodeInputPosition").outputs[0]
    return t.store(square, AXES_ATTRIBUTE, "FLOAT_VECTOR", place)


def _corner(t: Tree) -> Value:
    u, v, _ = t.separate(t.attribute(AXES_ATTRIBUTE, "FLOAT_VECTOR"))
    offset = t.vector(
        "ADD",
        t.vector("SCALE", t.attribute(_AXIS_U, "FLOAT_VECTOR"), u),
        t.vector("SCALE", t.attribute(_AXIS_V, "FLOAT_VECTOR"), v),
    )
    return t.vector("ADD", t.attribute(_CENTER, "FLOAT_VECTOR"), offset)


def _without(t: Tree, geometry: Value, *names: str) -> Value:
    """Drop attributes: realised quads would carry each of them four times."""
    for name in names:
        node = t.node(
            "GeometryNodeRemoveAttribute",
            {"Geometry": geometry, "Name": name},
            pattern_mode="WILDCARD" if "*" in name else "EXACT",
        )
        geometry = node.outputs[0]
    return geometry
