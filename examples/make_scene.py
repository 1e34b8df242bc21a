# SPDX-License-Identifier: Apache-2.0
"""The example: a toy table with a train, a windmill, a rolling ball, a top and a hopping box.
Made by code alone, without any file; it never touches anything but the scene it makes."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import bpy
from mathutils import Euler, Matrix, Vector

# The folder of this file is on sys.path for a script; for an import its owner puts it there.
from toy_kit import (
    FPS,
    FRAME_END,
    FRAME_START,
    Paint,
    Pose,
    add,
    animate,
    box,
    cylinder,
    empty,
    lathe,
    linear,
    plain,
    ring,
    sphere,
    still,
)

TARGET = (0.0, 0.0, 0.45)  # what a rig should look at; the 3D cursor stands there
SKY = "#BFDDE6"

# Palette: painted wood toys, display sRGB.
CREAM, SAND, CORAL, MUSTARD = "#F6EBD3", "#DDBB86", "#E4644F", "#F0B23E"
TEAL, NAVY, MINT, PLUM, LEAF = "#2E8C8C", "#2F4A73", "#9CCFB2", "#8A4E7D", "#5E9C58"

# ---- the toys ----


def make_table() -> None:
    paint = Paint("Table")
    wood = paint.wood(SAND, "#C99F66", 1.5, (0.35, 2.2, 1.0))
    mat = paint.mix(
        paint.math("LESS_THAN", paint.radius(1.0), 1.72),
        wood,
        paint.mix(
            paint.math("LESS_THAN", paint.radius(1.0), 1.58),
            paint.flat(TEAL),
            paint.checker(CREAM, MINT, 2.2),
        ),
    )
    add(
        "Table",
        lathe([(2.45, -0.3), (2.74, -0.22), (2.8, -0.1), (2.78, -0.03), (2.72, 0.0)], 96),
        paint.done(mat),
    )
    track = Paint("Track")
    ties = track.bands(track.angle(44), [NAVY, NAVY, "#8C6A48"])
    add(
        "Track",
        lathe([(2.1, -0.02), (2.1, 0.05), (2.56, 0.05), (2.56, -0.02)], 96, True),
        track.done(ties),
    )


def make_windmill() -> None:
    tower = Paint("Tower")
    rows = tower.bands(tower.axis("Z", 2.2), [CREAM, CORAL])
    add("Windmill", lathe([(0.46, 0.0), (0.44, 0.04), (0.28, 1.3), (0.27, 1.32)]), tower.done(rows))
    roof = Paint("Roof")
    add(
        "Roof",
        lathe([(0.36, 1.3), (0.37, 1.34), (0.03, 1.78), (0.01, 1.79)]),
        roof.done(roof.bands(roof.angle(6), [NAVY, TEAL])),
    )
    door = Paint("Door")
    add(
        "Door",
        box(0.1, 0.22, 0.36),
        door.done(door.flat(PLUM)),
        at=(0.14, -0.4, 0.18),
        turned=(0, 0, math.radians(-71)),
        bevel=0.03,
    )
    facing = math.radians(-50)
    hub = empty("Sails", at=(0.36 * math.cos(facing), 0.36 * math.sin(facing), 1.18))
    add("Hub", sphere(0.09), plain("Hub", MUSTARD), parent=hub)
    for i in range(4):
        sail = Paint(f"Sail {i}")
        pattern = sail.bands(sail.axis("Z", 2.6), [CREAM, (CORAL, TEAL, MUSTARD, PLUM)[i]])
        arm = math.pi / 2 * i
        blade = add(
            f"Sail {i}", box(0.035, 0.24, 0.78), sail.done(pattern), parent=hub, bevel=0.012
        )
        blade.rotation_euler = (arm, 0, 0)
        blade.location = (0.05, -0.46 * math.sin(arm), 0.46 * math.cos(arm))
    animate(
        hub,
        lambda s: (
            hub.location.copy(),
            Euler((0.35 + math.radians(50) * s, 0, facing), "XYZ"),
            still(),
        ),
    )


def make_train() -> None:
    wheels = Paint("Wheel")
    wheel = wheels.done(wheels.bands(wheels.angle(4), [NAVY, MUSTARD]))
    engine = Paint("Engine", roughness=0.5, specular=0.3)
    engine_paint = engine.done(engine.bands(engine.axis("X", 2.4, 0.2), [CORAL, CORAL, CREAM]))
    wagons = []
    for name, a, b in (("Blue", TEAL, MINT), ("Yellow", MUSTARD, CREAM)):
        wagon = Paint(f"Wagon {name}")
        pattern = wagon.dots(a, b, 4.0, 0.34) if name == "Blue" else wagon.checker(a, b, 5.0)
        wagons.append(wagon.done(pattern))

    def car(name: str, behind: float) -> bpy.types.Object:
        pivot = empty(name)
        start, speed = math.radians(-58) - behind, math.radians(22)
        animate(pivot, lambda s: (Vector((0, 0, 0.05)), Euler((0, 0, start + speed * s)), still()))
        # +X along the track.
        body = empty(f"{name} body", pivot, (2.33, 0, 0))
        body.rotation_euler = (0, 0, math.pi / 2)
        for x in (-0.2, 0.2):
            for y in (-0.17, 0.17):
                axle = add(
                    f"{name} wheel",
                    cylinder(0.1, 0.06, 24),
                    wheel,
                    parent=body,
                    at=(x, y, 0.1),
                    turned=(math.pi / 2, 0, 0),
                )
                spin = speed * 2.33 / 0.1
                place = axle.location.copy()
                animate(
                    axle, lambda s, p=place, w=spin: (p, Euler((math.pi / 2, w * s, 0)), still())
                )
        return body

    front = car("Engine", 0.0)
    add(
        "Boiler",
        cylinder(0.19, 0.52),
        engine_paint,
        parent=front,
        at=(0.1, 0, 0.36),
        turned=(0, math.pi / 2, 0),
    )
    add(
        "Cab",
        box(0.26, 0.4, 0.5),
        plain("Cab", NAVY),
        parent=front,
        at=(-0.22, 0, 0.44),
        bevel=0.03,
    )
    add(
        "Cab roof",
        box(0.34, 0.48, 0.07),
        plain("Cab roof", MUSTARD),
        parent=front,
        at=(-0.22, 0, 0.71),
        bevel=0.025,
    )
    add(
        "Chimney",
        lathe([(0.06, 0), (0.06, 0.16), (0.1, 0.26), (0.1, 0.29)]),
        plain("Chimney", NAVY),
        parent=front,
        at=(0.24, 0, 0.5),
    )
    for name, paint, behind in (("Wagon 1", wagons[0], 0.31), ("Wagon 2", wagons[1], 0.62)):
        body = car(name, behind)
        add(f"{name} box", box(0.56, 0.42, 0.34), paint, parent=body, at=(0, 0, 0.31), bevel=0.03)
    add("Cargo", sphere(0.17), plain("Cargo", PLUM), parent=body, at=(0.1, 0, 0.52))
    add("Cargo 2", sphere(0.13), plain("Cargo 2", LEAF), parent=body, at=(-0.14, 0.04, 0.51))


def make_ball() -> None:
    paint = Paint("Ball", roughness=0.45, specular=0.3)
    panels = paint.bands(paint.angle(6 / 6), [CORAL, CREAM, MUSTARD, CREAM, TEAL, CREAM])
    radius = 0.36
    ball = add("Ball", sphere(radius), paint.done(panels))
    start, way = Vector((0.42, -1.3, radius)), Vector((0.72, 0.5, 0)).normalized()
    tilt = Euler((0.5, 0.9, 0.3)).to_matrix()

    def roll(s: float) -> Pose:
        gone = 0.62 * s
        turn = Matrix.Rotation(gone / radius, 3, Vector((0, 0, 1)).cross(way)) @ tilt
        return start + way * gone, turn.to_euler("XYZ"), still()

    animate(ball, roll)


def make_top() -> None:
    paint = Paint("Top", roughness=0.5, specular=0.25)
    sectors = paint.bands(paint.angle(8), [PLUM, CREAM])
    rim = paint.bands(paint.angle(8 / 2), [MUSTARD, TEAL, MUSTARD, CORAL])
    colour = paint.mix(paint.math("LESS_THAN", paint.radius(1.0), 0.3), rim, sectors)
    top = add(
        "Top",
        lathe(
            [
                (0.015, 0.0),
                (0.05, 0.06),
                (0.42, 0.36),
                (0.45, 0.42),
                (0.42, 0.48),
                (0.1, 0.56),
                (0.06, 0.6),
                (0.055, 0.84),
                (0.03, 0.87),
            ]
        ),
        paint.done(colour),
    )

    def spin(s: float) -> Pose:
        lean = Matrix.Rotation(0.16, 3, Vector((math.cos(1.5 * s), math.sin(1.5 * s), 0)))
        turn = lean @ Matrix.Rotation(math.radians(80) * s, 3, "Z")
        return Vector((1.22, 0.85, 0.0)), turn.to_euler("XYZ"), still()

    animate(top, spin)


def make_box() -> None:
    paint = Paint("Box")
    cube = add(
        "Box", box(0.6, 0.6, 0.6), paint.done(paint.dots(TEAL, CREAM, 3.33, 0.3)), bevel=0.06
    )
    for vertex in cube.data.vertices:
        vertex.co.z += 0.3  # stands on its origin, so that it squashes onto the table

    def hop(s: float) -> Pose:
        length = 0.9
        turn = (s / length) % 1.0
        ground = 0.3  # part of a hop spent squashed on the table
        if turn < ground:
            dip = math.sin(math.pi * turn / ground)
            height, tall = 0.0, 1.0 - 0.2 * dip
        else:
            air = (turn - ground) / (1 - ground)
            height, tall = 0.42 * 4 * air * (1 - air), 1.0 + 0.1 * abs(1 - 2 * air)
            tall -= 0.1 * abs(1 - 2 * air) ** 8
        wide = 1 / math.sqrt(tall)
        return (
            Vector((-0.42, -1.12, height)),
            Euler((0, 0, 0.5 + 0.35 * s)),
            Vector((wide, wide, tall)),
        )

    animate(cube, hop)


def make_rings() -> None:
    """A stacking toy whose rings sway."""
    base = empty("Stack", at=(-1.15, 0.62, 0.0))
    add(
        "Stack foot",
        lathe([(0.4, 0.0), (0.42, 0.05), (0.38, 0.1), (0.07, 0.11), (0.07, 1.0), (0.03, 1.06)]),
        plain("Stack foot", SAND),
        parent=base,
    )
    sizes = ((0.3, CORAL), (0.25, MUSTARD), (0.2, LEAF), (0.15, NAVY))
    for i, (radius, colour) in enumerate(sizes):
        paint = Paint(f"Ring {i}")
        hoop = add(
            f"Ring {i}",
            ring(radius, 0.115),
            paint.done(paint.bands(paint.angle(6), [colour, colour, CREAM])),
            parent=base,
        )
        animate(
            hoop,
            lambda s, i=i: (
                Vector((0, 0, 0.22 + 0.215 * i)),
                Euler((0, 0, (-1) ** i * math.radians(30) * s)),
                still(),
            ),
        )
    animate(
        base,
        lambda s: (
            Vector((-1.15, 0.62, 0.0)),
            Euler((0.09 * math.sin(2.6 * s), 0.07 * math.cos(2.6 * s), 0)),
            still(),
        ),
    )


def make_trees() -> None:
    for i, (x, y, size) in enumerate(((-1.42, -0.42, 0.9), (0.3, 1.3, 1.0), (-0.45, 1.38, 0.75))):
        bark = Paint(f"Trunk {i}")
        add(
            f"Trunk {i}",
            lathe([(0.08 * size, 0), (0.07 * size, 0.3 * size)]),
            bark.done(bark.wood("#8C6A48", "#6E4F33", 4.0, (3, 3, 0.6))),
            at=(x, y, 0),
        )
        leaves = Paint(f"Leaves {i}")
        add(
            f"Tree {i}",
            lathe(
                [
                    (0.26 * size, 0.25 * size),
                    (0.28 * size, 0.29 * size),
                    (0.02 * size, 1.0 * size),
                    (0.01 * size, 1.0 * size),
                ]
            ),
            leaves.done(leaves.dots(LEAF, MINT, 4.2, 0.3, 0.7)),
            at=(x, y, 0),
        )


# ---- the scene ----


def build(scene: bpy.types.Scene | None = None) -> bpy.types.Scene:
    """Make the example in a fresh, unsaved file and return its scene.

    Add-ons stay enabled. With `scene`, builds there instead, beside whatever it holds.
    """
    if scene is None:
        bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
        scene = bpy.context.scene
    scene.name = "Toy table"
    scene.frame_start, scene.frame_end = FRAME_START, FRAME_END
    scene.render.fps, scene.render.fps_base = FPS, 1.0
    make_table()
    make_windmill()
    make_train()
    make_ball()
    make_top()
    make_box()
    make_rings()
    make_trees()
    make_light(scene)
    make_camera(scene)
    set_render(scene)
    scene.cursor.location = TARGET
    scene.frame_set(FRAME_START)
    bpy.context.view_layer.update()
    return scene


def make_light(scene: bpy.types.Scene) -> None:
    sun = bpy.data.objects.new("Sun", bpy.data.lights.new("Sun", "SUN"))
    sun.data.energy, sun.data.angle = 3.4, math.radians(14)
    sun.data.color = linear("#FFF1DC")[:3]
    sun.rotation_euler = (math.radians(38), math.radians(8), math.radians(20))
    scene.collection.objects.link(sun)
    world = bpy.data.worlds.new("Sky")
    world.use_nodes = True
    background = next(n for n in world.node_tree.nodes if n.type == "BACKGROUND")
    background.inputs["Color"].default_value = linear(SKY)
    background.inputs["Strength"].default_value = 1.0
    scene.world = world


def make_camera(scene: bpy.types.Scene) -> None:
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    camera.data.lens = 63
    azimuth, elevation, distance = math.radians(-82), math.radians(36), 10.6
    level = distance * math.cos(elevation)
    place = Vector(TARGET) + Vector(
        (level * math.cos(azimuth), level * math.sin(azimuth), distance * math.sin(elevation))
    )
    look = (Vector((0.0, 0.0, -0.1)) - place).to_track_quat("-Z", "Y")
    camera.matrix_world = Matrix.LocRotScale(place, look, None)
    scene.collection.objects.link(camera)
    scene.camera = camera


def set_render(scene: bpy.types.Scene) -> None:
    """Cycles on the CPU, few samples, denoised where this Blender can; colours as chosen."""
    render = scene.render
    render.engine = "CYCLES"
    render.resolution_x = render.resolution_y = 512
    render.resolution_percentage = 100
    render.use_persistent_data = True
    cycles = scene.cycles
    cycles.device = "CPU"
    # Against 200 samples, 12 lie at 37.8 dB and 24 (without prefilter) at 40.7.
    cycles.samples = 16
    cycles.denoising_quality = cycles.denoising_prefilter = "FAST"
    cycles.use_adaptive_sampling = False
    cycles.max_bounces = 3
    cycles.diffuse_bounces = 2
    cycles.glossy_bounces = 1
    cycles.transmission_bounces = cycles.volume_bounces = 0
    cycles.caustics_reflective = cycles.caustics_refractive = False
    cycles.use_denoising = has_denoiser()
    cycles.seed = 1
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    scene.display_settings.display_device = "sRGB"


def has_denoiser() -> bool:
    """Whether this Blender was built with Open Image Denoise; some distributions' is not."""
    try:
        import _cycles
    except ImportError:
        return False
    return bool(getattr(_cycles, "with_openimagedenoise", False))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Write the example scene as a .blend.")
    parser.add_argument("out", type=Path, metavar="OUT.blend")
    out = parser.parse_args(arguments).out.resolve()
    build()
    bpy.ops.wm.save_as_mainfile(filepath=str(out), compress=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
