# SPDX-License-Identifier: GPL-3.0-or-later
"""Orders splats from far to near: at once, or in a thread of its own for the viewport.
It never touches bpy, so that a sort can run while Blender draws."""

from __future__ import annotations

import threading
from collections.abc import Hashable

import numpy as np

_MOST_VIEWS = 24  # orders kept; a view that was not drawn for longest is forgotten first


def far_to_near(position: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """(N,) indices, exact: by position @ forward, largest first; equals keep their order."""
    return np.argsort(-(position @ forward), kind="stable")


def far_to_near_fast(position: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """(N,) indices by depth in 65,536 steps: numpy sorts 16-bit integers by radix."""
    if not len(position):
        return np.zeros(0, np.int64)
    depth = position @ forward.astype(np.float32)
    near, far = float(depth.min()), float(depth.max())
    # Not finite: one broken splat must not take the order of all others.
    if not np.isfinite(far - near):
        depth = np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0)
        near, far = float(depth.min()), float(depth.max())
    steps = (far - depth) * np.float32(65535.0 / max(far - near, 1e-30))
    return np.argsort(steps.astype(np.uint16), kind="stable")


def fitted(order: np.ndarray, count: int) -> np.ndarray:
    """An order of another number of splats, made one of `count`: each index exactly once."""
    if len(order) > count:
        return order[order < count]
    if len(order) < count:
        return np.concatenate([np.arange(len(order), count), order])
    return order


class Sorter:
    """Orders for several views, computed one after the other in a thread that ends when idle.

    A job is named by the view (`key`); a newer job of a view replaces one that waits. The caller
    never waits: `order` gives the newest finished order of the view.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, tuple[Hashable, np.ndarray, np.ndarray]] = {}
        self._asked: dict[Hashable, Hashable] = {}
        self._done: dict[Hashable, tuple[Hashable, np.ndarray]] = {}
        self._thread: threading.Thread | None = None
        self._finished = 0

    def ask(
        self, key: Hashable, stamp: Hashable, position: np.ndarray, forward: np.ndarray
    ) -> None:
        """Begin to order `position` (N, 3) along `forward` (3,), unless `stamp` was asked last."""
        with self._lock:
            if self._asked.get(key) == stamp:
                return
            self._asked[key] = stamp
            self._waiting[key] = (stamp, position, forward)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="viewtime sort")
                self._thread.daemon = True
                self._thread.start()

    def order(self, key: Hashable) -> tuple[Hashable, np.ndarray] | None:
        """(stamp, order) of the view's last finished job."""
        with self._lock:
            found = self._done.pop(key, None)
            if found is not None:
                self._done[key] = found  # the most recently used is last
            return found

    @property
    def finished(self) -> int:
        """Jobs finished so far: a change means that a view wants to be drawn again."""
        return self._finished

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def forget(self) -> None:
        """Drop every order and every job that waits."""
        with self._lock:
            self._waiting.clear()
            self._asked.clear()
            self._done.clear()

    def join(self) -> None:
        """Wait until nothing is left to do (for tests)."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                key = next(iter(self._waiting))
                stamp, position, forward = self._waiting.pop(key)
            order = far_to_near_fast(position, forward)
            with self._lock:
                if key in self._asked:  # not forgotten meanwhile
                    self._done.pop(key, None)
                    self._done[key] = (stamp, order)
                    while len(self._done) > _MOST_VIEWS:
                        oldest = next(iter(self._done))
                        del self._done[oldest]
                        self._asked.pop(oldest, None)
                self._finished += 1
