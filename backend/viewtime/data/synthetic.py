# SPDX-License-Identifier: Apache-2.0
"""Procedural 4D scenes: moving textured solids under a sun, seen by an arc of cameras.

Everything follows from a seed; nothing is read from disk and no random state is shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from viewtime.data import raycast as rc
from viewtime.grid import FrameGrid
from viewtime_formats.rig import Camera, Rig


@dataclass(frozen=True)
class Motion:
    """Path of a body: a swing or circle in the plane, hops, and a spin, by frames of time."""

    swing: np.ndarray = field(default_factory=lambda: np.zeros(3))  # (3,) amplitude, scene units
    cross: np.ndarray = field(default_factory=lambda: np.zeros(3))  # (3,) quarter period later
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(3))  # (3,) units per frame
    period: float = 16.0  # frames
    phase: float = 0.0  # radians
    hop: float = 0.0  # height of the bounces, scene units
    axis: np.ndarray = field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))  # unit
    spin: float = 0.0  # radians per frame

    def offset(self, time: float) -> np.ndarray:
        """Displacement (3,) from the body's place, in scene units."""
        angle = 2.0 * math.pi * time / self.period + self.phase
        path = self.swing * math.sin(angle) + self.cross * math.cos(angle) + self.velocity * time
        return path + np.array([0.0, 0.0, self.hop * abs(math.sin(angle))])

    def rotation(self, time: float) -> np.ndarray:
        """Rotation matrix (3,3) reached at a time in frames."""
        return _rotation(self.axis, self.spin * time)


@dataclass(frozen=True)
class Solid:
    """One primitive fixed to a body: kind, half sizes (3,), pose in the body, material row."""

    kind: int
    half: np.ndarray
    material: np.ndarray
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    offset: np.ndarray = field(default_factory=lambda: np.zeros(3))

    @property
    def bound(self) -> float:
        """Radius of a ball about the solid's centre that holds it."""
        x, y, z = (float(v) for v in self.half)
        if self.kind == rc.ELLIPSOID:
            return max(x, y, z)
        if self.kind == rc.BOX:
            return math.sqrt(x * x + y * y + z * z)
        return math.hypot(x, z) if self.kind == rc.CYLINDER else x + z


@dataclass(frozen=True)
class Body:
    """Solids that move together, from a pose at time 0."""

    solids: tuple[Solid, ...]
    place: np.ndarray  # (3,)
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    motion: Motion = field(default_factory=Motion)


@dataclass(frozen=True)
class Scene:
    """A scene in Blender's world (Z up). `light` follows the layout of raycast.LIGHT_SIZE."""

    bodies: tuple[Body, ...]
    light: np.ndarray
    ground: np.ndarray | None = None  # material row, or None: no ground
    target: np.ndarray = field(default_factory=lambda: np.array([0.0, 0.0, 0.6]))
    radius: float = 2.0  # about how far the subject reaches from the target, scene units

    @property
    def background(self) -> np.ndarray:
        """(3,) display colour of the sky at the horizon."""
        return _display(self.light[rc.HORIZON : rc.HORIZON + 3], self.light[rc.SHOULDER])


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * (cross @ cross)


def _display(linear: np.ndarray, shoulder: float) -> np.ndarray:
    """Linear light to display sRGB in [0, 1]; shoulder > 0 rolls highlights off smoothly."""
    x = np.maximum(linear, 0.0)
    if shoulder > 0.0:
        x = x * (1.0 + shoulder) / (1.0 + shoulder * x)
    x = np.clip(x, 0.0, 1.0)
    low = x * 12.92
    return np.where(x <= 0.0031308, low, 1.055 * np.power(np.maximum(x, 1e-6), 1.0 / 2.4) - 0.055)


def _color(rng: np.random.Generator, saturation: float) -> np.ndarray:
    """A linear albedo between nearly black and nearly white."""
    hue, value = rng.uniform(0.0, 6.0), rng.uniform(0.08, 0.85) ** 1.3
    rgb = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0, 0.0, 1.0)
    return value * (1.0 - saturation * (1.0 - rgb))


