# SPDX-License-Identifier: Apache-2.0
"""Longer clips and wider rigs than a model was trained on: overlapping windows over both axes.

Each window takes what the windows before it made as its references, so that rows and columns
go on where they were; nothing is made twice and nothing is blended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from viewtime.generator.codec import WanCodec
from viewtime.generator.errors import GeneratorError
from viewtime.generator.generation import Preview, generate
from viewtime.generator.load import Generator

if TYPE_CHECKING:
    from viewtime.generator.prior import Prior
    from viewtime.grid import FrameGrid


def spans(count: int, window: int, overlap: int) -> list[range]:
    """Windows over 0..count-1, each but the first beginning `overlap` before the end of the last.

    The last one is moved back so that it is as long as the others. Raises GeneratorError when the
    overlap leaves nothing new.
    """
    if not 1 <= overlap < window and count > window:
        raise GeneratorError(
            f"windows of {window} with an overlap of {overlap}: the overlap must be from 1 to "
            f"{window - 1}"
        )
    if count <= window:
        return [range(count)]
    found = [range(window)]
    while found[-1].stop < count:
        start = min(found[-1].stop - overlap, count - window)
        found.append(range(start, start + window))
    return found


def generate_in_windows(
    generator: Generator,
    grid: FrameGrid,
    *,
    prior: Prior | None,
    views_at_once: int,
    times_at_once: int,
    overlap_views: int = 1,
    overlap_times: int = 1,
    seed: int = 0,
    on_step: Preview | None = None,
    should_cancel: Callable[[], bool] | None = None,
    **settings: object,
) -> np.ndarray:
    """All frames of the grid, (V, T, 3, H, W), a window at a time; settings as in `generate`.

    Windows go along time first, then on to the next views; where there is a VAE, times_at_once
    and overlap_times must be 1 + 4k, since a window's first frames are its anchor.
    on_step counts the steps of all windows together.
    """
    views, times = grid.known.shape
    if isinstance(generator.codec, WanCodec):
        for name, value in (("times_at_once", times_at_once), ("overlap_times", overlap_times)):
            if (value - 1) % generator.codec.temporal and times > times_at_once:
                raise GeneratorError(
                    f"{name} is {value}, must be 1 + {generator.codec.temporal}k for this model"
                )
    boxes = list(_boxes(views, times, views_at_once, times_at_once, overlap_views, overlap_times))
    frames, known = grid.frames.copy(), grid.known.copy()
    for number, (rows, columns) in enumerate(boxes):
        box = np.ix_(rows, columns)
        if known[box].all():
            continue

        def step(done: int, total: int, shown: np.ndarray | None, number: int = number) -> None:
            if on_step is not None:
                on_step(number * total + done, len(boxes) * total, None)

        part = replace(grid, frames=frames[box], known=known[box], depth=None)
        some = None
        if prior is not None:
            some = replace(
                prior, frames=prior.frames[box], depth=prior.depth[box],
                valid=prior.valid[box], source=prior.source[box],
            )  # fmt: skip
        frames[box] = generate(
            generator, part, prior=some, seed=seed + number, on_step=step,
            should_cancel=should_cancel, **settings,  # type: ignore[arg-type]
        )  # fmt: skip
        known[box] = True
    return frames


def _boxes(
    views: int, times: int, view_window: int, time_window: int, over_views: int, over_times: int
) -> Iterator[tuple[list[int], list[int]]]:
    for rows in spans(views, view_window, over_views):
        for columns in spans(times, time_window, over_times):
            yield list(rows), list(columns)


def seam_error(frames: np.ndarray, truth: np.ndarray, windows: list[range]) -> dict[str, float]:
    """How much worse the change across a seam is than inside a window, along the time axis.

    frames, truth: (V, T, 3, H, W). For every pair of neighbouring times the error of the change,
    mean |(f[t+1] - f[t]) - (g[t+1] - g[t])|. Returns its mean at the pairs where one window hands
    over to the next ("seam"), at all others ("inside"), and their ratio.
    """
    change = np.diff(frames, axis=1) - np.diff(truth, axis=1)
    errors = np.abs(change).mean(axis=(0, 2, 3, 4))  # (T - 1,)
    seams = {window.stop - 1 for window in windows[:-1]}
    at = np.array([t in seams for t in range(len(errors))])
    seam, inside = float(errors[at].mean()), float(errors[~at].mean())
    return {"seam": seam, "inside": inside, "ratio": seam / max(inside, 1e-12)}
