# SPDX-License-Identifier: Apache-2.0
"""The scenes of render_dataset.py: toys thrown onto a floor by Blender's rigid bodies, or one
animated glTF asset before nothing. Builds in a fresh file; it never renders and writes nothing."""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bmesh
import bpy
import numpy as np
from mathutils import Euler, Matrix, Vector
from toy_kit import Paint, add, box, cylinder, empty, lathe, ring, sphere

_WARM_UP = 3  # frames during which hands, so to speak, still hold the thrown toys
_STEPS = 10  # of the simulation per frame


@dataclass(frozen=True)
class Stage:
    """A scene that is ready to be seen.

    target: where cameras look. radius: about how far the subject reaches from there, scene units.
    pose: puts everything where it is at a time from 0 on. clear: there is no background.
    source: what it shows, for the record.
    """

    target: Vector
    radius: float
    pose: Callable[[int], None]
    clear: bool
    source: str


def fresh_scene(frames: int) -> bpy.types.Scene:
    """An empty file. Raises nothing; whatever was open and not saved is gone."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, frames
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    scene.display_settings.display_device = "sRGB"
    return scene


# ---- physics ----


def physics_stage(seed: int, frames: int) -> Stage:
    """5 to 12 toys that fall, roll and bump on a floor: the part that Kubric has in the paper.

    One seed gives the same toys, throws, light and cameras. What follows a collision may differ a
    little from run to run: Bullet does not repeat itself to the bit.
    """
    rng = random.Random(seed)
    scene = fresh_scene(frames + _WARM_UP)
    floor = _floor(rng)
    toys = [_toy(rng, n) for n in range(rng.randint(5, 12))]
    _drop(rng, toys)
    poses = _simulate(scene, floor, toys, frames)
    _sky_and_sun(scene, rng)

    def pose(t: int) -> None:
        for toy, matrix in zip(toys, poses[t]):
            toy.matrix_world = matrix
        bpy.context.view_layer.update()

    pose(0)
    places = np.array([m.translation for matrices in poses for m in matrices])
    near = places[np.linalg.norm(places[:, :2], axis=1) < 4.0]  # a runaway does not set the size
    middle = Vector(np.median(near, axis=0)) if len(near) else Vector((0, 0, 0.4))
    reach = np.percentile(np.linalg.norm(near - middle, axis=1), 85) if len(near) else 1.0
    return Stage(middle, float(reach) + 0.5, pose, False, f"physics, seed {seed}")


def _colour(rng: random.Random) -> str:
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.9), rng.uniform(0.2, 0.95))
    return "#" + "".join(f"{round(255 * c):02X}" for c in rgb)


def _paint(rng: random.Random, name: str, size: float) -> bpy.types.Material:
    """A random pattern with features of about a third of `size`."""
    shiny = rng.random() < 0.4
    paint = Paint(name, rng.uniform(0.15, 0.5) if shiny else 0.85, 0.5 if shiny else 0.15)
    a, b, c = (_colour(rng) for _ in range(3))
    scale = rng.uniform(1.5, 4.0) / size
    pattern = rng.randrange(5)
    if pattern == 0:
        return paint.done(paint.flat(a))
    if pattern == 1:
        return paint.done(paint.checker(a, b, scale))
    if pattern == 2:
        return paint.done(paint.dots(a, b, scale, 0.3, rng.random()))
    if pattern == 3:
        return paint.done(paint.wood(a, b, scale, (1.0, 1.0, rng.uniform(0.15, 1.0))))
    return paint.done(paint.bands(paint.axis(rng.choice("XYZ"), scale / 3), [a, b, c]))


def _floor(rng: random.Random) -> bpy.types.Object:
    return add("Floor", box(40, 40, 1), _paint(rng, "Floor", 3.0), at=(0, 0, -0.5))


def _monkey(size: float) -> Callable[[bmesh.types.BMesh], None]:
    def build(shape: bmesh.types.BMesh) -> None:
        bmesh.ops.create_monkey(shape, matrix=Matrix.Scale(size, 4))
        bmesh.ops.subdivide_edges(shape, edges=shape.edges[:], cuts=1, smooth=1.0)

    return build


def _toy(rng: random.Random, n: int) -> bpy.types.Object:
    size = rng.uniform(0.18, 0.5)
    shapes = (
        sphere(size),
        box(*(size * rng.uniform(0.8, 2.2) for _ in range(3))),
        cylinder(size * rng.uniform(0.4, 0.9), size * rng.uniform(0.8, 2.4)),
        lathe([(size, -size * 0.8), (0.02, size)]),  # a cone
        ring(size, size * rng.uniform(0.25, 0.5)),
        _monkey(size),
    )
    kind = rng.choices(range(len(shapes)), (3, 4, 3, 2, 1, 2))[0]
    bevel = 0.08 * size if kind == 1 else 0.0
    return add(f"Toy {n}", shapes[kind], _paint(rng, f"Toy {n}", size), bevel=bevel)


def _drop(rng: random.Random, toys: Sequence[bpy.types.Object]) -> None:
    """Key each toy's place and turn of the frames before it is let go: its speed follows."""
    spots: list[Vector] = []
    for toy in toys:
        spot = Vector((0, 0, 0))
        for _ in range(40):
            turn, reach = rng.uniform(0, 2 * math.pi), 1.4 * math.sqrt(rng.random())
            height = rng.uniform(0.5, 2.2)
            spot = Vector((reach * math.cos(turn), reach * math.sin(turn), height))
            if all((spot - other).length > 0.9 for other in spots):
                break
        spots.append(spot)
        inward = Vector((-spot.x, -spot.y, 0)) * rng.uniform(-0.02, 0.08)
        speed = inward + Vector((rng.gauss(0, 0.03), rng.gauss(0, 0.03), rng.uniform(-0.05, 0.06)))
        turn = Euler([rng.uniform(0, 6.3) for _ in range(3)])
        spin = [rng.gauss(0, 0.12) for _ in range(3)]
        for frame in range(1, _WARM_UP + 1):
            before = frame - _WARM_UP
            toy.location = spot + speed * before
            toy.rotation_euler = [a + s * before for a, s in zip(turn, spin)]
            toy.keyframe_insert("location", frame=frame)
            toy.keyframe_insert("rotation_euler", frame=frame)


