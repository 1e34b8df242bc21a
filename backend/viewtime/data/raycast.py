# SPDX-License-Identifier: Apache-2.0
"""Analytic ray caster (numba): ellipsoids, boxes, cylinders, capsules and a ground under a sun.

It turns arrays into one picture with exact planar depth; it knows no scenes, motions or seeds.
"""

import math

import numpy as np
from numba import njit

ELLIPSOID, BOX, CYLINDER, CAPSULE = 0, 1, 2, 3
PLAIN, CHECKER, STRIPES, NOISE, BRICK, DOTS, MARBLE = 0, 1, 2, 3, 4, 5, 6

# Columns of a material row.
TEXTURE, SCALE, PHASE, COLOR_A, COLOR_B = 0, 1, 2, 5, 8
GRAIN, GLOSS, EXPONENT, MATERIAL_SIZE = 11, 12, 13, 14
# Entries of the light vector: direction to the sun, tangent of its half angle, colours.
SUN, SOFTNESS, SUN_COLOR, AMBIENT = 0, 3, 4, 7
HORIZON, ZENITH, SHOULDER, LIGHT_SIZE = 10, 13, 16, 17

_T_MIN = 1e-4
# Everything but the promise that nothing is infinite: a miss is inf.
_FAST = {"contract", "arcp", "nsz", "afn"}


@njit(cache=True, nogil=True, fastmath=_FAST, inline="always")
def _slab(origin, direction, half, near, far):
    """Narrow the interval (near, far) to the slab |x| <= half."""
    if abs(direction) < 1e-12:
        if abs(origin) > half:
            return np.inf, -np.inf
        return near, far
    inverse = 1.0 / direction
    a = (-half - origin) * inverse
    b = (half - origin) * inverse
    if a > b:
        a, b = b, a
    return max(near, a), min(far, b)


@njit(cache=True, nogil=True, fastmath=_FAST, inline="always")
def _sphere(ox, oy, oz, dx, dy, dz, radius):
    """Entry and exit of a ray through a sphere at the origin (inf, -inf where it misses)."""
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - radius * radius
    disc = b * b - a * c
    if disc <= 0.0:
        return np.inf, -np.inf
    root = math.sqrt(disc)
    return (-b - root) / a, (-b + root) / a


@njit(cache=True, nogil=True, fastmath=_FAST)
def _intersect(kind, hx, hy, hz, ox, oy, oz, dx, dy, dz):
    """First ray parameter > _T_MIN at which a ray meets the solid, in its frame; inf if none."""
    near, far = np.inf, -np.inf
    if kind == ELLIPSOID:
        near, far = _sphere(ox / hx, oy / hy, oz / hz, dx / hx, dy / hy, dz / hz, 1.0)
    elif kind == BOX:
        near, far = _slab(ox, dx, hx, -np.inf, np.inf)
        near, far = _slab(oy, dy, hy, near, far)
        near, far = _slab(oz, dz, hz, near, far)
    else:
        # Round side of radius hx about z, |z| <= hz; a capsule adds a ball at either end.
        a = dx * dx + dy * dy
        b = ox * dx + oy * dy
        c = ox * ox + oy * oy - hx * hx
        low, high = -np.inf, np.inf
        if a < 1e-12:
            if c > 0.0:
                low, high = np.inf, -np.inf
        else:
            disc = b * b - a * c
            if disc <= 0.0:
                low, high = np.inf, -np.inf
            else:
                root = math.sqrt(disc)
                low, high = (-b - root) / a, (-b + root) / a
        low, high = _slab(oz, dz, hz, low, high)
        if low <= high:
            near, far = low, high
        if kind == CAPSULE:
            for end in (-hz, hz):
                low, high = _sphere(ox, oy, oz - end, dx, dy, dz, hx)
                if low <= high:
                    near, far = min(near, low), max(far, high)
    if near > far:
        return np.inf
    if near > _T_MIN:
        return near
    if far > _T_MIN:
        return far
    return np.inf


@njit(cache=True, nogil=True, fastmath=_FAST)
def _normal(kind, hx, hy, hz, x, y, z):
    """Outward unit normal at a point of the solid's surface, and texture coordinates (u, v)."""
    if kind == BOX:
        ax, ay, az = abs(x) / hx, abs(y) / hy, abs(z) / hz
        if ax >= ay and ax >= az:
            return math.copysign(1.0, x), 0.0, 0.0, y, z
        if ay >= az:
            return 0.0, math.copysign(1.0, y), 0.0, x, z
        return 0.0, 0.0, math.copysign(1.0, z), x, y
    if kind == ELLIPSOID:
        nx, ny, nz = x / (hx * hx), y / (hy * hy), z / (hz * hz)
    elif kind == CYLINDER:
        if hz - abs(z) < hx - math.sqrt(x * x + y * y):
            return 0.0, 0.0, math.copysign(1.0, z), x, y
        nx, ny, nz = x, y, 0.0
    else:
        nx, ny, nz = x, y, z - min(max(z, -hz), hz)
    scale = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz)
    return nx * scale, ny * scale, nz * scale, math.atan2(y, x) * hx, z


