# SPDX-License-Identifier: Apache-2.0
"""Depth that is wrong in the way predicted depth is, made from exact depth.

What stands still is off smoothly and alike at all times; what moves is off as a whole; the sky may
be taken for a surface. It never touches a colour.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from viewtime.gaussians.fill import push_pull
from viewtime.grid import FrameGrid

Float32 = NDArray[np.float32]

STILL_ERROR = (0.005, 0.04)
"""Range of the relative error of what stands still."""
MOVING_ERROR = 0.08
"""Relative error of the depth of what moved, one number per frame."""
CHANGED = 0.04
"""Colour difference from the freeze time over which a pixel counts as moved."""


def _smooth(rng: np.random.Generator, height: int, width: int) -> Float32:
    """(H, W) of about unit variance, without detail finer than an eighth of the frame."""
    coarse = rng.normal(size=(8, 8)).astype(np.float32)
    rows, columns = np.linspace(0, 7, height), np.linspace(0, 7, width)
    along = np.stack([np.interp(columns, np.arange(8), line) for line in coarse])
    field = np.stack([np.interp(rows, np.arange(8), line) for line in along.T], axis=1)
    return (1.4 * field).astype(np.float32)


def noisy_references(
    grid: FrameGrid, fixed_view: int, freeze_time: int, rng: np.random.Generator
) -> FrameGrid:
    """The grid with its references' depth made wrong; all else as it is."""
    assert grid.depth is not None
    depth = grid.depth.copy()
    views, times, height, width = depth.shape
    error = rng.uniform(*STILL_ERROR)
    sky_is_seen = rng.random() < 0.6
    for v in range(views):
        then = _without_sky(grid.depth[v, freeze_time], sky_is_seen)
        depth[v, freeze_time] = then * np.exp(error * _smooth(rng, height, width))
    row, still = grid.frames[fixed_view], depth[fixed_view, freeze_time]
    for t in range(times):
        if t == freeze_time:
            continue
        moved = np.abs(row[t] - row[freeze_time]).mean(axis=0) > CHANGED
        off = MOVING_ERROR * rng.normal() + error * _smooth(rng, height, width)
        now = _without_sky(grid.depth[fixed_view, t], sky_is_seen) * np.exp(off)
        depth[fixed_view, t] = np.where(moved, now, still)
    return FrameGrid(grid.frames, grid.known, depth)


def _without_sky(depth: Float32, keep: bool) -> Float32:
    """The depth (H, W), the sky's made up from what is around it unless it is kept."""
    finite = np.isfinite(depth)
    if keep or finite.all() or not finite.any():
        return depth
    inverse = np.where(finite, 1.0 / np.where(finite, depth, 1.0), 0.0).astype(np.float32)
    filled = push_pull(inverse[..., None], finite)[..., 0]
    return np.where(finite, depth, 1.3 / np.maximum(filled, 1e-6)).astype(np.float32)