def _simulate(
    scene: bpy.types.Scene,
    floor: bpy.types.Object,
    toys: Sequence[bpy.types.Object],
    frames: int,
) -> list[list[Matrix]]:
    """Run the rigid bodies once; the toys' matrices at each of `frames` times.

    Afterwards nothing is simulated any more, so that a time can be shown in any order.
    """
    bpy.ops.rigidbody.world_add()
    world = scene.rigidbody_world
    world.substeps_per_frame = _STEPS
    world.point_cache.frame_start, world.point_cache.frame_end = 1, frames + _WARM_UP
    for ob in (floor, *toys):
        bpy.context.view_layer.objects.active = ob
        bpy.ops.rigidbody.object_add(type="PASSIVE" if ob is floor else "ACTIVE")
        body = ob.rigid_body
        body.collision_shape = "BOX" if ob is floor else "CONVEX_HULL"
        body.friction, body.restitution = 0.6, 0.3
        body.use_margin, body.collision_margin = True, 0.004
        if ob is not floor:
            body.mass = max(math.prod(ob.dimensions), 1e-3)
            for frame, held in ((1, True), (_WARM_UP, True), (_WARM_UP + 1, False)):
                body.kinematic = held
                body.keyframe_insert("kinematic", frame=frame)
    poses = []
    for frame in range(1, frames + _WARM_UP + 1):
        scene.frame_set(frame)
        if frame > _WARM_UP:
            graph = bpy.context.evaluated_depsgraph_get()
            poses.append([toy.evaluated_get(graph).matrix_world.copy() for toy in toys])
    bpy.ops.rigidbody.world_remove()
    for toy in toys:
        toy.animation_data_clear()
    return poses


def _sky_and_sun(scene: bpy.types.Scene, rng: random.Random) -> None:
    sun = bpy.data.objects.new("Sun", bpy.data.lights.new("Sun", "SUN"))
    sun.data.energy = rng.uniform(1.5, 4.0)
    sun.data.angle = math.radians(rng.uniform(1, 20))
    sun.rotation_euler = (math.radians(rng.uniform(10, 60)), 0, rng.uniform(0, 2 * math.pi))
    scene.collection.objects.link(sun)
    sky = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.35), rng.uniform(0.4, 1.0))
    _world(scene, (*sky, 1.0), rng.uniform(0.6, 1.1))


def _world(scene: bpy.types.Scene, colour: Sequence[float], strength: float) -> None:
    world = bpy.data.worlds.new("Sky")
    world.use_nodes = True
    background = next(n for n in world.node_tree.nodes if n.type == "BACKGROUND")
    background.inputs["Color"].default_value = colour
    background.inputs["Strength"].default_value = strength
    scene.world = world


# ---- assets ----


