# SPDX-License-Identifier: GPL-3.0-or-later
"""Splats as quads, for every engine: EWA splatting written as a geometry node tree.
It never changes the point cloud: one modifier turns it into quads that face the active camera.

With the Gaussian's axes e_i in camera space and its centre p, a point of the Gaussian is seen
where its image on the plane z = p.z through the centre is: f_i = e_i - d e_i.z with d = p / p.z.
(That is the Jacobian of the perspective projection at p, the affine approximation of EWA, in
scene units instead of pixels, so that neither the focal length nor the resolution enter.) The
covariance on that plane is sum f_i f_i^T; its eigenvectors span the quad, out to where its alpha
falls below 1/255.

Colour: spherical harmonics are evaluated in the tree for the active camera, at every evaluation,
so that it holds for animated cameras and in every engine.
"""

from __future__ import annotations

import bpy

from .harmonics import FACTORS, SH_C0, polynomials
from .material import AXES_ATTRIBUTE, COLOR_ATTRIBUTE, splat_material
from .nodes import Number, Tree, Value
from .settings import BASE, MINIMUM_OPACITY

GROUP = "Viewtime Splats"
# Raise when the tree below changes: older trees in a file are replaced.
VERSION = 3

# EWA's affine approximation explodes far outside the frame; clamped as in INRIA's rasteriser.
_GUARD_BAND = 1.3
# Cycles meets surfaces at exactly equal distance only once: splats of a flat wall seen
# frontally are set apart along their own line of sight, which does not move them in the picture.
# A share of the depth: the wall of test_display reaches 14 dB at 0, 36 at 4e-6, 53 at 1e-4.
_DEPTH_JITTER = 1e-4
_CENTER, _AXIS_U, _AXIS_V = "splat_center", "splat_axis_u", "splat_axis_v"

# Inputs of the tree: name, type, default.
_INPUTS = (
    ("In Viewport", "NodeSocketBool", True),
    ("View-dependent Colour", "NodeSocketBool", True),
    ("Display Values", "NodeSocketBool", False),
    ("Opacity From", "NodeSocketFloat", MINIMUM_OPACITY),
    ("Size Up To", "NodeSocketFloat", 0.0),
    ("Crop Box", "NodeSocketObject", None),
    ("Use Crop Box", "NodeSocketBool", False),
)


def quads_tree() -> bpy.types.NodeTree:
    """The node group of this version of the add-on; made when the file has none."""
    tree = bpy.data.node_groups.get(GROUP)
    if tree is not None and tree.get("viewtime_version") == VERSION:
        return tree
    fresh = bpy.data.node_groups.new(GROUP, "GeometryNodeTree")
    _build(fresh)
    fresh["viewtime_version"] = VERSION
    if tree is not None and tree.library is None and "viewtime_version" in tree:
        tree.user_remap(fresh)
        bpy.data.node_groups.remove(tree)
        fresh.name = GROUP
    return fresh