def _material(rng: np.random.Generator, size: float, ground: bool = False) -> np.ndarray:
    """A random material row for a body of about `size` scene units."""
    row = np.zeros(rc.MATERIAL_SIZE)
    weights = np.array(
        [1.0, 2.5, 1.0, 2.5, 1.5, 1.0, 0.8] if ground else [2.0, 1.5, 1.5, 1.8, 1.2, 1.2, 1.0]
    )
    row[rc.TEXTURE] = rng.choice(7, p=weights / weights.sum())
    row[rc.SCALE] = rng.uniform(0.8, 3.0) if ground else rng.uniform(1.2, 4.5) / size
    row[rc.PHASE : rc.PHASE + 3] = rng.uniform(0.05, 7.0, 3)
    row[rc.COLOR_A : rc.COLOR_A + 3] = _color(rng, rng.uniform(0.0, 1.0))
    second = _color(rng, rng.uniform(0.0, 1.0))
    if rng.random() < 0.4:  # a tint of the first rather than a colour of its own
        second = row[rc.COLOR_A : rc.COLOR_A + 3] * rng.uniform(0.2, 0.75)
    row[rc.COLOR_B : rc.COLOR_B + 3] = second
    row[rc.GRAIN] = rng.uniform(0.0, 0.7) if rng.random() < 0.5 else 0.0
    if rng.random() < (0.1 if ground else 0.4):
        row[rc.GLOSS], row[rc.EXPONENT] = rng.uniform(0.05, 0.6), rng.uniform(8.0, 120.0)
    return row


def _light(rng: np.random.Generator) -> np.ndarray:
    light = np.zeros(rc.LIGHT_SIZE)
    height, turn = rng.uniform(0.35, 1.4), rng.uniform(0.0, 2.0 * math.pi)
    light[rc.SUN : rc.SUN + 3] = (
        math.cos(height) * math.cos(turn),
        math.cos(height) * math.sin(turn),
        math.sin(height),
    )
    light[rc.SOFTNESS] = 0.0 if rng.random() < 0.35 else rng.uniform(0.02, 0.25)
    light[rc.SUN_COLOR : rc.SUN_COLOR + 3] = rng.uniform(0.5, 1.7) * np.array(
        [1.0, rng.uniform(0.85, 1.0), rng.uniform(0.7, 1.0)]
    )
    light[rc.AMBIENT : rc.AMBIENT + 3] = rng.uniform(0.12, 0.6) * np.array(
        [rng.uniform(0.8, 1.0), rng.uniform(0.9, 1.0), 1.0]
    )
    horizon = _color(rng, rng.uniform(0.0, 0.6))
    if rng.random() < 0.5:
        horizon = np.full(3, rng.uniform(0.02, 0.9)) * rng.uniform(0.9, 1.0, 3)
    light[rc.HORIZON : rc.HORIZON + 3] = horizon
    plain = rng.random() < 0.6
    light[rc.ZENITH : rc.ZENITH + 3] = horizon if plain else _color(rng, rng.uniform(0.0, 0.8))
    light[rc.SHOULDER] = rng.choice([0.0, 0.0, rng.uniform(0.3, 2.0)])
    return light


def _unit(rng: np.random.Generator) -> np.ndarray:
    v = rng.normal(size=3)
    return v / np.linalg.norm(v)


def _solid(rng: np.random.Generator, size: float) -> Solid:
    kind = int(rng.choice(4, p=[0.35, 0.3, 0.2, 0.15]))
    half = size * rng.uniform(0.45, 1.0, 3)
    if kind == rc.ELLIPSOID and rng.random() < 0.5:
        half[:] = size * 0.9
    if kind in (rc.CYLINDER, rc.CAPSULE):
        half[:2] = size * rng.uniform(0.25, 0.7)
        half[2] = size * rng.uniform(0.4, 1.1)
    return Solid(kind, half, _material(rng, size))


def _motion(rng: np.random.Generator, size: float, speed: float) -> Motion:
    """A motion of about `speed` body sizes per frame; about a third of the bodies stand still."""
    if rng.random() < 0.3:
        return Motion()
    period = rng.uniform(10.0, 40.0)
    amplitude = min(speed * size * period / (2.0 * math.pi), 1.6)
    turn = rng.uniform(0.0, 2.0 * math.pi)
    along = amplitude * np.array([math.cos(turn), math.sin(turn), 0.0])
    kind = int(rng.integers(4))
    spin = rng.uniform(-0.35, 0.35) if rng.random() < 0.7 else 0.0
    axis = _unit(rng) if rng.random() < 0.4 else np.array([0.0, 0.0, 1.0])
    phase = rng.uniform(0.0, 2.0 * math.pi)
    hop = rng.uniform(0.2, 1.2) * size if kind == 2 or rng.random() < 0.15 else 0.0
    cross = np.array([-along[1], along[0], 0.0]) if kind == 1 else np.zeros(3)
    if kind == 2:
        along = along * 0.3
    if kind == 3:
        along = along * 0.0
    return Motion(along, cross, np.zeros(3), period, phase, hop, axis, spin)


