# SPDX-License-Identifier: GPL-3.0-or-later
"""A few words to write node trees as formulas: one call per node, links by argument.
It never knows what a tree is for."""

from __future__ import annotations

from typing import Any

import bpy

Value = Any  # a socket to link from, or a constant for the input's default value


class Tree:
    """Adds nodes to a tree; every method returns the (first) output socket of the new node."""

    def __init__(self, tree: bpy.types.NodeTree) -> None:
        self.tree = tree

    def node(
        self,
        kind: str,
        inputs: dict[str | int, Value] | None = None,
        **settings: Any,
    ) -> bpy.types.Node:
        """A node with properties `settings` and inputs by name or index."""
        node = self.tree.nodes.new(kind)
        for name, value in settings.items():
            if hasattr(node, name):
                setattr(node, name, value)
            else:
                # 5.x turned such choices into menu sockets: pattern_mode='EXACT' became the
                # input "Pattern Mode" with the item "Exact".
                menu = node.inputs[name.replace("_", " ").title()]
                menu.default_value = value.replace("_", " ").title()
        for key, value in (inputs or {}).items():
            # A name may occur once for each data type; 5.2 keeps the present type's alone, so
            # that an index means different sockets in different versions.
            named = (s for s in node.inputs if s.name == key and s.enabled)
            self._feed(node.inputs[key] if isinstance(key, int) else next(named), value)
        return node

    def math(self, operation: str, *values: Value) -> bpy.types.NodeSocket:
        node = self.node("ShaderNodeMath", dict(enumerate(values)), operation=operation)
        return node.outputs[0]

    def vector(self, operation: str, *values: Value) -> bpy.types.NodeSocket:
        """Vector math; constants may be one number for all three components."""
        node = self.node("ShaderNodeVectorMath", operation=operation)
        inputs = [
            node.inputs["Scale"] if operation == "SCALE" and index == 1 else node.inputs[index]
            for index in range(len(values))
        ]
        for socket, value in zip(inputs, values):
            if isinstance(value, int | float) and socket.type == "VECTOR":
                value = (value,) * 3
            self._feed(socket, value)
        scalar = operation in ("DOT_PRODUCT", "LENGTH", "DISTANCE")
        return node.outputs["Value" if scalar else "Vector"]

    def combine(self, x: Value, y: Value, z: Value) -> bpy.types.NodeSocket:
        return self.node("ShaderNodeCombineXYZ", {0: x, 1: y, 2: z}).outputs[0]

    def separate(self, vector: Value) -> tuple[bpy.types.NodeSocket, ...]:
        return tuple(self.node("ShaderNodeSeparateXYZ", {0: vector}).outputs)

    def attribute(self, name: str, kind: str) -> bpy.types.NodeSocket:
        node = self.node("GeometryNodeInputNamedAttribute", {"Name": name}, data_type=kind)
        return next(socket for socket in node.outputs if socket.enabled)

    def store(
        self,
        geometry: Value,
        name: str,
        kind: str,
        value: Value,
        domain: str = "POINT",
    ) -> bpy.types.NodeSocket:
        node = self.node(
            "GeometryNodeStoreNamedAttribute",
            {"Geometry": geometry, "Name": name},
            data_type=kind,
            domain=domain,
        )
        self._feed(next(s for s in node.inputs if s.name == "Value" and s.enabled), value)
        return node.outputs[0]

    def _feed(self, socket: bpy.types.NodeSocket, value: Value) -> None:
        if isinstance(value, bpy.types.NodeSocket):
            self.tree.links.new(value, socket)
        else:
            socket.default_value = value


class Number:
    """A socket that adds, subtracts and multiplies as numbers do: a formula becomes nodes."""

    def __init__(self, tree: Tree, socket: Value) -> None:
        self.tree, self.socket = tree, socket

    def _with(self, operation: str, a: Value, b: Value) -> Number:
        a, b = (v.socket if isinstance(v, Number) else v for v in (a, b))
        return Number(self.tree, self.tree.math(operation, a, b))

    def __add__(self, other: Value) -> Number:
        return self._with("ADD", self, other)

    def __sub__(self, other: Value) -> Number:
        return self._with("SUBTRACT", self, other)

    def __mul__(self, other: Value) -> Number:
        return self._with("MULTIPLY", self, other)

    def __rmul__(self, other: Value) -> Number:
        return self._with("MULTIPLY", other, self)