@njit(cache=True, nogil=True, fastmath=_FAST, inline="always")
def _hash(x, y, z):
    """Pseudo-random number in [0, 1) of a lattice point."""
    h = (x * 374761393 + y * 668265263 + z * 2147483647) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) * (1.0 / 65536.0)


@njit(cache=True, nogil=True, fastmath=_FAST)
def _value_noise(x, y, z):
    """Smooth lattice noise in [0, 1), one feature per unit."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    i, j, k = int(fx), int(fy), int(fz)
    x, y, z = x - fx, y - fy, z - fz
    x, y, z = x * x * (3 - 2 * x), y * y * (3 - 2 * y), z * z * (3 - 2 * z)
    total = 0.0
    for dk in range(2):
        wz = z if dk else 1.0 - z
        a = _hash(i, j, k + dk) * (1 - x) + _hash(i + 1, j, k + dk) * x
        b = _hash(i, j + 1, k + dk) * (1 - x) + _hash(i + 1, j + 1, k + dk) * x
        total += wz * (a * (1 - y) + b * y)
    return total


@njit(cache=True, nogil=True, fastmath=_FAST)
def _mix(materials, hit, x, y, z, u, v):
    """Weight of the second colour, in [0, 1], of a material at a point of its body."""
    texture = int(materials[hit, TEXTURE])
    s = materials[hit, SCALE]
    px, py, pz = materials[hit, PHASE], materials[hit, PHASE + 1], materials[hit, PHASE + 2]
    x, y, z = x * s + px, y * s + py, z * s + pz
    if texture == CHECKER:
        return float((int(math.floor(x)) + int(math.floor(y)) + int(math.floor(z))) & 1)
    if texture == STRIPES:
        t = x * 0.8 + y * 0.35 + z * 0.6
        return 1.0 if t - math.floor(t) < 0.5 else 0.0
    if texture == NOISE:
        t = 0.65 * _value_noise(x, y, z) + 0.35 * _value_noise(2.3 * x, 2.3 * y, 2.3 * z)
        return min(max((t - 0.3) * 2.5, 0.0), 1.0)
    if texture == BRICK:
        u, v = u * s + px, v * s * 2.0 + py
        row = math.floor(v)
        u += 0.5 * (int(row) & 1)
        u, v = u - math.floor(u), v - row
        return 1.0 if u < 0.06 or v < 0.12 else 0.25 * _hash(int(row), int(u * 7), 3)
    if texture == DOTS:
        x, y, z = x - math.floor(x) - 0.5, y - math.floor(y) - 0.5, z - math.floor(z) - 0.5
        return 1.0 if x * x + y * y + z * z < 0.13 else 0.0
    if texture == MARBLE:
        return 0.5 + 0.5 * math.sin(4.0 * x + 2.0 * y + 6.0 * _value_noise(x, y, z))
    return 0.0


@njit(cache=True, nogil=True, fastmath=_FAST)
def _visibility(x, y, z, sub, light, suns, kinds, half, rot, centres, bounds):
    """Share of the sun seen from a point, by four directions that differ per subsample."""
    sx, sy, sz = light[SUN], light[SUN + 1], light[SUN + 2]
    soft = light[SOFTNESS]
    maybe = False
    for i in range(kinds.shape[0]):
        cx, cy, cz = centres[i, 0] - x, centres[i, 1] - y, centres[i, 2] - z
        along = cx * sx + cy * sy + cz * sz
        if along > -bounds[i]:
            reach = bounds[i] + soft * (along + bounds[i])
            if cx * cx + cy * cy + cz * cz - along * along < reach * reach:
                maybe = True
                break
    if not maybe:
        return 1.0
    samples = 4 if soft > 0.0 else 1
    seen = 0.0
    for n in range(samples):
        dx, dy, dz = suns[sub, n, 0], suns[sub, n, 1], suns[sub, n, 2]
        blocked = False
        for i in range(kinds.shape[0]):
            ox, oy, oz = x - centres[i, 0], y - centres[i, 1], z - centres[i, 2]
            near, far = _sphere(ox, oy, oz, dx, dy, dz, bounds[i])
            if near > far or far < 0.0:
                continue
            t = _intersect(
                kinds[i],
                half[i, 0],
                half[i, 1],
                half[i, 2],
                rot[i, 0, 0] * ox + rot[i, 1, 0] * oy + rot[i, 2, 0] * oz,
                rot[i, 0, 1] * ox + rot[i, 1, 1] * oy + rot[i, 2, 1] * oz,
                rot[i, 0, 2] * ox + rot[i, 1, 2] * oy + rot[i, 2, 2] * oz,
                rot[i, 0, 0] * dx + rot[i, 1, 0] * dy + rot[i, 2, 0] * dz,
                rot[i, 0, 1] * dx + rot[i, 1, 1] * dy + rot[i, 2, 1] * dz,
                rot[i, 0, 2] * dx + rot[i, 1, 2] * dy + rot[i, 2, 2] * dz,
            )
            if t < np.inf:
                blocked = True
                break
        if not blocked:
            seen += 1.0
    return seen / samples


@njit(cache=True, nogil=True, fastmath=_FAST)
def _sun_directions(light):
    """(4 subsamples, 4, 3) directions spread over the sun's disk."""
    sx, sy, sz = light[SUN], light[SUN + 1], light[SUN + 2]
    length = math.sqrt(sx * sx + sy * sy) + 1e-9
    ux, uy = -sy / length, sx / length
    vx, vy, vz = -uy * sz, ux * sz, uy * sx - ux * sy
    suns = np.empty((4, 4, 3))
    for sub in range(4):
        for n in range(4):
            radius = light[SOFTNESS] * math.sqrt((n + 0.125 + 0.25 * ((sub * 3) & 3)) / 4.0)
            angle = 2.399963 * (n * 4 + sub)
            a, b = radius * math.cos(angle), radius * math.sin(angle)
            suns[sub, n, 0] = sx + a * ux + b * vx
            suns[sub, n, 1] = sy + a * uy + b * vy
            suns[sub, n, 2] = sz + b * vz
    return suns