def _build(tree: bpy.types.NodeTree) -> None:
    tree.is_modifier = True
    tree.interface.new_socket("Geometry", in_out="INPUT", socket_type="NodeSocketGeometry")
    for name, kind, default in _INPUTS:
        socket = tree.interface.new_socket(name, in_out="INPUT", socket_type=kind)
        if default is not None:
            socket.default_value = default
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    t = Tree(tree)
    inputs = t.node("NodeGroupInput").outputs
    points = inputs["Geometry"]
    base = t.node(
        "GeometryNodeInputNamedAttribute", {"Name": BASE}, data_type="FLOAT_COLOR"
    ).outputs[0]
    split = t.node("FunctionNodeSeparateColor", {0: base})
    opacity = split.outputs["Alpha"]
    camera = _Camera(t)

    position = t.node("GeometryNodeInputPosition").outputs[0]
    center = camera.to_camera_point(position)
    direction, guarded = camera.directions(center)
    depth = t.separate(center)[2]
    axis_u, axis_v = _quad_axes(t, camera, guarded, _reach(t, opacity))
    random = t.node(
        "FunctionNodeRandomValue", {"Min": -_DEPTH_JITTER, "Max": _DEPTH_JITTER}, data_type="FLOAT"
    )
    jitter = t.math("MULTIPLY", depth, next(s for s in random.outputs if s.enabled))
    moved = t.vector("ADD", center, t.vector("SCALE", direction, jitter))

    points = t.node(
        "GeometryNodeDeleteGeometry",
        {
            "Geometry": points,
            "Selection": _hidden(t, inputs, camera, position, depth, opacity),
        },
        domain="POINT",
    ).outputs[0]
    points = _with_colour(t, inputs, points, split, camera.sight(position))
    points = t.store(points, _CENTER, "FLOAT_VECTOR", camera.from_camera_point(moved))
    points = t.store(points, _AXIS_U, "FLOAT_VECTOR", camera.from_camera_direction(axis_u))
    points = t.store(points, _AXIS_V, "FLOAT_VECTOR", camera.from_camera_direction(axis_v))
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
    t.node("NodeGroupOutput", {"Geometry": _unless_drawn_otherwise(t, inputs, mesh)})


def _unless_drawn_otherwise(t: Tree, inputs: Value, quads: Value) -> Value:
    """The quads; in a viewport that draws splats itself only the corners of their box.

    The corners are points without a radius: they show nothing, but keep the object's dimensions
    and View Selected right. Branches that are not taken are not evaluated: scrubbing pays for no
    quads.
    """
    viewport = t.node("GeometryNodeIsViewport").outputs[0]
    idle = t.node(
        "FunctionNodeBooleanMath", {0: viewport, 1: inputs["In Viewport"]}, operation="NIMPLY"
    ).outputs[0]
    box = t.node("GeometryNodeBoundBox", {"Geometry": inputs["Geometry"]}).outputs["Bounding Box"]
    corners = t.node("GeometryNodeMeshToPoints", {"Mesh": box, "Radius": 0.0}).outputs[0]
    return _either(t, "GEOMETRY", idle, corners, quads)


def _either(t: Tree, kind: str, switch: Value, true: Value, false: Value) -> Value:
    node = t.node("GeometryNodeSwitch", {"Switch": switch}, input_type=kind)
    for name, value in (("True", true), ("False", false)):
        socket = next(s for s in node.inputs if s.name == name and s.enabled)
        t.tree.links.new(value, socket)
    return next(s for s in node.outputs if s.enabled)


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

    def sight(self, point: Value) -> Value:
        """Unit direction in the object's space in which the camera sees `point`."""
        t = self.t
        origin = self.from_camera_point((0.0, 0.0, 0.0))
        straight = self.from_camera_direction((0.0, 0.0, -1.0))
        toward = t.vector("SUBTRACT", point, origin)
        mixed = t.vector(
            "ADD",
            t.vector("SCALE", toward, self._perspective),
            t.vector("SCALE", straight, t.math("SUBTRACT", 1.0, self._perspective)),
        )
        return t.vector("NORMALIZE", mixed)

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