def random_scene(seed: int, *, still: bool = False, ground: bool | None = None) -> Scene:
    """A scene of 2 to 7 bodies, very different from seed to seed. still=True: nothing moves.

    ground: True, there is one; False, the bodies float before plain white, as renders of single
    objects do; None leaves it to the seed.
    """
    rng = np.random.default_rng([seed, 11])
    speed = 0.0 if still else rng.choice([0.04, 0.1, 0.2, 0.35]) * rng.uniform(0.6, 1.4)
    has_ground = rng.random() < 0.88
    has_ground = has_ground if ground is None else ground
    white = ground is False
    bodies: list[Body] = []
    spread = rng.uniform(0.9, 2.2)
    for _ in range(int(rng.integers(2, 8))):
        size = rng.uniform(0.22, 0.95)
        solids = [_solid(rng, size)]
        for _ in range(int(rng.choice(3, p=[0.65, 0.2, 0.15]))):
            extra = _solid(rng, size * rng.uniform(0.35, 0.7))
            away = _unit(rng) * size * rng.uniform(0.5, 1.0)
            away[2] = abs(away[2])
            solids.append(
                Solid(
                    extra.kind,
                    extra.half,
                    extra.material,
                    _rotation(_unit(rng), rng.uniform(0.0, 3.0)),
                    away,
                )
            )
        lift = float(solids[0].half[2])
        lift += size * 0.4 if solids[0].kind == rc.CAPSULE else 0.0
        place = np.zeros(3)
        for _ in range(12):
            turn, reach = rng.uniform(0.0, 2.0 * math.pi), spread * math.sqrt(rng.random())
            place = np.array([reach * math.cos(turn), reach * math.sin(turn), lift])
            if all(np.hypot(*(place - b.place)[:2]) > size + 0.3 for b in bodies):
                break
        rotation = _rotation(np.array([0.0, 0.0, 1.0]), rng.uniform(0.0, 6.3))
        if not has_ground or rng.random() < 0.25:  # floating bodies lean as they like
            rotation = _rotation(_unit(rng), rng.uniform(0.0, 3.0))
            place[2] += rng.uniform(0.0, 1.2)
        motion = Motion() if still else _motion(rng, size, speed)
        bodies.append(Body(tuple(solids), place, rotation, motion))
    if has_ground and rng.random() < 0.3:
        bodies.extend(_walls(rng, spread))
    target = np.array([*rng.uniform(-0.3, 0.3, 2), rng.uniform(0.3, 0.9)])
    floor = _material(rng, 1.0, ground=True) if has_ground else None
    light = _light(rng)
    if white:
        light[rc.HORIZON : rc.HORIZON + 3] = light[rc.ZENITH : rc.ZENITH + 3] = 1.0
        light[rc.SHOULDER] = 0.0
    return Scene(tuple(bodies), light, floor, target, spread + 0.6)


def _walls(rng: np.random.Generator, spread: float) -> list[Body]:
    """One or two still boards behind the subject, which close off part of the sky."""
    walls = []
    start = rng.uniform(0.0, 2.0 * math.pi)
    for n in range(int(rng.integers(1, 3))):
        turn = start + n * rng.uniform(1.2, 1.8)
        reach = spread + rng.uniform(1.5, 4.0)
        half = np.array([0.1, rng.uniform(1.5, 4.0), rng.uniform(0.6, 2.5)])
        place = np.array([reach * math.cos(turn), reach * math.sin(turn), half[2]])
        board = Solid(rc.BOX, half, _material(rng, 1.5, ground=True))
        walls.append(Body((board,), place, _rotation(np.array([0.0, 0.0, 1.0]), turn)))
    return walls


def look_at(
    eye: np.ndarray, target: np.ndarray, focal: float, width: int, height: int, name: str
) -> Camera:
    """An OpenCV camera at `eye` (3,) that looks at `target` (3,), upright in a Z-up world.

    focal is in pixels; the principal point is the picture's middle.
    """
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    pose = np.concatenate([rotation, (-rotation @ eye)[:, None]], axis=1)
    intrinsics = np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return Camera(name, width, height, intrinsics, pose)


def random_rig(
    seed: int,
    scene: Scene,
    views: int,
    width: int,
    height: int,
    *,
    degrees: tuple[float, float] = (40.0, 110.0),
) -> Rig:
    """Cameras on an arc around the scene's target, view 0 at one end or, sometimes, inside."""
    rng = np.random.default_rng([seed, 23])
    field_of_view = math.radians(rng.uniform(28.0, 62.0))
    focal = 0.5 * max(width, height) / math.tan(0.5 * field_of_view)
    distance = scene.radius * rng.uniform(0.75, 1.3) / math.tan(0.5 * field_of_view)
    distance = max(distance, scene.radius + 1.4)
    arc = math.radians(rng.uniform(*degrees))
    start, tilt = rng.uniform(0.0, 2.0 * math.pi), math.radians(rng.uniform(6.0, 48.0))
    slope = rng.uniform(-0.15, 0.15)
    shares = np.linspace(0.0, 1.0, views) if views > 1 else np.array([0.5])
    if rng.random() < 0.3:
        shares = shares[np.argsort(np.abs(shares - 0.5), kind="stable")]
    sign = rng.choice([-1.0, 1.0])
    cameras: list[Camera] = []
    for _ in range(10):
        cameras = []
        for v, share in enumerate(shares):
            angle = start + sign * arc * share
            pitch = max(tilt + slope * (share - 0.5) * 2.0, 0.05)
            reach = distance * (1.0 + 0.04 * rng.normal() * (rng.random() < 0.5))
            eye = scene.target + reach * np.array(
                [
                    math.cos(pitch) * math.cos(angle),
                    math.cos(pitch) * math.sin(angle),
                    math.sin(pitch),
                ]
            )
            cameras.append(look_at(eye, scene.target, focal, width, height, f"view.{v:03d}"))
        # A board or body right before a lens would hide the scene: turn the arc and look again.
        glances = [render_cell(scene, camera.resized(8, 8), 4.0)[1] for camera in cameras]
        if min(float(glance.min()) for glance in glances) > 0.3 * distance:
            break
        start += 0.7
    return Rig(tuple(cameras), world="blender")


