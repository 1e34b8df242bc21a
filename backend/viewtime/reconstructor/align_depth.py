# SPDX-License-Identifier: Apache-2.0
"""One factor per view that makes predicted depth agree with a captured rig. Numpy only.

The rig triangulates: at the right scale a view's points show the colours, and lie at the depths,
that its neighbours see. It never bends a depth map: `sweep` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewtime.reconstructor.sweep import nearest_views
from viewtime_formats.rig import Camera

POINTS = 500
"""Pixels per view and timestep that are judged."""
STEPS = 17
"""Factors tried at once, evenly spread in the logarithm."""
REACH = 2.0
"""The smallest and largest factor is 1 / REACH and REACH: first of all views, then of each."""
COLOUR, DEPTH = 0.25, 0.2
"""Colour difference, and difference of log depth, from which on a mismatch costs no more."""
OUTSIDE = 0.5
"""Cost of a point that no other picture shows: neither likely nor unlikely."""
PULL = 0.02
"""Cost of a factor e times too large or too small where nothing else is known."""
ROUNDS = 3


@dataclass(frozen=True, eq=False)
class ViewScales:
    """scales (V,) to multiply each view's depth with; cost before and after, 0 (all agree) to 1.

    seen (V,): whether other views say anything about the factor (else it is that of all views).
    """

    scales: NDArray[np.float64]
    seen: NDArray[np.bool_]
    before: float
    after: float

    def record(self) -> dict[str, Any]:
        """What a sequence's provenance keeps of it."""
        return {
            "per_view": [round(float(s), 4) for s in self.scales],
            "mismatch": [round(self.before, 4), round(self.after, 4)],
        }


@dataclass(frozen=True, eq=False)
class _Points:
    """Judged points of a view: rays (K,N,3) at depth 1 in its camera, depth (K,N), colour
    (K,N,3), per timestep K."""

    rays: NDArray[np.float64]
    depth: NDArray[np.float64]
    colour: NDArray[np.float64]


def refine_view_scales(
    depths: NDArray[np.floating],
    surface: NDArray[np.bool_],
    images: NDArray[np.floating],
    cameras: Sequence[Camera],
) -> ViewScales:
    """The factor per view with which the views agree most, near a factor common to all.

    Args:
        depths: (V,K,H,W) planar z > 0 of K timesteps, in about the cameras' unit (within a factor
            of 2 as a whole). surface: (V,K,H,W), False for sky. images: (V,K,3,H,W) display sRGB.
        cameras: V of that size.

    Returns:
        ViewScales; factors of 1 where no two cameras are apart.
    """
    views = len(cameras)
    neighbours = [nearest_views(cameras, v) for v in range(views)]
    points = [_sample(depths[v], surface[v], images[v], cameras[v]) for v in range(views)]
    seen = np.array([bool(n) and bool(p.depth.size) for n, p in zip(neighbours, points)])
    logs = np.zeros(views)
    if not seen.any():
        return ViewScales(np.exp(logs), seen, 0.0, 0.0)

    def cost(v: int, own: float, all_logs: NDArray[np.float64]) -> float:
        return _mismatch(
            v, own, all_logs, points[v], neighbours[v], depths, surface, images, cameras
        )

    judges = [int(v) for v in np.flatnonzero(seen)]
    before = float(np.mean([cost(v, 0.0, logs) for v in judges]))
    tried = np.linspace(-np.log(REACH), np.log(REACH), 2 * STEPS - 1)
    whole = [
        float(np.mean([cost(v, x, np.full(views, x)) for v in judges])) + PULL * x * x
        for x in tried
    ]
    common = _lowest(tried, np.array(whole))
    logs[:] = common
    for width in np.log(REACH) * 0.5 ** np.arange(ROUNDS):
        for v in judges:
            near = logs[v] + np.linspace(-width, width, STEPS)
            costs = [cost(v, x, logs) + PULL * (x - common) ** 2 for x in near]
            logs[v] = _lowest(near, np.array(costs))
    after = float(np.mean([cost(v, logs[v], logs) for v in judges]))
    if after >= before:  # nothing was gained: leave depth as it was predicted
        return ViewScales(np.ones(views), seen, before, before)
    return ViewScales(np.exp(logs), seen, before, after)


