# SPDX-License-Identifier: Apache-2.0
"""Depth for references that carry none: a freeze-time column and the clip of a fixed view.

The column is a still scene seen by several cameras; the fixed view keeps the column's depth where
nothing changes in it. Needs a rig, and never touches a frame.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from viewtime.gaussians.lift import clean_depth
from viewtime.grid import FrameGrid
from viewtime.progress import Cancelled
from viewtime.reconstructor.lift import SWEEP_SIZE, agreed
from viewtime.reconstructor.lift_predict import model_size, predict
from viewtime.reconstructor.model import Reconstructor
from viewtime_formats.rig import Rig

Float32 = NDArray[np.float32]

CHANGED = 0.04
"""Mean colour difference from the freeze time over which a pixel of the fixed view has changed."""
LIKEST = 5
"""Pixels of the freeze-time frame whose median depth a changed pixel is given."""
MATCHED_AT_ONCE = 1024
SKY = 1e4
"""Stands for the sky's depth in a median, times the farthest surface's."""


def reference_depth(
    reconstructor: Reconstructor,
    grid: FrameGrid,
    rig: Rig,
    fixed_view: int,
    freeze_time: int,
    *,
    memory_budget_gb: float | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Float32 | None:
    """Depth (V, T, H, W) of the fixed view's row and the freeze-time column, nan elsewhere.

    The column's is predicted and then made to agree between the views (`sweep`). The fixed view
    keeps the column's at all times where its colour does not change; what changes takes the depth
    of what looks like it, nearby, among all that ever changes, as the freeze time shows it: things
    that move mostly keep their distance better than a prediction from one view knows it.

    grid: knows that row and that column. Where its column carries depth, that is taken instead of
    a prediction; where the row does, too. rig: V cameras at any size.

    Returns planar z in scene units, inf for the sky; None when the scale of the rig is not to be
    found, since views cannot be compared then. Raises Cancelled, and BudgetError for a budget that
    cannot be kept.
    """
    views, times, _, height, width = grid.frames.shape
    still = _given(grid, freeze_time)
    measured = still is not None
    if still is None:
        column = np.ascontiguousarray(grid.frames[:, freeze_time, None])
        predicted = predict(
            reconstructor,
            column,
            rig.resized(width, height),
            memory_budget_gb=memory_budget_gb,
            should_cancel=should_cancel,
        )
        if predicted.scale in ("free", "guessed"):
            return None
        _check(should_cancel)
        still = agreed(predicted, column, 0)
    depth = np.full((views, times, height, width), np.nan, np.float32)
    depth[fixed_view] = still[fixed_view]
    depth[:, freeze_time] = still
    row = grid.frames[fixed_view]
    changed = np.stack([_changes(now, row[freeze_time]) for now in row])
    ever: NDArray[np.bool_] = np.logical_or.reduce(changed, axis=0)
    for t in range(times):
        _check(should_cancel)
        if changed[t].any():
            here = still[fixed_view]
            alike = depth_of_the_alike(row[t], row[freeze_time], here, changed[t], ever)
            depth[fixed_view, t] = np.where(changed[t], alike, here)
    if measured and grid.depth is not None:
        depth[fixed_view] = np.where(
            np.isnan(grid.depth[fixed_view]), depth[fixed_view], grid.depth[fixed_view]
        )
    return depth


def _given(grid: FrameGrid, freeze_time: int) -> Float32 | None:
    """The column's own depth (V, H, W), None unless every view has some."""
    if grid.depth is None:
        return None
    column = clean_depth(grid.depth[:, freeze_time])
    return None if np.isnan(column).all(axis=(1, 2)).any() else column


def depth_of_the_alike(
    now: Float32,
    then: Float32,
    depth: Float32,
    wanted: NDArray[np.bool_],
    among: NDArray[np.bool_],
) -> Float32:
    """Depth (H, W) of a frame `now` (3, H, W) where wanted: that of the pixels of the frame `then`,
    among those allowed, that are likest in colour and place; the width of the frame counts as much
    as one channel from black to white. depth: that of `then`. Compared at SWEEP_SIZE pixels."""
    height, width = wanted.shape
    small_w, small_h = model_size(width, height, min(SWEEP_SIZE, max(width, height)), 1)
    rows = ((np.arange(small_h) + 0.5) * height / small_h).astype(int)
    columns = ((np.arange(small_w) + 0.5) * width / small_w).astype(int)
    pick = np.ix_(rows, columns)
    sources = np.flatnonzero(among[pick])
    place = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1) / max(width, height)

    def features(frame: Float32) -> torch.Tensor:
        colours = frame[:, rows[:, None], columns[None]].transpose(1, 2, 0)
        both = np.concatenate((colours, place), axis=-1).reshape(-1, 5)
        return torch.from_numpy(both.astype(np.float32))

    known = depth[pick].ravel()[sources]
    sources, known = sources[~np.isnan(known)], known[~np.isnan(known)]
    if not len(sources):
        return depth
    finite = np.isfinite(known)
    far = SKY * float(known[finite].max()) if finite.any() else np.inf
    inverse = torch.from_numpy(1.0 / np.where(finite, known, far).astype(np.float64))
    candidates, count = features(then)[sources], min(LIKEST, len(sources))
    targets = np.flatnonzero(wanted[pick])
    found = np.zeros(small_h * small_w)
    for first in range(0, len(targets), MATCHED_AT_ONCE):
        these = targets[first : first + MATCHED_AT_ONCE]
        near = torch.cdist(features(now)[these], candidates).topk(count, largest=False).indices
        found[these] = inverse[near].median(dim=1).values.numpy()
    # Back to the frame's own pixels: the nearest that was compared.
    to_row = np.minimum(np.arange(height) * small_h // height, small_h - 1)
    to_column = np.minimum(np.arange(width) * small_w // width, small_w - 1)
    wide = found.reshape(small_h, small_w)[np.ix_(to_row, to_column)]
    with np.errstate(divide="ignore"):
        made = np.where(wide > 2.0 / far, 1.0 / wide, np.inf)
    missed = wide == 0.0  # wanted, but its place on the coarser grid was not
    return np.where(missed, depth, made).astype(np.float32)


def _changes(now: Float32, then: Float32) -> NDArray[np.bool_]:
    """(H, W): where two frames (3, H, W) differ, and the pixels next to that."""
    changed = np.abs(now - then).mean(axis=0) > CHANGED
    padded = np.pad(changed, 1)
    height, width = changed.shape
    return np.logical_or.reduce(
        [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    )


def _check(should_cancel: Callable[[], bool] | None) -> None:
    if should_cancel is not None and should_cancel():
        raise Cancelled("the run was cancelled")
