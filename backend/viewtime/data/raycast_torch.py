# SPDX-License-Identifier: Apache-2.0
"""The ray caster of raycast.py in torch: whole view x time grids at once, on the training device.

It draws the same scenes with the same textures, light and shadows; it never makes up a scene.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from viewtime.data import raycast as rc
from viewtime.data.synthetic import Scene, random_rig, random_scene, solid_arrays
from viewtime_formats.rig import Rig

_T_MIN = 1e-4
_FAR = 400.0  # scene units; the ground ends there, as in raycast.cast
_INF = float("inf")


def sample_grid_on(
    device: torch.device | str,
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
    dtype: torch.dtype = torch.float32,
    rays_at_once: int = 1 << 21,
) -> tuple[Tensor, Tensor, Rig]:
    """`synthetic.sample_grid` on a device: the same scene and rig for the same arguments.

    Returns frames (V,T,3,H,W) display sRGB in [0, 1] and depth (V,T,H,W) planar z, inf for the sky,
    both of `dtype` on `device`, and the rig. Nothing goes through host memory but the scene.
    """
    scene = random_scene(seed, still=still, ground=ground)
    rig = random_rig(seed, scene, views, size, size if height is None else height)
    moments = [first_time + t * frame_step for t in range(times)]
    frames, depth = render_grid(
        scene, rig, moments, device=device, dtype=dtype, rays_at_once=rays_at_once
    )
    return frames, depth, rig


@torch.no_grad()
def render_grid(
    scene: Scene,
    rig: Rig,
    moments: list[float],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    rays_at_once: int = 1 << 21,
) -> tuple[Tensor, Tensor]:
    """A scene seen by every camera of a rig (one picture size) at moments in frames.

    rays_at_once bounds memory (a ray takes up to 1 KB in float32); five are cast per pixel.
    Returns frames (V,T,3,H,W) and depth (V,T,H,W) as `sample_grid_on` says.
    """
    cameras = rig.cameras
    width, height = cameras[0].width, cameras[0].height
    views, times = len(cameras), len(moments)
    kinds, world = _world(scene, moments, device, dtype)
    poses = np.stack([camera.world_from_camera[:3] for camera in cameras])  # (V,3,4)
    rays = np.stack([_pixel_rays(c.intrinsics, width, height) for c in cameras])  # (V,H*W*5,3)
    place = _tensor(poses[:, :, 3], device, dtype)
    toward = _tensor(rays, device, dtype) @ _tensor(poses[:, :, :3], device, dtype).mT
    frames = torch.empty(views, times, 3, height, width, device=device, dtype=dtype)
    depth = torch.empty(views, times, height, width, device=device, dtype=dtype)
    cells = [(v, t) for v in range(views) for t in range(times)]
    count = max(1, rays_at_once // (5 * width * height))
    for first in range(0, len(cells), count):
        v, t = torch.tensor(cells[first : first + count], device=device).T
        linear, reach = _cast(place[v], toward[v], kinds, {k: x[t] for k, x in world.items()})
        shape = (len(v), height, width, 4, 3)
        color = linear.reshape(shape).mean(3)
        shown = _display(color, float(scene.light[rc.SHOULDER]))
        frames[v, t] = shown.permute(0, 3, 1, 2)
        depth[v, t] = reach.reshape(shape[:3])
    return frames, depth


def _world(
    scene: Scene, moments: list[float], device: Any, dtype: torch.dtype
) -> tuple[list[int], dict[str, Tensor]]:
    """The kinds of the N solids, and the scene's arrays with the T moments in front."""
    solids = [solid_arrays(scene, moment) for moment in moments]
    first, times = solids[0], len(moments)

    def same(x: Any) -> Tensor:
        x = _tensor(x, device, dtype)
        return x.expand(times, *x.shape)

    world = {
        "half": same(first.half),  # (T,N,3)
        "materials": same(first.materials),  # (T,N+1,M)
        "light": same(scene.light),  # (T,L)
        "suns": same(_sun_directions(scene.light)),  # (T,4,4 or 1,3)
        "ground": same([float(scene.ground is not None)]),  # (T,1)
        "rotations": _tensor(np.stack([s.rotations for s in solids]), device, dtype),  # (T,N,3,3)
        "centres": _tensor(np.stack([s.centres for s in solids]), device, dtype),  # (T,N,3)
    }
    return [int(kind) for kind in first.kinds], world