def _sample(
    depth: NDArray[np.floating],
    surface: NDArray[np.bool_],
    images: NDArray[np.floating],
    camera: Camera,
) -> _Points:
    """Points spread evenly over what is a surface at every timestep."""
    found = np.flatnonzero(surface.all(0).ravel())
    chosen = found[np.linspace(0, max(len(found) - 1, 0), min(POINTS, len(found))).astype(int)]
    y, x = np.divmod(chosen, camera.width)
    pixels = np.stack([x + 0.5, y + 0.5, np.ones(len(chosen))], -1)
    rays = pixels @ np.linalg.inv(camera.intrinsics).T
    flat = depth.reshape(len(depth), -1)[:, chosen].astype(np.float64)
    colour = images.reshape(*images.shape[:2], -1)[:, :, chosen].transpose(0, 2, 1)
    return _Points(
        np.broadcast_to(rays, (len(depth), *rays.shape)), flat, colour.astype(np.float64)
    )


def _mismatch(
    v: int,
    own: float,
    logs: NDArray[np.float64],
    points: _Points,
    neighbours: Sequence[int],
    depths: NDArray[np.floating],
    surface: NDArray[np.bool_],
    images: NDArray[np.floating],
    cameras: Sequence[Camera],
) -> float:
    """Mean over points of the better half of the neighbours' disagreement, 0 to 1."""
    local = points.rays * (np.exp(own) * points.depth)[..., None]
    times = np.arange(len(local))[:, None]
    found = []
    for n in neighbours:
        camera = cameras[n]
        pose = camera.camera_from_world @ cameras[v].world_from_camera
        there = local @ pose[:, :3].T + pose[:, 3]
        z = there[..., 2]
        safe = np.maximum(z, 1e-9)
        x = there[..., 0] / safe * camera.intrinsics[0, 0] + camera.intrinsics[0, 2]
        y = there[..., 1] / safe * camera.intrinsics[1, 1] + camera.intrinsics[1, 2]
        inside = (z > 1e-9) & (x >= 0.5) & (y >= 0.5)
        inside &= (x <= camera.width - 0.5) & (y <= camera.height - 0.5)
        x, y = np.where(inside, x, 1.0), np.where(inside, y, 1.0)
        j, i = y.astype(int), x.astype(int)
        shown = _bilinear(images[n], times, y - 0.5, x - 0.5)
        colour = np.abs(shown - points.colour).mean(-1)
        other = depths[n][times, j, i] * np.exp(logs[n])
        apart = np.abs(np.log(safe / other))
        apart = np.where(surface[n][times, j, i], apart, DEPTH)
        both = 0.5 * (np.minimum(colour / COLOUR, 1.0) + np.minimum(apart / DEPTH, 1.0))
        found.append(np.where(inside, both, np.nan))
    ranked = np.sort(np.stack(found), axis=0)  # nan last
    judges = np.isfinite(ranked).sum(0)
    half = (judges + 1) // 2
    counted = np.arange(len(ranked))[:, None, None] < half
    total = np.where(counted, ranked, 0.0).sum(0) / np.maximum(half, 1)
    return float(np.where(half > 0, total, OUTSIDE).mean())


def _bilinear(
    images: NDArray[np.floating],
    times: NDArray[np.int64],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Colours (K,N,3) of images (K,3,H,W) at rows y and columns x (K,N), counted from centres."""
    height, width = images.shape[-2:]
    top = np.clip(y.astype(int), 0, max(height - 2, 0))
    left = np.clip(x.astype(int), 0, max(width - 2, 0))
    down, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    a, b = (y - top)[..., None], (x - left)[..., None]
    pixels = images.transpose(0, 2, 3, 1)
    upper = pixels[times, top, left] * (1 - b) + pixels[times, top, right] * b
    lower = pixels[times, down, left] * (1 - b) + pixels[times, down, right] * b
    return upper * (1 - a) + lower * a


def _lowest(tried: NDArray[np.float64], costs: NDArray[np.float64]) -> float:
    """Where a parabola through the least cost and its neighbours is lowest."""
    best = int(costs.argmin())
    if not 0 < best < len(tried) - 1:
        return float(tried[best])
    left, middle, right = costs[best - 1 : best + 2]
    bend = left - 2.0 * middle + right
    offset = 0.5 * (left - right) / bend if bend > 0.0 else 0.0
    return float(tried[best] + np.clip(offset, -0.5, 0.5) * (tried[1] - tried[0]))
