# SPDX-License-Identifier: Apache-2.0
"""The workshop of make_scene.py: paints of nodes, turned and sawn shapes, motion keyed by frame.
It knows no toy and no scene but the one that is open."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import bmesh
import bpy
from mathutils import Euler, Matrix, Vector

FRAME_START, FRAME_END, FPS = 1, 33, 24

Colour = tuple[float, float, float, float]
Pose = tuple[Vector, Euler, Vector]


def linear(code: str) -> Colour:
    """Scene-linear RGBA of a display sRGB "#RRGGBB"."""
    values = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return r, g, b, 1.0


# ---- materials: all procedural, in object coordinates, with features of several pixels at 256 ----


class Paint:
    """A matte material whose colour a few nodes make; each method adds one pattern."""

    def __init__(self, name: str, roughness: float = 0.85, specular: float = 0.15) -> None:
        self.material = bpy.data.materials.new(name)
        self.material.use_nodes = True
        self.tree = self.material.node_tree
        self.shader = next(n for n in self.tree.nodes if n.type == "BSDF_PRINCIPLED")
        self.shader.inputs["Roughness"].default_value = roughness
        self.shader.inputs["Specular IOR Level"].default_value = specular
        self.coordinates = self.node("ShaderNodeTexCoord").outputs["Object"]

    def node(self, kind: str, **settings) -> bpy.types.Node:
        node = self.tree.nodes.new(kind)
        for name, value in settings.items():
            setattr(node, name, value)
        return node

    def link(self, source, target) -> None:
        self.tree.links.new(source, target)

    def math(self, operation: str, a, b: float = 0.0):
        node = self.node("ShaderNodeMath", operation=operation)
        self.link(a, node.inputs[0])
        node.inputs[1].default_value = b
        return node.outputs[0]

    def bands(self, value, colours: Sequence[str]):
        """Colours in turn as `value` goes from 0 to 1, and again from there on."""
        ramp = self.node("ShaderNodeValToRGB")
        ramp.color_ramp.interpolation = "CONSTANT"
        elements = ramp.color_ramp.elements
        while len(elements) < len(colours):
            elements.new(0.5)
        while len(elements) > len(colours):
            elements.remove(elements[-1])
        for i, colour in enumerate(colours):
            elements[i].position = i / len(colours)
            elements[i].color = linear(colour)
        self.link(self.math("FRACT", value), ramp.inputs[0])
        return ramp.outputs[0]

    def axis(self, axis: str, repeats: float, shift: float = 0.0):
        """One object coordinate, times `repeats`."""
        split = self.node("ShaderNodeSeparateXYZ")
        self.link(self.coordinates, split.inputs[0])
        return self.math("ADD", self.math("MULTIPLY", split.outputs[axis], repeats), shift)

    def angle(self, repeats: float):
        """The turn about the object's z, times `repeats`."""
        node = self.node("ShaderNodeTexGradient", gradient_type="RADIAL")
        self.link(self.coordinates, node.inputs[0])
        return self.math("MULTIPLY", node.outputs["Fac"], repeats)

    def radius(self, repeats: float):
        """The distance from the object's z axis, times `repeats`."""
        flat = self.node("ShaderNodeVectorMath", operation="MULTIPLY")
        self.link(self.coordinates, flat.inputs[0])
        flat.inputs[1].default_value = (1, 1, 0)
        length = self.node("ShaderNodeVectorMath", operation="LENGTH")
        self.link(flat.outputs[0], length.inputs[0])
        return self.math("MULTIPLY", length.outputs["Value"], repeats)

    def checker(self, a: str, b: str, scale: float):
        node = self.node("ShaderNodeTexChecker")
        # Faces that lie on a cell's border would flicker between both colours.
        shifted = self.node("ShaderNodeVectorMath", operation="ADD")
        self.link(self.coordinates, shifted.inputs[0])
        shifted.inputs[1].default_value = (0.0137, 0.0171, 0.0119)
        self.link(shifted.outputs[0], node.inputs["Vector"])
        node.inputs["Color1"].default_value = linear(a)
        node.inputs["Color2"].default_value = linear(b)
        node.inputs["Scale"].default_value = scale
        return node.outputs["Color"]

    def dots(self, ground: str, dot: str, scale: float, size: float, randomness: float = 0.0):
        node = self.node("ShaderNodeTexVoronoi")
        self.link(self.coordinates, node.inputs["Vector"])
        node.inputs["Scale"].default_value = scale
        node.inputs["Randomness"].default_value = randomness
        near = self.math("LESS_THAN", node.outputs["Distance"], size)
        return self.mix(near, self.flat(ground), self.flat(dot))

    def wood(self, a: str, b: str, scale: float, stretch: Sequence[float]):
        """Grain: noise drawn out along the axis whose stretch is small."""
        scaled = self.node("ShaderNodeVectorMath", operation="MULTIPLY")
        self.link(self.coordinates, scaled.inputs[0])
        scaled.inputs[1].default_value = stretch
        noise = self.node("ShaderNodeTexNoise")
        self.link(scaled.outputs[0], noise.inputs["Vector"])
        noise.inputs["Scale"].default_value = scale
        noise.inputs["Detail"].default_value = 2.0
        noise.inputs["Distortion"].default_value = 0.6
        ramp = self.node("ShaderNodeValToRGB")
        for element, place, colour in zip(ramp.color_ramp.elements, (0.36, 0.64), (a, b)):
            element.position, element.color = place, linear(colour)
        self.link(noise.outputs["Fac"], ramp.inputs[0])
        return ramp.outputs[0]

    def flat(self, colour: str):
        node = self.node("ShaderNodeRGB")
        node.outputs[0].default_value = linear(colour)
        return node.outputs[0]

    def mix(self, factor, a, b, blend: str = "MIX"):
        node = self.node("ShaderNodeMix", data_type="RGBA", blend_type=blend)
        if isinstance(factor, float):
            node.inputs[0].default_value = factor
        else:
            self.link(factor, node.inputs[0])
        self.link(a, node.inputs[6])
        self.link(b, node.inputs[7])
        return node.outputs[2]

    def done(self, colour) -> bpy.types.Material:
        """The material with this colour, a little mottled as paint on wood is."""
        mottle = self.wood("#D8D8D8", "#FFFFFF", 3.0, (1, 1, 1))
        self.link(self.mix(0.6, colour, mottle, "MULTIPLY"), self.shader.inputs["Base Color"])
        return self.material


