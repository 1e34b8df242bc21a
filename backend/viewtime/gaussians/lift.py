# SPDX-License-Identifier: Apache-2.0
"""One picture with depth and camera to one oriented disk (surfel) per pixel.

Exact where the depth is exact; never invents a surface and makes nothing of the sky.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from viewtime_formats.gaussians import Gaussians, rgb_to_sh0
from viewtime_formats.rig import Camera

from .ops import quaternion_from_matrix

Float32 = NDArray[np.float32]

SKY = 1e9
"""Depth from here on, and depth that is not finite, is sky."""
PLANAR = 0.003
"""Relative second difference of 1/z under which a pixel's neighbourhood counts as planar."""
EDGE = 0.02
"""Relative second difference of 1/z over which a pixel lies at a depth edge."""
LONE = 0.3
"""Relative slope of 1/z per pixel that no surface has, only a pixel between strangers."""
MAX_STRETCH = 2.5
"""A disk is stretched along the slant by 1/cos, at most by this."""
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
    rows, columns = np.divmod(pixel, width)
    k = camera.intrinsics
    fx, fy = k[0, 0], k[1, 1]
    ray_x, ray_y = (columns + 0.5 - k[0, 2]) / fx, (rows + 0.5 - k[1, 2]) / fy
    w = inverse.ravel()[pixel]
    a, b = fx * slope_x.ravel()[pixel], fy * slope_y.ravel()[pixel]
    normal = -np.stack([a, b, w - a * ray_x - b * ray_y], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    ray = np.stack([ray_x, ray_y, np.ones_like(ray_x)], -1)
    z = 1.0 / w
    points = ray * z[:, None]
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    cosine = np.clip(-np.einsum("nk,nk->n", normal, ray), 1e-3, 1.0)
    # The slant is the view ray's shadow on the surface; seen head-on, any direction will do.
    slant = ray + cosine[:, None] * normal
    head_on = np.einsum("nk,nk->n", slant, slant) < 1e-10
    if head_on.any():
        slant[head_on] = np.cross(normal[head_on], (0.0, 1.0, 0.0))
    slant /= np.linalg.norm(slant, axis=-1, keepdims=True)
    axes = np.stack([slant, np.cross(normal, slant), normal], -1)
    world_from_camera = camera.rotation.T
    size = footprint * z / np.sqrt(fx * fy)
    scales = np.stack([size * np.minimum(1.0 / cosine, MAX_STRETCH), size, THICKNESS * size], -1)
    bend = np.maximum(bend_x, bend_y).ravel()[pixel]
    return Surfels(
        means=((points - camera.translation) @ camera.rotation).astype(np.float32),
        scales=scales.astype(np.float32),
        rotations=quaternion_from_matrix(world_from_camera @ axes).astype(np.float32),
        opacities=np.full(len(pixel), OPACITY, np.float32),
        rgb=np.asarray(image, np.float32).reshape(-1, 3)[pixel],
        normals=(normal @ camera.rotation).astype(np.float32),
        cosine=cosine.astype(np.float32),
        edge=bend > EDGE,
        area=(z * z / (fx * fy) / cosine).astype(np.float32),
        pixel=pixel,
    )
