# SPDX-License-Identifier: Apache-2.0
"""A start for the generator where no geometry is known: reference frames copied as they are.

It never moves a pixel and never looks at depth or cameras.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from viewtime.generator.prior import EVIDENCE, GIVEN, NAIVE, Prior, gather_evidence

Float32 = NDArray[np.float32]
Cell = tuple[int, int]


def naive_prior(frames: Float32, known: NDArray[np.bool_], *, evidence: bool = True) -> Prior:
    """Each unknown cell repeats the known frame that is likely to be most like it.

    frames (V, T, 3, H, W) display sRGB, read where known (V, T) only. A cell has the nearest known
    frame of its view and that of its time to choose from; it takes the one across which the
    references themselves change less (see `_likelier`), and any nearest frame where it has neither.
    No pixel of it is valid, as nothing says that it is right; evidence: see Prior.

    Raises ValueError when nothing at all is known: there is no such start then.
    """
    if not known.any():
        raise ValueError("naive filling: no frame is known")
    views, times, _, height, width = frames.shape
    made = frames.astype(np.float32, copy=True)
    kept = np.zeros((views, times, EVIDENCE, height, width), np.float16) if evidence else None
    every = np.ones((height, width), bool)

    def layer(cell: Cell | None) -> tuple[Float32, NDArray[np.bool_]] | None:
        return None if cell is None else (frames[cell].transpose(1, 2, 0), every)

    for v, t in np.argwhere(~known):
        column, row = _nearest(known, v, t)
        corner = None
        if column is not None and row is not None and known[row[0], column[1]]:
            corner = row[0], column[1]
        made[v, t] = frames[_likelier(frames, known, (v, t), column, row, corner)]
        if kept is not None and (column is not None or row is not None):
            kept[v, t] = gather_evidence([layer(column), layer(row), layer(corner)], 0.0)
    source = np.full((views, times, height, width), NAIVE, np.uint8)
    source[known] = GIVEN
    valid = np.broadcast_to(known[:, :, None, None], source.shape).copy()
    return Prior(made, np.full(source.shape, np.nan, np.float32), valid, source, kept)


def _nearest(known: NDArray[np.bool_], v: int, t: int) -> tuple[Cell | None, Cell | None]:
    """The nearest known cell of view v, and that of time t."""
    at_times, at_views = np.flatnonzero(known[v]), np.flatnonzero(known[:, t])
    column = (v, int(at_times[np.abs(at_times - t).argmin()])) if len(at_times) else None
    row = (int(at_views[np.abs(at_views - v).argmin()]), t) if len(at_views) else None
    return column, row


def _likelier(
    frames: Float32,
    known: NDArray[np.bool_],
    cell: Cell,
    column: Cell | None,
    row: Cell | None,
    corner: Cell | None,
) -> Cell:
    """Of two copies the likelier. The corner is to the row as the column is to the cell: what
    changes from the corner to the row changed with time, and a copy of the column lacks it; what
    changes from the corner to the column changed with the view, and a copy of the row lacks that.
    """
    if column is None and row is None:
        cells = np.argwhere(known)
        return tuple(cells[np.abs(cells - np.array(cell)).sum(axis=1).argmin()])
    if column is None or row is None:
        return column or row  # type: ignore[return-value]
    if corner is None:
        return column if abs(cell[1] - column[1]) <= abs(cell[0] - row[0]) else row
    with_time = np.square(frames[row] - frames[corner]).mean()
    with_view = np.square(frames[column] - frames[corner]).mean()
    return column if with_time <= with_view else row