def plain(name: str, colour: str, **kwargs) -> bpy.types.Material:
    paint = Paint(name, **kwargs)
    return paint.done(paint.flat(colour))


# ---- shapes ----


def add(
    name: str,
    mesh_of: Callable[[bmesh.types.BMesh], None],
    material,
    *,
    parent=None,
    at=(0.0, 0.0, 0.0),
    turned=(0.0, 0.0, 0.0),
    bevel: float = 0.0,
) -> bpy.types.Object:
    """An object from what `mesh_of` builds; smooth but for its hard edges."""
    mesh = bpy.data.meshes.new(name)
    shape = bmesh.new()
    mesh_of(shape)
    if bevel:
        bmesh.ops.bevel(
            shape,
            geom=shape.edges[:],
            offset=bevel,
            segments=3,
            affect="EDGES",
            profile=0.5,
            clamp_overlap=True,
        )
    bmesh.ops.recalc_face_normals(shape, faces=shape.faces[:])
    shape.to_mesh(mesh)
    shape.free()
    mesh.shade_smooth()
    mesh.set_sharp_from_angle(angle=math.radians(40))
    mesh.materials.append(material)
    ob = bpy.data.objects.new(name, mesh)
    bpy.context.scene.collection.objects.link(ob)
    ob.parent = parent
    ob.location, ob.rotation_euler = at, turned
    return ob


def empty(name: str, parent=None, at=(0.0, 0.0, 0.0)) -> bpy.types.Object:
    ob = bpy.data.objects.new(name, None)
    bpy.context.scene.collection.objects.link(ob)
    ob.parent, ob.location = parent, at
    ob.empty_display_size = 0.2
    return ob


def lathe(profile: Sequence[tuple[float, float]], segments: int = 48, hollow: bool = False):
    """A solid of revolution about z from (radius, z) points, bottom to top.

    With `hollow` the points go round a closed outline instead, and the middle stays open.
    """

    def build(shape: bmesh.types.BMesh) -> None:
        rings = []
        for radius, z in profile:
            rings.append(
                [
                    shape.verts.new((radius * math.cos(a), radius * math.sin(a), z))
                    for a in (2 * math.pi * i / segments for i in range(segments))
                ]
            )
        for low, high in zip(rings, rings[1:] + (rings[:1] if hollow else [])):
            for i in range(segments):
                j = (i + 1) % segments
                shape.faces.new((low[i], low[j], high[j], high[i]))
        if not hollow:
            shape.faces.new(reversed(rings[0]))
            shape.faces.new(rings[-1])

    return build


def box(x: float, y: float, z: float):
    def build(shape: bmesh.types.BMesh) -> None:
        bmesh.ops.create_cube(shape, size=1.0, matrix=Matrix.Diagonal((x, y, z, 1.0)))

    return build


def cylinder(radius: float, length: float, segments: int = 40):
    return lathe([(radius, -length / 2), (radius, length / 2)], segments)


def sphere(radius: float):
    def build(shape: bmesh.types.BMesh) -> None:
        bmesh.ops.create_uvsphere(shape, u_segments=48, v_segments=24, radius=radius)

    return build


def ring(radius: float, tube: float, segments: int = 64):
    def build(shape: bmesh.types.BMesh) -> None:
        circles = []
        for i in range(segments):
            turn = Matrix.Rotation(2 * math.pi * i / segments, 4, "Z")
            circles.append(
                [
                    shape.verts.new(
                        turn @ Vector((radius + tube * math.cos(a), 0, tube * math.sin(a)))
                    )
                    for a in (2 * math.pi * k / 16 for k in range(16))
                ]
            )
        for i in range(segments):
            a, b = circles[i], circles[(i + 1) % segments]
            for k in range(16):
                m = (k + 1) % 16
                shape.faces.new((a[k], b[k], b[m], a[m]))

    return build


# ---- motion ----


def animate(ob: bpy.types.Object, pose_at: Callable[[float], Pose]) -> None:
    """Key `ob` at every frame; `pose_at` takes seconds from the first frame."""
    for frame in range(FRAME_START, FRAME_END + 1):
        place, turn, scale = pose_at((frame - FRAME_START) / FPS)
        ob.location, ob.rotation_euler, ob.scale = place, turn, scale
        for path in ("location", "rotation_euler", "scale"):
            ob.keyframe_insert(path, frame=frame)


def still() -> Vector:
    return Vector((1.0, 1.0, 1.0))
