# SPDX-License-Identifier: Apache-2.0
"""The two naive fillings of a view x time grid that any method must beat.

They copy or mix reference frames and never use depth, cameras or a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from viewtime.grid import FrameGrid


def _check(grid: FrameGrid, fixed_view: int, freeze_time: int) -> None:
    views, times = grid.known.shape
    if not (0 <= fixed_view < views and 0 <= freeze_time < times):
        raise ValueError(
            f"baseline: fixed_view {fixed_view} and freeze_time {freeze_time} in a grid of "
            f"{views} views and {times} times"
        )


def nearest_reference(grid: FrameGrid, fixed_view: int, freeze_time: int) -> NDArray[np.float32]:
    """(V, T, 3, H, W): each unknown cell repeats the nearer of its two reference frames.

    Nearer counts steps in the grid: the fixed view's frame of the same time is |v - fixed_view|
    away, the freeze-time frame of the same view |t - freeze_time|; on a tie the freeze-time frame
    is taken. Known cells come back as they are. Raises ValueError for an index outside the grid.
    """
    _check(grid, fixed_view, freeze_time)
    frames = grid.frames.copy()
    for v, t in np.argwhere(~grid.known):
        nearer_in_time = abs(t - freeze_time) <= abs(v - fixed_view)
        frames[v, t] = grid.frames[(v, freeze_time) if nearer_in_time else (fixed_view, t)]
    return frames


def blend_references(grid: FrameGrid, fixed_view: int, freeze_time: int) -> NDArray[np.float32]:
    """(V, T, 3, H, W): each unknown cell is the mean of its row's and its column's reference.

    Known cells come back as they are. Raises ValueError for an index outside the grid.
    """
    _check(grid, fixed_view, freeze_time)
    frames = grid.frames.copy()
    for v, t in np.argwhere(~grid.known):
        frames[v, t] = 0.5 * (grid.frames[v, freeze_time] + grid.frames[fixed_view, t])
    return frames
