# SPDX-License-Identifier: GPL-3.0-or-later
"""A geometry node tree that plays numbered 3DGS PLY files: Blender alone, no Python.
It never draws: its points have the attributes of Blender 5.3's native Gaussian splats."""

from __future__ import annotations

import bpy

from ..display.nodes import Tree, Value
from .cloud import BASE, REST
from .frames import EPSILON, Timing
from .reader import MINIMUM_SCALE

LOOPS = ("HOLD", "LOOP", "PING_PONG")
STEP_NODE = "Step"
# Attributes that Import PLY makes of the file's properties; the splat layout replaces them.
_RAW = ("f_dc_*", "f_rest_*", "opacity", "scale_*", "rot_*", "normal")


def build(
    name: str, prefix: str, timing: Timing, coefficients: int, sampled: bool
) -> bpy.types.NodeTree:
    """The tree that imports prefix + "0000.ply" and so on at each frame.

    prefix: path, // for the .blend's folder. timing.loop, offset, speed and nearest become inputs
    of the modifier. sampled: a value node named STEP_NODE says the step instead, to be keyframed.
    """
    tree = bpy.data.node_groups.new(name, "GeometryNodeTree")
    tree.is_modifier = True
    t = Tree(tree)
    _socket(tree, "Geometry", "NodeSocketGeometry")
    _socket(tree, "Files", "NodeSocketString", prefix)
    if not sampled:
        _socket(tree, "Offset", "NodeSocketFloat", float(timing.offset))
        _socket(tree, "Speed", "NodeSocketFloat", timing.speed)
        outside = _socket(tree, "Outside", "NodeSocketInt", LOOPS.index(timing.loop))
        outside.min_value, outside.max_value = 0, len(LOOPS) - 1
        outside.description = "0 holds the ends, 1 loops, 2 goes back and forth"
        _socket(tree, "Nearest", "NodeSocketBool", timing.nearest)
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    given = t.node("NodeGroupInput").outputs
    step = _keyed_step(t) if sampled else _step(t, given, timing)
    path = t.node("FunctionNodeFormatString", {"Format": "{files}{step:04}.ply"})
    path.format_items.new("STRING", "files")
    path.format_items.new("INT", "step")
    tree.links.new(given["Files"], path.inputs["files"])
    tree.links.new(
        t.node("FunctionNodeFloatToInt", {0: step}).outputs[0],
        path.inputs["step"],
    )
    mesh = t.node("GeometryNodeImportPLY", {"Path": path.outputs[0]}).outputs[0]
    points = t.node("GeometryNodeMeshToPoints", {"Mesh": mesh}).outputs[0]
    t.node("NodeGroupOutput", {"Geometry": _splats(t, points, coefficients)})
    return tree


def _socket(
    tree: bpy.types.NodeTree, name: str, kind: str, default: Value = None
) -> bpy.types.NodeTreeInterfaceSocket:
    socket = tree.interface.new_socket(name, in_out="INPUT", socket_type=kind)
    if default is not None:
        socket.default_value = default
    return socket


def _keyed_step(t: Tree) -> Value:
    node = t.node("ShaderNodeValue")
    node.name = node.label = STEP_NODE
    return node.outputs[0]


def _step(t: Tree, given: bpy.types.NodeOutputs, timing: Timing) -> Value:
    """Timing.step_at as nodes."""
    frame = t.node("GeometryNodeInputSceneTime").outputs["Frame"]
    played = t.math("SUBTRACT", t.math("SUBTRACT", frame, given["Offset"]), timing.frame_start)
    place = t.math("DIVIDE", t.math("MULTIPLY", played, given["Speed"]), timing.frame_step)
    half = t.math("MULTIPLY", given["Nearest"], 0.5)
    index = t.math("FLOOR", t.math("ADD", t.math("ADD", place, half), EPSILON))
    last = timing.times - 1
    hold = t.math("MINIMUM", t.math("MAXIMUM", index, 0.0), last)
    loop = t.math("FLOORED_MODULO", index, timing.times)
    back_and_forth = t.math("PINGPONG", index, last) if last else 0.0
    choice = t.node("GeometryNodeIndexSwitch", data_type="FLOAT")
    choice.index_switch_items.new()
    t.tree.links.new(given["Outside"], choice.inputs[0])
    for socket, value in zip(choice.inputs[1:], (hold, loop, back_and_forth)):
        if isinstance(value, bpy.types.NodeSocket):
            t.tree.links.new(value, socket)
        else:
            socket.default_value = value
    return choice.outputs[0]


def _splats(t: Tree, points: Value, coefficients: int) -> Value:
    """Logits, log scales and quaternions of the PLY as attributes of splats."""

    def raw(name: str) -> Value:
        return t.attribute(name, "FLOAT")

    logit = t.math("MULTIPLY", raw("opacity"), -1.0)
    opacity = t.math("DIVIDE", 1.0, t.math("ADD", t.math("EXPONENT", logit), 1.0))
    base = t.node(
        "FunctionNodeCombineColor",
        {
            "Red": raw("f_dc_0"),
            "Green": raw("f_dc_1"),
            "Blue": raw("f_dc_2"),
            "Alpha": opacity,
        },
    ).outputs[0]
    scale = [
        t.math("MAXIMUM", t.math("EXPONENT", raw(f"scale_{axis}")), MINIMUM_SCALE)
        for axis in range(3)
    ]
    turn = t.node(
        "FunctionNodeQuaternionToRotation",
        {name: raw(f"rot_{index}") for index, name in enumerate("WXYZ")},
    ).outputs[0]
    points = t.store(points, BASE, "FLOAT_COLOR", base)
    points = t.store(points, "scale", "FLOAT_VECTOR", t.combine(*scale))
    points = t.store(points, "rotation", "QUATERNION", turn)
    rest = coefficients - 1
    for k in range(rest):
        # Channel by channel in the file, coefficient by coefficient here.
        vector = t.combine(*(raw(f"f_rest_{channel * rest + k}") for channel in range(3)))
        points = t.store(points, f"{REST}{k}", "FLOAT_VECTOR", vector)
    for name in _RAW:
        points = t.node(
            "GeometryNodeRemoveAttribute",
            {"Geometry": points, "Name": name},
            pattern_mode="WILDCARD" if "*" in name else "EXACT",
        ).outputs[0]
    return points
