# SPDX-License-Identifier: Apache-2.0
"""A small picture of the grid while it is being made: one row per view, one column per time.
Never larger than a thumbnail, never handed out more than once a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LONGEST_SIDE = 384  # pixels of the whole picture
SECONDS_BETWEEN = 1.0
ASPECT, LEAST_COLUMNS = 2.0, 8
UNKNOWN = 40  # grey of a cell that nothing is known of yet


class GridPreview:
    """Collects frames and hands the picture, uint8 (H, W, 3), to `show` at most once a second.

    views, times, width, height: of the grid. With more times than fit, every k-th is shown.
    """

    def __init__(
        self,
        show: Callable[[np.ndarray], None] | None,
        views: int,
        times: int,
        width: int,
        height: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show, self._clock, self._last = show, clock, -SECONDS_BETWEEN
        if show is None:
            return
        import numpy as np

        # At most twice as wide as high, so that frames stay large enough to see something.
        most = max(LEAST_COLUMNS, int(ASPECT * views * height / width))
        self._every = -(-times // most)
        columns = -(-times // self._every)
        scale = min(LONGEST_SIDE / (columns * width), LONGEST_SIDE / (views * height), 1.0)
        self._cell = max(1, int(height * scale)), max(1, int(width * scale))
        rows, wide = self._cell
        self._picture = np.full((views * rows, columns * wide, 3), UNKNOWN, np.uint8)

    def put(self, view: int, at: int, frame: np.ndarray) -> None:
        """One frame, (3, H, W) float in [0, 1]."""
        if self._show is None or at % self._every:
            return
        import numpy as np

        rows, wide = self._cell
        top, left = view * rows, at // self._every * wide
        # The nearest pixel serves: this is looked at for a second.
        ys = np.arange(rows) * frame.shape[1] // rows
        xs = np.arange(wide) * frame.shape[2] // wide
        small = frame[:, ys][:, :, xs].transpose(1, 2, 0)
        cell = self._picture[top : top + rows, left : left + wide]
        cell[:] = np.clip(small * 255 + 0.5, 0, 255).astype(np.uint8)

    def put_grid(self, frames: np.ndarray, known: np.ndarray | None = None) -> None:
        """Every frame of (V, T, 3, H, W); with known (V, T), those alone."""
        if self._show is None:
            return
        for view in range(frames.shape[0]):
            for at in range(frames.shape[1]):
                if known is None or known[view, at]:
                    self.put(view, at, frames[view, at])

    def due(self) -> bool:
        return self._show is not None and self._clock() - self._last >= SECONDS_BETWEEN

    def flush(self) -> None:
        """Hand the picture out, if a second has passed since the last one."""
        if self.due() and self._show is not None:
            self._last = self._clock()
            self._show(self._picture.copy())
