# SPDX-License-Identifier: Apache-2.0
"""One picture with depth and camera to one oriented disk (surfel) per pixel.

Exact where the depth is exact; never invents a surface and makes nothing of the sky.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from viewtime_formats.gaussians import Gaussians, rgb_to_sh0
from viewtime_formats.rig import Camera

Float32 = NDArray[np.float32]

SKY = 1e9
"""Depth from here on, and depth that is not finite, is sky."""
PLANAR = 0.003
"""Relative second difference of 1/z under which a pixel's neighbourhood counts as planar."""
EDGE = 0.02
"""Relative second difference of 1/z over which a pixel lies at a depth edge."""
LONE = 0.3
"""Relative slope of 1/z per pixel that no surface has, only a pixel between strangers."""
MAX_STRETCH = 10.0
"""A disk is stretched along the slant by 1/cos, at most by this. Less tears distant ground."""
THICKNESS = 0.1
"""Extent along the normal, as a share of the extent across the slant."""
OPACITY = 0.98


@dataclass(frozen=True, eq=False)
class Surfels:
    """N oriented disks, one per pixel that sees a surface, in row-major pixel order.

    means (N, 3) world, scales (N, 3) slant, across, normal, rotations (N, 4) wxyz world, opacities
    (N,), rgb (N, 3) display sRGB, normals (N, 3) world, towards the camera, cosine (N,) between
    normal and view ray, edge (N,) bool at a depth edge, area (N,) of the pixel's footprint on the
    surface in square scene units, pixel (N,) index y * width + x.
    """

    means: Float32
    scales: Float32
    rotations: Float32
    opacities: Float32
    rgb: Float32
    normals: Float32
    cosine: Float32
    edge: NDArray[np.bool_]
    area: Float32
    pixel: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.means)

    def select(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Surfels:
        """The surfels that a mask or indices pick."""
        return Surfels(**{name: getattr(self, name)[which] for name in self.__dataclass_fields__})

    def gaussians(self, rgb: Float32 | None = None) -> Gaussians:
        """As Gaussians of degree 0, in the surfels' own colours or in rgb (N, 3)."""
        colour = self.rgb if rgb is None else rgb
        return Gaussians(
            self.means, self.scales, self.rotations, self.opacities, rgb_to_sh0(colour)[:, None]
        )


def is_surface(depth: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Where depth shows a surface: finite, in front of the camera, and not the sky."""
    return np.isfinite(depth) & (depth > 0) & (depth < SKY)


def clean_depth(depth: NDArray[np.floating]) -> Float32:
    """Depth with one spelling: planar z, sky as inf (from 1e9 on), and nan where nothing is known
    (nan, or not in front of the camera)."""
    depth = np.asarray(depth, np.float32)
    sky = np.where(depth >= SKY, np.float32(np.inf), depth)
    return np.where(depth > 0, sky, np.float32(np.nan))


def _slopes(inverse: NDArray[np.float64], axis: int) -> tuple[NDArray, NDArray]:
    """Slope of w = 1/z per pixel along an axis, and its relative second difference.

    Central where the neighbourhood is planar, else the smaller one-sided difference: across a
    silhouette the other side says nothing about this surface. At the border only one side exists.
    """
    w = np.moveaxis(inverse, axis, 0)
    step = np.diff(w, axis=0)
    nothing = np.full_like(w[:1], np.inf)
    before, after = np.concatenate([nothing, step]), np.concatenate([step, nothing])
    smaller = np.where(np.abs(before) <= np.abs(after), before, after)
    with np.errstate(divide="ignore", invalid="ignore"):
        bend = np.abs(after - before) / w
        bend[[0, -1]] = 0.0
        central = np.where(bend < PLANAR, 0.5 * (before + after), smaller)
    central[[0, -1]] = smaller[[0, -1]]
    # Both neighbours belong to something else: nothing is known, so the disk faces the camera.
    central[~(np.abs(central) < LONE * w)] = 0.0
    return np.moveaxis(central, 0, axis), np.moveaxis(bend, 0, axis)


@njit(cache=True, nogil=True)
def _disks(
    pixel, width, lens, turn, center, inverse, slope_x, slope_y, footprint,
    means, scales, rotations, normals, cosine, area,
):  # fmt: skip
    """Fill one disk per pixel from w = 1/z and its slopes. turn (3, 3) is world-from-camera."""
    fx, fy, cx, cy = lens[0], lens[1], lens[2], lens[3]
    axes, world = np.empty((3, 3)), np.empty((3, 3))
    for i in range(pixel.shape[0]):
        p = pixel[i]
        u, v, w = (p % width + 0.5 - cx) / fx, (p // width + 0.5 - cy) / fy, inverse[p]
        # A plane n.X = -1 in camera axes reads -(nx u + ny v + nz) = w in the picture.
        nx, ny = -fx * slope_x[p], -fy * slope_y[p]
        nz = -w - nx * u - ny * v
        length = math.sqrt(nx * nx + ny * ny + nz * nz)
        nx, ny, nz = nx / length, ny / length, nz / length
        far = math.sqrt(u * u + v * v + 1)
        rx, ry, rz = u / far, v / far, 1 / far
        facing = min(max(-(nx * rx + ny * ry + nz * rz), 1e-3), 1.0)
        # The slant is the view ray's shadow on the surface; seen head-on, any direction will do.
        sx, sy, sz = rx + facing * nx, ry + facing * ny, rz + facing * nz
        length = math.sqrt(sx * sx + sy * sy + sz * sz)
        if length < 1e-5:
            sx, sy, sz = -nz, 0.0, nx
            length = math.sqrt(sx * sx + sz * sz)
            if length < 1e-5:
                sx, sz, length = 1.0, 0.0, 1.0
        sx, sy, sz = sx / length, sy / length, sz / length
        axes[0, 0], axes[1, 0], axes[2, 0] = sx, sy, sz
        axes[0, 1], axes[1, 1], axes[2, 1] = (
            ny * sz - nz * sy,
            nz * sx - nx * sz,
            nx * sy - ny * sx,
        )
        axes[0, 2], axes[1, 2], axes[2, 2] = nx, ny, nz
        for r in range(3):
            for c in range(3):
                world[r, c] = (
                    turn[r, 0] * axes[0, c] + turn[r, 1] * axes[1, c] + turn[r, 2] * axes[2, c]
                )
            means[i, r] = (turn[r, 0] * u + turn[r, 1] * v + turn[r, 2]) / w + center[r]
            normals[i, r] = world[r, 2]
        size = footprint / (w * math.sqrt(fx * fy))
        scales[i, 0] = size * min(1 / facing, MAX_STRETCH)
        scales[i, 1] = size
        scales[i, 2] = THICKNESS * size
        cosine[i] = facing
        area[i] = 1 / (w * w * fx * fy * facing)
        # Rotation to quaternion through the diagonal's largest part, which is never near zero.
        xx, yy, zz = world[0, 0], world[1, 1], world[2, 2]
        if xx + yy + zz > 0:
            q0, q1 = 1 + xx + yy + zz, world[2, 1] - world[1, 2]
            q2, q3 = world[0, 2] - world[2, 0], world[1, 0] - world[0, 1]
        elif xx >= yy and xx >= zz:
            q0, q1 = world[2, 1] - world[1, 2], 1 + xx - yy - zz
            q2, q3 = world[1, 0] + world[0, 1], world[0, 2] + world[2, 0]
        elif yy >= zz:
            q0, q1 = world[0, 2] - world[2, 0], world[1, 0] + world[0, 1]
            q2, q3 = 1 - xx + yy - zz, world[2, 1] + world[1, 2]
        else:
            q0, q1 = world[1, 0] - world[0, 1], world[0, 2] + world[2, 0]
            q2, q3 = world[2, 1] + world[1, 2], 1 - xx - yy + zz
        length = math.sqrt(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3)
        rotations[i, 0], rotations[i, 1] = q0 / length, q1 / length
        rotations[i, 2], rotations[i, 3] = q2 / length, q3 / length


def surfels(
    image: NDArray[np.floating],
    depth: NDArray[np.floating],
    camera: Camera,
    *,
    footprint: float = 0.6,
) -> Surfels:
    """One disk for each pixel of a picture that sees a surface.

    Normals come from w = 1/z, which is linear in the picture wherever the surface is a plane.

    Args:
        image: (H, W, 3) display sRGB in [0, 1].
        depth: (H, W) planar z in scene units at pixel centres; sky is >= 1e9 or not finite.
        camera: of exactly this size.
        footprint: standard deviation across the slant in pixels; 0.6 suits a screen dilation of
            0.01 px^2, 0.5 suits 0.1, 0.3 suits 0.3.

    Raises:
        ValueError: when picture, depth and camera differ in size.
    """
    height, width = camera.height, camera.width
    if image.shape != (height, width, 3) or depth.shape != (height, width):
        raise ValueError(
            f"surfels: image {image.shape} and depth {depth.shape} for a camera of "
            f"{width} x {height} pixels"
        )
    seen = is_surface(depth)
    inverse = np.where(seen, 1.0 / np.where(seen, depth, 1.0), 0.0).astype(np.float64)
    slope_x, bend_x = _slopes(inverse, 1)
    slope_y, bend_y = _slopes(inverse, 0)
    pixel = np.flatnonzero(seen)
    bend = np.maximum(bend_x, bend_y).ravel()[pixel]
    k = camera.intrinsics
    count = len(pixel)
    shapes = {"means": 3, "scales": 3, "rotations": 4, "normals": 3}
    out = {name: np.empty((count, size), np.float32) for name, size in shapes.items()}
    cosine, area = np.empty(count, np.float32), np.empty(count, np.float32)
    _disks(
        pixel,
        width,
        np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]]),
        np.ascontiguousarray(camera.rotation.T),
        np.ascontiguousarray(camera.center),
        inverse.ravel(),
        np.ascontiguousarray(slope_x).ravel(),
        np.ascontiguousarray(slope_y).ravel(),
        float(footprint),
        out["means"],
        out["scales"],
        out["rotations"],
        out["normals"],
        cosine,
        area,
    )
    return Surfels(
        **out,
        opacities=np.full(count, OPACITY, np.float32),
        rgb=np.asarray(image, np.float32).reshape(-1, 3)[pixel],
        cosine=cosine,
        edge=bend > EDGE,
        area=area,
        pixel=pixel,
    )