def _tensor(values: Any, device: Any, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=dtype, device=device)


def _pixel_rays(intrinsics: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H*W*5, 3) camera rays with z = 1: the 2x2 colour samples, then the centre for the depth."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    dx, dy = np.array([[0.25, 0.75, 0.25, 0.75, 0.5], [0.25, 0.25, 0.75, 0.75, 0.5]])
    x = (x[..., None] + dx - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (y[..., None] + dy - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)


def _sun_directions(light: np.ndarray) -> np.ndarray:
    """(4 subsamples, 4, 3) directions spread over the sun's disk; (4, 1, 3) when it is a point."""
    sun = light[rc.SUN : rc.SUN + 3]
    length = np.hypot(sun[0], sun[1]) + 1e-9
    u = np.array([-sun[1], sun[0], 0.0]) / length
    v = np.array([-u[1] * sun[2], u[0] * sun[2], u[1] * sun[0] - u[0] * sun[1]])
    sub, n = np.mgrid[0:4, 0 : 4 if light[rc.SOFTNESS] > 0 else 1]
    radius = light[rc.SOFTNESS] * np.sqrt((n + 0.125 + 0.25 * ((sub * 3) & 3)) / 4.0)
    angle = 2.399963 * (n * 4 + sub)
    a, b = (radius * np.cos(angle))[..., None], (radius * np.sin(angle))[..., None]
    return sun + a * u + b * v


# ---- rays and solids -----------------------------------------------------------------------------


def _cast(
    place: Tensor, toward: Tensor, kinds: list[int], world: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Linear light (C,pixels*4,3) and depth (C,pixels) of C cells; place (C,3), toward (C,R,3)."""
    light = world["light"]
    count = len(kinds)
    hit = torch.full(toward.shape[:2], -1, dtype=torch.int64, device=toward.device)
    best = torch.full(toward.shape[:2], _INF, dtype=toward.dtype, device=toward.device)
    dz, eye_z = toward[..., 2], place[:, 2, None]
    floor = -eye_z / dz
    under = (world["ground"] > 0) & (dz < -1e-9) & (eye_z > 0) & (floor <= _FAR)
    best, hit = torch.where(under, floor, best), torch.where(under, count, hit)
    for i, kind in enumerate(kinds):
        turn = world["rotations"][:, i]
        origin = ((place - world["centres"][:, i])[:, None] @ turn).expand_as(toward)
        reach = _intersect(kind, world["half"][:, i], origin, toward @ turn)
        nearer = reach < best
        best, hit = torch.where(nearer, reach, best), torch.where(nearer, i, hit)
    cells = toward.shape[0]
    depth = best.view(cells, -1, 5)[:, :, 4]
    best, hit = (x.view(cells, -1, 5)[:, :, :4].reshape(cells, -1) for x in (best, hit))
    toward = toward.view(cells, -1, 5, 3)[:, :, :4].reshape(cells, -1, 3)
    length = toward.norm(dim=-1, keepdim=True)

    up = (toward[..., 2:] / length).clamp(0, 1)
    horizon, zenith = _three(light, rc.HORIZON), _three(light, rc.ZENITH)
    sky = horizon + (zenith - horizon) * up
    point = place[:, None] + torch.where(hit < 0, 1.0, best)[..., None] * toward
    lit = _shade(kinds, world, point, toward / length, hit.clamp(min=0))
    return torch.where((hit < 0)[..., None], sky, lit), depth


def _intersect(kind: int, half: Tensor, origin: Tensor, toward: Tensor) -> Tensor:
    """First ray parameter > _T_MIN at the solid, in its frame; inf if none. half (C,3) and rays
    (C,R,3) give (C,R)."""
    half = half[:, None]
    if kind == rc.ELLIPSOID:
        near, far = _ball(origin / half, toward / half, 1.0)
    elif kind == rc.BOX:
        low, high = _slab(origin, toward, half)  # (C,R,3)
        near, far = low.amax(-1), high.amin(-1)
    else:  # round side of radius hx about z, |z| <= hz; a capsule adds a ball at either end
        radius, end = half[..., 0], half[..., 2]
        a, b, c = _quadratic(origin[..., :2], toward[..., :2], radius)
        disc = b * b - a * c
        along = a < 1e-12
        miss = torch.where(along, c > 0, disc <= 0)
        root = disc.clamp(min=0).sqrt()
        divisor = torch.where(along, 1.0, a)
        low = torch.where(along, -_INF, (-b - root) / divisor)
        high = torch.where(along, _INF, (-b + root) / divisor)
        floor, roof = _slab(origin[..., 2], toward[..., 2], end)
        low, high = torch.maximum(low, floor), torch.minimum(high, roof)
        miss |= low > high
        near, far = torch.where(miss, _INF, low), torch.where(miss, -_INF, high)
        if kind == rc.CAPSULE:
            for sign in (-1.0, 1.0):
                shift = torch.zeros_like(half)
                shift[..., 2] = sign * end
                low, high = _ball(origin - shift, toward, radius)
                near, far = torch.minimum(near, low), torch.maximum(far, high)
    first = torch.where(near > _T_MIN, near, torch.where(far > _T_MIN, far, _INF))
    return torch.where(near > far, _INF, first)


def _quadratic(origin: Tensor, toward: Tensor, radius: Any) -> tuple[Tensor, Tensor, Tensor]:
    a, b = (toward * toward).sum(-1), (origin * toward).sum(-1)
    return a, b, (origin * origin).sum(-1) - radius * radius


def _ball(origin: Tensor, toward: Tensor, radius: Any) -> tuple[Tensor, Tensor]:
    """Entry and exit through a ball at the origin, (inf, -inf) where it is missed."""
    a, b, c = _quadratic(origin, toward, radius)
    disc = b * b - a * c
    root = disc.clamp(min=0).sqrt()
    miss = disc <= 0
    return torch.where(miss, _INF, (-b - root) / a), torch.where(miss, -_INF, (-b + root) / a)


def _slab(origin: Tensor, toward: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays are within |x| <= half, axis by axis."""
    flat = toward.abs() < 1e-12
    inverse = 1.0 / torch.where(flat, 1.0, toward)
    a, b = (-half - origin) * inverse, (half - origin) * inverse
    outside = flat & (origin.abs() > half)
    low = torch.where(outside, _INF, torch.where(flat, -_INF, torch.minimum(a, b)))
    return low, torch.where(outside, -_INF, torch.where(flat, _INF, torch.maximum(a, b)))


# ---- light ---------------------------------------------------------------------------------------


def _three(rows: Tensor, first: int) -> Tensor:
    """A colour or direction of each cell's light (C,L), to go with its rays: (C,1,3)."""
    return rows[:, None, first : first + 3]


def _shade(
    kinds: list[int], world: dict[str, Tensor], point: Tensor, toward: Tensor, hit: Tensor
) -> Tensor:
    """Light (C,R,3) from points (C,R,3) of solids hit (C,R) towards the eye; toward is unit."""
    light, sun = world["light"], _three(world["light"], rc.SUN)
    local, normal, u, v = _surface(kinds, world, point, hit)
    material = world["materials"].gather(
        1, hit[..., None].expand(*hit.shape, rc.MATERIAL_SIZE)
    )  # (C,R,M)
    mix = _mix(material, local, u, v)[..., None]
    grain = material[..., rc.GRAIN, None]
    fine = local * (material[..., rc.SCALE, None] * 3.7)
    fine = fine + torch.tensor([7.0, 0.0, 3.0], device=fine.device, dtype=fine.dtype)
    shade = 1.0 + grain * (_value_noise(fine)[..., None] - 0.5)
    facing = (normal * sun).sum(-1, keepdim=True)
    visible = _visibility(kinds, world, point + 1e-4 * normal)[..., None]
    visible = torch.where(facing > 0, visible, 0.0)
    between = sun - toward  # Blinn's half vector between sun and eye
    cosine = (normal * between).sum(-1, keepdim=True)
    cosine = (cosine / ((between * between).sum(-1, keepdim=True) + 1e-12).sqrt()).clamp(min=0)
    glint = visible * material[..., rc.GLOSS, None] * cosine ** material[..., rc.EXPONENT, None]
    glint = torch.where(cosine > 0, glint, 0.0)
    direct = facing.clamp(min=0) * visible
    sunlight = _three(light, rc.SUN_COLOR)
    first = material[..., rc.COLOR_A : rc.COLOR_A + 3]
    second = material[..., rc.COLOR_B : rc.COLOR_B + 3]
    albedo = first * (1.0 - mix) + second * mix
    received = _three(light, rc.AMBIENT) * (0.7 + 0.3 * normal[..., 2:]) + sunlight * direct
    return albedo * shade * received + glint * sunlight


def _surface(
    kinds: list[int], world: dict[str, Tensor], point: Tensor, hit: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points in their body's frame (C,R,3), world normals (C,R,3) and texture places u, v (C,R).

    Starts with the ground, whose frame is the world, and lays the solids over it.
    """
    local = point * torch.tensor([1.0, 1.0, 0.0], device=point.device, dtype=point.dtype)
    normal = torch.zeros_like(point)
    normal[..., 2] = 1.0
    u, v = point[..., 0], point[..., 1]
    for i, kind in enumerate(kinds):
        turn, half = world["rotations"][:, i], world["half"][:, i, None]
        body = (point - world["centres"][:, i, None]) @ turn
        outward, across, along = _normal(kind, half, body)
        here = hit == i
        local = torch.where(here[..., None], body, local)
        normal = torch.where(here[..., None], outward @ turn.mT, normal)
        u, v = torch.where(here, across, u), torch.where(here, along, v)
    return local, normal, u, v


def _normal(kind: int, half: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outward unit normal (C,R,3) at surface points of a solid, and texture places (C,R)."""
    x, y, z = p.unbind(-1)
    side = p[..., :2].norm(dim=-1)
    if kind == rc.BOX:
        share = p.abs() / half
        axis = share.argmax(-1)  # ties go to the first, as in raycast
        sign = torch.where(torch.signbit(p), -1.0, 1.0).to(p.dtype)
        normal = torch.nn.functional.one_hot(axis, 3).to(p.dtype) * sign
        return normal, torch.where(axis == 0, y, x), torch.where(axis == 2, y, z)
    if kind == rc.ELLIPSOID:
        normal = p / (half * half)
    elif kind == rc.CYLINDER:
        normal = torch.stack([x, y, torch.zeros_like(z)], -1)
    else:
        end = half[..., 2]
        normal = torch.stack([x, y, z - torch.minimum(torch.maximum(z, -end), end)], -1)
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    u, v = torch.atan2(y, x) * half[..., 0], z
    if kind == rc.CYLINDER:
        cap = half[..., 2] - z.abs() < half[..., 0] - side
        lid = torch.stack([torch.zeros_like(z)] * 2 + [torch.where(z < 0, -1.0, 1.0)], -1)
        normal = torch.where(cap[..., None], lid.to(p.dtype), normal)
        u, v = torch.where(cap, x, u), torch.where(cap, y, v)
    return normal, u, v


def _visibility(kinds: list[int], world: dict[str, Tensor], point: Tensor) -> Tensor:
    """Share of the sun (C,R) seen from points (C,R,3), a pixel's four subsamples in a row."""
    cells, rays = point.shape[:2]
    suns = world["suns"]  # (C,4 subsamples,S samples,3)
    samples = suns.shape[2]
    toward = suns.transpose(1, 2)  # (C,S,4,3)
    toward = toward.repeat(1, 1, rays // 4, 1).view(cells, samples * rays, 3)
    free = torch.ones(cells, samples * rays, dtype=torch.bool, device=point.device)
    for i, kind in enumerate(kinds):
        turn = world["rotations"][:, i]
        origin = ((point - world["centres"][:, i, None]) @ turn).repeat(1, samples, 1)
        free &= _intersect(kind, world["half"][:, i], origin, toward @ turn) == _INF
    return free.view(cells, samples, rays).to(point.dtype).mean(1)


# ---- textures ------------------------------------------------------------------------------------


def _hash(x: Tensor, y: Tensor, z: Tensor | int) -> Tensor:
    """Pseudo-random numbers in [0, 1) of lattice points (int64), those of raycast."""
    h = (x * 374761393 + y * 668265263 + z * 2147483647) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) * (1.0 / 65536.0)


def _value_noise(p: Tensor) -> Tensor:
    """Smooth lattice noise (...) in [0, 1) at points (...,3), one feature per unit."""
    floor = p.floor()
    i, j, k = floor.long().unbind(-1)
    x, y, z = (p - floor).unbind(-1)
    x, y, z = x * x * (3 - 2 * x), y * y * (3 - 2 * y), z * z * (3 - 2 * z)
    total = torch.zeros_like(x)
    for dk in (0, 1):
        a = torch.lerp(_hash(i, j, k + dk).to(x), _hash(i + 1, j, k + dk).to(x), x)
        b = torch.lerp(_hash(i, j + 1, k + dk).to(x), _hash(i + 1, j + 1, k + dk).to(x), x)
        total += (z if dk else 1 - z) * torch.lerp(a, b, y)
    return total


def _mix(material: Tensor, local: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Weight of the second colour (C,R), in [0, 1], of materials (C,R,M) at points of bodies."""
    scale = material[..., rc.SCALE]
    phase = material[..., rc.PHASE : rc.PHASE + 3]
    p = local * scale[..., None] + phase
    x, y, z = p.unbind(-1)
    floor = p.floor()
    stripe = x * 0.8 + y * 0.35 + z * 0.6
    smooth = _value_noise(p)
    cloud = 0.65 * smooth + 0.35 * _value_noise(2.3 * p)
    bu, bv = u * scale + phase[..., 0], v * scale * 2.0 + phase[..., 1]
    row = bv.floor()
    bu = bu + 0.5 * (row.long() & 1)
    bu, bv = bu - bu.floor(), bv - row
    brick = 0.25 * _hash(row.long(), (bu * 7).long(), 3).to(p)
    patterns = {
        rc.CHECKER: (floor.sum(-1).long() & 1).to(p),
        rc.STRIPES: (stripe - stripe.floor() < 0.5).to(p),
        rc.NOISE: ((cloud - 0.3) * 2.5).clamp(0, 1),
        rc.BRICK: torch.where((bu < 0.06) | (bv < 0.12), 1.0, brick),
        rc.DOTS: ((p - floor - 0.5).square().sum(-1) < 0.13).to(p),
        rc.MARBLE: 0.5 + 0.5 * torch.sin(4.0 * x + 2.0 * y + 6.0 * smooth),
    }
    mix = torch.zeros_like(x)
    for texture, pattern in patterns.items():
        mix = torch.where(material[..., rc.TEXTURE] == texture, pattern, mix)
    return mix


def _display(linear: Tensor, shoulder: float) -> Tensor:
    """Linear light to display sRGB in [0, 1]; shoulder > 0 rolls highlights off smoothly."""
    x = linear.clamp(min=0)
    if shoulder > 0:
        x = x * (1.0 + shoulder) / (1.0 + shoulder * x)
    x = x.clamp(0, 1)
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp(min=1e-6) ** (1 / 2.4) - 0.055)