@dataclass(frozen=True)
class SolidArrays:
    """The N solids of a scene at one time, as the ray casters take them; scene units, float64.

    kinds (N,) int64; half (N,3); rotations (N,3,3) world from solid; centres (N,3); bounds (N,)
    bounding radii; materials (N+1, MATERIAL_SIZE), the last row for the ground.
    """

    kinds: np.ndarray
    half: np.ndarray
    rotations: np.ndarray
    centres: np.ndarray
    bounds: np.ndarray
    materials: np.ndarray


def solid_arrays(scene: Scene, time: float) -> SolidArrays:
    """Where everything is at a time in frames."""
    kinds, half, rotations, centres, bounds, materials = [], [], [], [], [], []
    for body in scene.bodies:
        turn = body.motion.rotation(time) @ body.rotation
        place = body.place + body.motion.offset(time)
        for solid in body.solids:
            kinds.append(solid.kind)
            half.append(solid.half)
            rotations.append(turn @ solid.rotation)
            centres.append(place + turn @ solid.offset)
            bounds.append(solid.bound)
            materials.append(solid.material)
    count = len(kinds)
    no_ground = np.zeros(rc.MATERIAL_SIZE)
    materials.append(no_ground if scene.ground is None else scene.ground)
    return SolidArrays(
        np.array(kinds, np.int64),
        np.array(half, np.float64).reshape(count, 3),
        np.array(rotations, np.float64).reshape(count, 3, 3),
        np.array(centres, np.float64).reshape(count, 3),
        np.array(bounds, np.float64),
        np.array(materials, np.float64),
    )


def render_cell(scene: Scene, camera: Camera, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Picture and depth of a scene at a time in frames.

    Returns rgb (H,W,3) float32 display sRGB in [0, 1], the mean of 2x2 samples per pixel, and
    depth (H,W) float32 planar z at the pixel's centre, inf for the sky.
    """
    solids = solid_arrays(scene, time)
    color = np.empty((camera.height, camera.width, 3))
    depth = np.empty((camera.height, camera.width))
    rc.cast(
        camera.width,
        camera.height,
        np.ascontiguousarray(camera.intrinsics, np.float64),
        np.ascontiguousarray(np.linalg.inv(_square(camera.camera_from_world))[:3]),
        solids.kinds,
        solids.half,
        solids.rotations,
        solids.centres,
        solids.bounds,
        solids.materials,
        scene.ground is not None,
        np.ascontiguousarray(scene.light, np.float64),
        color,
        depth,
    )
    return _display(color, scene.light[rc.SHOULDER]).astype(np.float32), depth.astype(np.float32)


def _square(pose: np.ndarray) -> np.ndarray:
    return np.concatenate([pose, [[0.0, 0.0, 0.0, 1.0]]])


def sample_grid(
    seed: int,
    views: int,
    times: int,
    size: int,
    *,
    height: int | None = None,
    still: bool = False,
    ground: bool | None = None,
    first_time: float = 0.0,
    frame_step: float = 1.0,
) -> tuple[FrameGrid, Rig]:
    """A full grid of a random scene with depth, and its rig.

    size is the pictures' width in pixels (and height unless given). Cell (v, t) is camera v at
    first_time + t * frame_step frames. The same arguments give the same arrays.
    """
    height = size if height is None else height
    scene = random_scene(seed, still=still, ground=ground)
    rig = random_rig(seed, scene, views, size, height)
    frames = np.empty((views, times, 3, height, size), np.float32)
    depth = np.empty((views, times, height, size), np.float32)
    for v, camera in enumerate(rig.cameras):
        for t in range(times):
            rgb, depth[v, t] = render_cell(scene, camera, first_time + t * frame_step)
            frames[v, t] = rgb.transpose(2, 0, 1)
    return FrameGrid(frames, np.ones((views, times), bool), depth), rig