def _hidden(
    t: Tree, inputs: Value, camera: _Camera, position: Value, depth: Value, opacity: Value
) -> Value:
    """Nearer than the camera's clip start, too faint, too large, or outside the crop box."""

    def both(a: Value, b: Value, operation: str = "AND") -> Value:
        return t.node("FunctionNodeBooleanMath", {0: a, 1: b}, operation=operation).outputs[0]

    seen = both(
        t.math("LESS_THAN", depth, t.math("MULTIPLY", camera.clip_start, -1.0)),
        t.math("GREATER_THAN", opacity, inputs["Opacity From"]),
    )
    x, y, z = t.separate(t.attribute("scale", "FLOAT_VECTOR"))
    limit = inputs["Size Up To"]
    too_large = both(
        t.math("GREATER_THAN", t.math("MAXIMUM", x, t.math("MAXIMUM", y, z)), limit),
        t.math("GREATER_THAN", limit, 0.0),
    )
    box = t.node(
        "GeometryNodeObjectInfo", {"Object": inputs["Crop Box"]}, transform_space="RELATIVE"
    ).outputs["Transform"]
    inverse = t.node("FunctionNodeInvertMatrix", {0: box}).outputs[0]
    place = t.node("FunctionNodeTransformPoint", {"Vector": position, "Transform": inverse})
    x, y, z = t.separate(t.vector("ABSOLUTE", place.outputs[0]))
    far = t.math("MAXIMUM", x, t.math("MAXIMUM", y, z))
    outside = both(t.math("GREATER_THAN", far, 1.0), inputs["Use Crop Box"])
    kept = both(seen, both(too_large, outside, "OR"), "NIMPLY")
    return t.node("FunctionNodeBooleanMath", {0: kept}, operation="NOT").outputs[0]


def _reach(t: Tree, opacity: Value) -> Value:
    """Standard deviations at which the alpha of a splat falls to MINIMUM_OPACITY."""
    steps = t.math("DIVIDE", t.math("MAXIMUM", opacity, MINIMUM_OPACITY), MINIMUM_OPACITY)
    # Logarithm to the base e; never exactly 0, so that every quad has an area.
    power = t.math("MAXIMUM", t.math("LOGARITHM", steps, 2.718281828459045), 1e-6)
    return t.math("SQRT", t.math("MULTIPLY", power, 2.0))


def _quad_axes(t: Tree, camera: _Camera, direction: Value, reach: Value) -> tuple[Value, Value]:
    """Half axes of the quad in camera space, at `reach` standard deviations."""
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
        t.vector("SCALE", along, t.math("MULTIPLY", major, reach)),
        t.vector("SCALE", across, t.math("MULTIPLY", minor, reach)),
    )


def _with_colour(
    t: Tree, inputs: Value, points: Value, split: bpy.types.Node, sight: Value
) -> Value:
    """The points with COLOR_ATTRIBUTE: what the camera sees of each splat, and its opacity."""
    dc = t.combine(*(split.outputs[name] for name in ("Red", "Green", "Blue")))
    plain = t.vector("ADD", t.vector("SCALE", dc, SH_C0), 0.5)
    seen = plain
    x, y, z = (Number(t, socket) for socket in t.separate(sight))
    for k, (factor, term) in enumerate(zip(FACTORS, polynomials(x, y, z))):
        coefficient = t.attribute(f"radiance:sh_{k}", "FLOAT_VECTOR")
        seen = t.vector("ADD", seen, t.vector("SCALE", coefficient, (term * factor).socket))

    def stored(display: Value) -> Value:
        display = t.vector("MAXIMUM", display, 0.0)
        linear = _linear(t, display)
        value = _either(t, "VECTOR", inputs["Display Values"], display, linear)
        red, green, blue = t.separate(value)
        color = t.node(
            "FunctionNodeCombineColor",
            {"Red": red, "Green": green, "Blue": blue, "Alpha": split.outputs["Alpha"]},
        ).outputs[0]
        return t.store(points, COLOR_ATTRIBUTE, "FLOAT_COLOR", color)

    # A switch of geometries evaluates one side; a switch of colours would evaluate both.
    return _either(t, "GEOMETRY", inputs["View-dependent Colour"], stored(seen), stored(plain))


def _linear(t: Tree, display: Value) -> Value:
    """Display sRGB as scene linear colour."""
    low = t.vector("DIVIDE", display, 12.92)
    high = t.vector("POWER", t.vector("DIVIDE", t.vector("ADD", display, 0.055), 1.055), 2.4)
    above = t.vector("SIGN", t.vector("MAXIMUM", t.vector("SUBTRACT", display, 0.04045), 0.0))
    return t.vector("ADD", low, t.vector("MULTIPLY", above, t.vector("SUBTRACT", high, low)))


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