@njit(cache=True, nogil=True, fastmath=_FAST, inline="always")
def _lit(materials, hit, light, k, mix, shade, hemisphere, direct, glint):
    """Light of channel k that leaves a surface towards the eye."""
    albedo = materials[hit, COLOR_A + k] * (1.0 - mix) + materials[hit, COLOR_B + k] * mix
    received = light[AMBIENT + k] * hemisphere + light[SUN_COLOR + k] * direct
    return albedo * shade * received + glint * light[SUN_COLOR + k]


@njit(cache=True, nogil=True, fastmath=_FAST)
def cast(
    width,
    height,
    intrinsics,
    world_from_camera,
    kinds,
    half,
    rot,
    centres,
    bounds,
    materials,
    has_ground,
    light,
    color,
    depth,
):
    """Render one picture.

    intrinsics (3,3) pixels; world_from_camera (3,4) OpenCV; kinds (N,) int; half (N,3) half sizes;
    rot (N,3,3) world from body; centres (N,3); bounds (N,) bounding radii about the centres;
    materials (N+1, MATERIAL_SIZE), the last row for the ground z = 0; light (LIGHT_SIZE,).
    Writes color (height, width, 3) linear RGB (mean of 2x2 samples) and depth (height, width)
    planar z at the pixel's centre, inf where the ray meets nothing.
    """
    count = kinds.shape[0]
    fx, fy, px, py = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    cx, cy, cz = world_from_camera[0, 3], world_from_camera[1, 3], world_from_camera[2, 3]
    sx, sy, sz = light[SUN], light[SUN + 1], light[SUN + 2]
    suns = _sun_directions(light)
    # The camera's place in each body's frame is the same for every ray.
    local = np.empty((count, 3))
    offset = np.empty((count, 3))
    for i in range(count):
        offset[i, 0], offset[i, 1], offset[i, 2] = (
            cx - centres[i, 0],
            cy - centres[i, 1],
            cz - centres[i, 2],
        )
        for k in range(3):
            local[i, k] = (
                rot[i, 0, k] * offset[i, 0]
                + rot[i, 1, k] * offset[i, 1]
                + rot[i, 2, k] * offset[i, 2]
            )
    for row in range(height):
        for column in range(width):
            red, green, blue = 0.0, 0.0, 0.0
            for sub in range(5):
                # Subsamples 0..3 colour the pixel; the fifth ray, through its centre, is the depth.
                sample_x = column + (0.5 if sub == 4 else 0.25 + 0.5 * (sub & 1))
                sample_y = row + (0.5 if sub == 4 else 0.25 + 0.5 * (sub >> 1))
                x, y = (sample_x - px) / fx, (sample_y - py) / fy
                w = world_from_camera
                dx = w[0, 0] * x + w[0, 1] * y + w[0, 2]
                dy = w[1, 0] * x + w[1, 1] * y + w[1, 2]
                dz = w[2, 0] * x + w[2, 1] * y + w[2, 2]
                best, hit = np.inf, -1
                if has_ground and dz < -1e-9 and cz > 0.0:
                    best, hit = -cz / dz, count
                    if best > 400.0:
                        best, hit = np.inf, -1
                for i in range(count):
                    near, far = _sphere(
                        offset[i, 0], offset[i, 1], offset[i, 2], dx, dy, dz, bounds[i]
                    )
                    if near > far or near > best or far < 0.0:
                        continue
                    t = _intersect(
                        kinds[i],
                        half[i, 0],
                        half[i, 1],
                        half[i, 2],
                        local[i, 0],
                        local[i, 1],
                        local[i, 2],
                        rot[i, 0, 0] * dx + rot[i, 1, 0] * dy + rot[i, 2, 0] * dz,
                        rot[i, 0, 1] * dx + rot[i, 1, 1] * dy + rot[i, 2, 1] * dz,
                        rot[i, 0, 2] * dx + rot[i, 1, 2] * dy + rot[i, 2, 2] * dz,
                    )
                    if t < best:
                        best, hit = t, i
                if sub == 4:
                    depth[row, column] = best
                    continue
                scale = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
                if hit < 0:
                    up = min(max(dz * scale, 0.0), 1.0)
                    red += light[HORIZON] + (light[ZENITH] - light[HORIZON]) * up
                    green += light[HORIZON + 1] + (light[ZENITH + 1] - light[HORIZON + 1]) * up
                    blue += light[HORIZON + 2] + (light[ZENITH + 2] - light[HORIZON + 2]) * up
                    continue
                wx, wy, wz = cx + best * dx, cy + best * dy, cz + best * dz
                if hit == count:
                    nx, ny, nz = 0.0, 0.0, 1.0
                    bx, by, bz, u, v = wx, wy, 0.0, wx, wy
                else:
                    ox, oy, oz = wx - centres[hit, 0], wy - centres[hit, 1], wz - centres[hit, 2]
                    bx = rot[hit, 0, 0] * ox + rot[hit, 1, 0] * oy + rot[hit, 2, 0] * oz
                    by = rot[hit, 0, 1] * ox + rot[hit, 1, 1] * oy + rot[hit, 2, 1] * oz
                    bz = rot[hit, 0, 2] * ox + rot[hit, 1, 2] * oy + rot[hit, 2, 2] * oz
                    mx, my, mz, u, v = _normal(
                        kinds[hit], half[hit, 0], half[hit, 1], half[hit, 2], bx, by, bz
                    )
                    nx = rot[hit, 0, 0] * mx + rot[hit, 0, 1] * my + rot[hit, 0, 2] * mz
                    ny = rot[hit, 1, 0] * mx + rot[hit, 1, 1] * my + rot[hit, 1, 2] * mz
                    nz = rot[hit, 2, 0] * mx + rot[hit, 2, 1] * my + rot[hit, 2, 2] * mz
                mix = _mix(materials, hit, bx, by, bz, u, v)
                shade = 1.0
                if materials[hit, GRAIN] > 0.0:
                    fine = materials[hit, SCALE] * 3.7
                    shade += materials[hit, GRAIN] * (
                        _value_noise(bx * fine + 7.0, by * fine, bz * fine + 3.0) - 0.5
                    )
                facing = nx * sx + ny * sy + nz * sz
                visible, glint = 0.0, 0.0
                if facing > 0.0:
                    visible = _visibility(
                        wx + 1e-4 * nx,
                        wy + 1e-4 * ny,
                        wz + 1e-4 * nz,
                        sub,
                        light,
                        suns,
                        kinds,
                        half,
                        rot,
                        centres,
                        bounds,
                    )
                    if visible > 0.0 and materials[hit, GLOSS] > 0.0:
                        # Blinn highlight: half vector between sun and eye.
                        qx, qy, qz = sx - dx * scale, sy - dy * scale, sz - dz * scale
                        cosine = (nx * qx + ny * qy + nz * qz) / math.sqrt(
                            qx * qx + qy * qy + qz * qz + 1e-12
                        )
                        if cosine > 0.0:
                            glint = (
                                visible
                                * materials[hit, GLOSS]
                                * (cosine ** materials[hit, EXPONENT])
                            )
                direct = max(facing, 0.0) * visible
                hemisphere = 0.7 + 0.3 * nz
                red += _lit(materials, hit, light, 0, mix, shade, hemisphere, direct, glint)
                green += _lit(materials, hit, light, 1, mix, shade, hemisphere, direct, glint)
                blue += _lit(materials, hit, light, 2, mix, shade, hemisphere, direct, glint)
            color[row, column, 0] = 0.25 * red
            color[row, column, 1] = 0.25 * green
            color[row, column, 2] = 0.25 * blue
