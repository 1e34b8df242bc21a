# SPDX-License-Identifier: Apache-2.0
"""Pictures with exact depth and cameras, fused into one set of Gaussians without learned weights.

Keeps, of each surface, the pixels of the view that saw it sharpest; makes nothing of the sky.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from viewtime.gaussians.lift import Surfels, clean_depth, surfels
from viewtime.gaussians.ops import concatenate
from viewtime.gaussians.project import SAME, THROUGH, judge_points, project_points
from viewtime.gaussians.raster_cpu import project_gaussians
from viewtime.gaussians.steady import steady_depth
from viewtime.gaussians.weights import weigh
from viewtime_formats.gaussians import Gaussians, rgb_to_sh0, sh0_to_rgb
from viewtime_formats.rig import Camera

Float32 = NDArray[np.float32]

SAME_SURFACE = 0.01
"""Relative depth difference of one surface in two views, on top of half a pixel's slant."""
EDGE_PENALTY = 10.0
"""Edge pixels mix two colours: any view that sees the place off its edges explains it better."""
STEADIED = 0.25
"""Share of the depth's noise that is left once it was made steady."""
REFIT_ROUNDS = 6
FAINT = 0.05
"""Summed weight under which the pictures say too little about a Gaussian to change its colour."""
DILATION = 0.01


def background_from_sky(images: NDArray[np.floating], depths: NDArray[np.floating]) -> Float32:
    """The sky's colour (3,), display sRGB: the median over pixels whose depth is sky.

    Args:
        images: (V, H, W, 3) display sRGB. depths: (V, H, W), sky >= 1e9 or infinite, nan unknown.

    Returns:
        (3,) float32; black where no pixel shows the sky.
    """
    sky = np.isinf(clean_depth(depths))
    if not sky.any():
        return np.zeros(3, np.float32)
    return np.median(images[sky], axis=0).astype(np.float32)


def _fused(
    disks: list[Surfels], depths: NDArray[np.floating], cameras: Sequence[Camera], noise: float
) -> list[Surfels]:
    """Of every surface seen by several views, the pixels of the one with the smallest footprint."""
    sharpness = [
        np.where(view.edge, EDGE_PENALTY * view.area, view.area).astype(np.float32)
        for view in disks
    ]
    maps = []
    for view, area, camera in zip(disks, sharpness, cameras):
        full = np.full(camera.height * camera.width, np.inf, np.float32)
        full[view.pixel] = area
        maps.append(full)
    kept = []
    for i, view in enumerate(disks):
        drop = np.zeros(len(view), bool)
        seen_through = np.zeros(len(view), np.int64)
        focal = cameras[i].intrinsics[0, 0]
        slack = (SAME_SURFACE + 2 * noise + (1 / focal) / np.maximum(view.cosine, 0.1)).astype(
            np.float32
        )
        for j, camera in enumerate(cameras):
            if j == i:
                continue
            pixel, z = project_points(view.means, camera)
            verdict = judge_points(pixel, z, depths[j], slack)
            same = np.flatnonzero(verdict == SAME)
            other, own = maps[j][pixel[same]], sharpness[i][same]
            # On a tie the lower view keeps; a factor below 1 would let views delete each other.
            drop[same[(other < own) | ((other == own) & (j < i))]] = True
            seen_through += verdict == THROUGH
        if noise > 0:
            drop |= seen_through >= 2
        kept.append(view.select(~drop))
    return kept


def fuse_views(
    images: NDArray[np.floating],
    depths: NDArray[np.floating],
    cameras: Sequence[Camera],
    *,
    depth_noise: float = 0.0,
    refit: bool = True,
    background: ArrayLike | None = None,
) -> Gaussians:
    """Gaussians of one timestep from all views' pictures, depths and cameras.

    Args:
        images: (V, H, W, 3) display sRGB in [0, 1].
        depths: (V, H, W) planar z in scene units; sky >= 1e9 or infinite, nan unknown.
        cameras: V cameras of that picture size.
        depth_noise: relative error of the depth: 0 for a renderer, about 0.01 for photogrammetry.
            Above 0, depth is made steady first (see `gaussians.steady`), and points are dropped
            that two other views see through.
        refit: correct the colours by what the rig's own views show of the splats.
        background: (3,) display sRGB for the refit; by default the sky's colour.

    Returns:
        Gaussians of degree 0 in the cameras' world frame, for rendering at dilation 0.01 over the
        background; no Gaussians where all is sky.

    Raises:
        ValueError: when shapes or counts do not fit each other, pictures are not finite, or
            depth_noise is not in [0, 1).
    """
    images, depths = np.asarray(images, np.float32), np.asarray(depths, np.float32)
    if images.ndim != 4 or depths.shape != images.shape[:3] or len(cameras) != len(images):
        raise ValueError(
            f"fuse_views: images {images.shape}, depths {depths.shape}, {len(cameras)} cameras"
        )
    if not np.isfinite(images).all():
        view = int(np.argwhere(~np.isfinite(images))[0][0])
        raise ValueError(f"fuse_views: images[{view}] is not finite; colours in [0, 1] are needed")
    if not 0 <= depth_noise < 1:
        raise ValueError(f"fuse_views: depth_noise is {depth_noise}; 0 to 1 is needed (relative)")
    sky = background_from_sky(images, depths) if background is None else np.asarray(background)
    depths = clean_depth(depths)
    if depth_noise > 0:
        depths = np.stack([steady_depth(depth, depth_noise) for depth in depths])
        depth_noise *= STEADIED
    disks = [surfels(*view) for view in zip(images, depths, cameras)]
    disks = _fused(disks, depths, cameras, depth_noise)
    fused = concatenate(view.gaussians() for view in disks)
    if refit:
        return refit_colours(fused, images, cameras, background=sky)
    return fused


def refit_colours(
    gaussians: Gaussians,
    images: NDArray[np.floating],
    cameras: Sequence[Camera],
    *,
    background: ArrayLike,
    rounds: int = REFIT_ROUNDS,
) -> Gaussians:
    """Colours that make the Gaussians look most like all the pictures at once.

    A picture is linear in the colours, so this is least squares, solved by a few rounds of the
    simultaneous iterative reconstruction technique: each Gaussian moves by the mean residual of
    the pixels it shows in, weighted by how much of it they show.

    Args:
        gaussians: of degree 0. images: (V, H, W, 3) display sRGB of the cameras.
        background: (3,) display sRGB behind the Gaussians.

    Returns:
        The same Gaussians in new colours, which may leave [0, 1] a little.
    """
    colours = sh0_to_rgb(gaussians.sh[:, 0])
    behind = np.asarray(background, np.float32)
    # Only the colours change from round to round: what each camera sees is worked out once.
    views = [weigh(project_gaussians(gaussians, camera, dilation=DILATION)) for camera in cameras]
    wanted = [image - view.through[..., None] * behind for image, view in zip(images, views)]
    for _ in range(rounds):
        sums, weights = np.zeros_like(colours), np.zeros(len(colours), np.float32)
        for target, view in zip(wanted, views):
            gathered = view.gather(target - view.show(colours))
            sums += gathered[0]
            weights += gathered[1]
        colours += sums / np.maximum(weights, FAINT)[:, None]
    return replace(gaussians, sh=rgb_to_sh0(colours)[:, None])