def asset_stage(path: Path, seed: int, frames: int) -> Stage:
    """An animated glTF asset, centred and scaled to radius 1: the part that Objaverse has.

    Its longest animation is spread over the frames; an asset without one stands still. Raises
    ValueError for a file that Blender cannot import or that has nothing to see.
    """
    rng = random.Random(seed)
    scene = fresh_scene(frames)
    bpy.ops.preferences.addon_enable(module="io_scene_gltf2")
    try:
        bpy.ops.import_scene.gltf(filepath=str(path))
    except RuntimeError as problem:
        raise ValueError(f"{path}: {' '.join(str(problem).split())[:160]}") from None
    for ob in [ob for ob in scene.objects if ob.type in ("LIGHT", "CAMERA")]:
        bpy.data.objects.remove(ob)
    ends = [action.frame_range for action in bpy.data.actions]
    first, last = min((e[0] for e in ends), default=1), max((e[1] for e in ends), default=1)

    def pose(t: int) -> None:
        moment = first + (last - first) * t / max(frames - 1, 1)
        scene.frame_set(math.floor(moment), subframe=moment - math.floor(moment))

    corners = []
    for t in np.linspace(0, frames - 1, min(frames, 6)).round():
        pose(int(t))
        corners.append(_points(scene))
    points = np.concatenate(corners)
    if not len(points) or not np.isfinite(points).all():
        raise ValueError(f"{path}: holds no surface to see")
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    radius = float(np.linalg.norm(points - middle, axis=1).max())
    if radius < 1e-9:
        raise ValueError(f"{path}: has no size")
    root = empty("Stand")
    for ob in [ob for ob in scene.objects if ob.parent is None and ob is not root]:
        ob.parent = root  # whose matrix is still the identity
    root.scale = [1 / radius] * 3
    root.location = [-c / radius for c in middle]
    sun = bpy.data.objects.new("Sun", bpy.data.lights.new("Sun", "SUN"))
    sun.data.energy, sun.data.angle = 2.0, math.radians(30)
    sun.rotation_euler = (math.radians(rng.uniform(20, 50)), 0, rng.uniform(0, 2 * math.pi))
    scene.collection.objects.link(sun)
    _world(scene, (1, 1, 1, 1), 0.8)
    scene.render.film_transparent = True
    pose(0)
    return Stage(Vector((0, 0, 0)), 1.0, pose, True, path.name)


def _points(scene: bpy.types.Scene) -> np.ndarray:
    """(N, 3) world places of the vertices of all that is rendered now."""
    graph = bpy.context.evaluated_depsgraph_get()
    parts = [np.empty((0, 3))]
    for ob in scene.objects:
        if ob.type != "MESH" or ob.hide_render:
            continue
        seen = ob.evaluated_get(graph)
        mesh = seen.to_mesh()
        local = np.empty(3 * len(mesh.vertices), np.float32)
        mesh.vertices.foreach_get("co", local)
        matrix = np.array(seen.matrix_world)
        parts.append(local.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3])
        seen.to_mesh_clear()
    return np.concatenate(parts)


# ---- cameras ----


def arc_of_cameras(
    scene: bpy.types.Scene, stage: Stage, seed: int, views: int, size: tuple[int, int]
) -> list[bpy.types.Object]:
    """Cameras on an arc about the stage's target (all around it, now and then, for an asset)."""
    rng = random.Random(f"{seed} cameras")
    width, height = size
    opening = math.radians(rng.uniform(30, 55))  # of the picture's larger side
    focal = 0.5 * max(width, height) / math.tan(0.5 * opening)
    smaller = 2 * math.atan(0.5 * min(width, height) / focal)
    closeness = rng.uniform(1.0, 1.25) if stage.clear else rng.uniform(0.65, 1.0)
    distance = closeness * stage.radius / math.sin(0.5 * smaller)
    around = stage.clear and rng.random() < 0.4
    arc = 2 * math.pi * (views - 1) / views if around else math.radians(rng.uniform(40, 110))
    start, tilt = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(8, 45))
    cameras = []
    for v in range(views):
        angle = start + arc * (v / (views - 1) if views > 1 else 0.5)
        level = distance * math.cos(tilt)
        offset = Vector(
            (level * math.cos(angle), level * math.sin(angle), distance * math.sin(tilt))
        )
        camera = bpy.data.objects.new(f"view_{v:03d}", bpy.data.cameras.new(f"view_{v:03d}"))
        camera.data.sensor_fit, camera.data.sensor_width = "HORIZONTAL", 36.0
        camera.data.lens = 36.0 * focal / width
        camera.data.clip_start, camera.data.clip_end = 0.01 * distance, 1000.0 * distance
        turn = (-offset).to_track_quat("-Z", "Y")
        camera.matrix_world = Matrix.LocRotScale(stage.target + offset, turn, None)
        scene.collection.objects.link(camera)
        cameras.append(camera)
    bpy.context.view_layer.update()
    return cameras
