# SPDX-License-Identifier: Apache-2.0
"""Grids to train and judge the generator with: synthetic scenes, their references, their prior.

Each is a function of its number; nothing is stored, nothing is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from viewtime.data.synthetic import sample_grid
from viewtime.generator.generation import prior_maps
from viewtime.generator.prior import only_references, reprojection_prior

HELD_OUT_SEED = 900_000_000
"""Scenes from here on are never trained on."""


@dataclass(frozen=True)
class GridExample:
    """truth, prior: (V, T, 3, H, W) float32 in [0, 1]; maps: (V, T, 3, H, W), see prior_maps;
    known: (V, T) bool; fixed_view, freeze_time: the known row and column."""

    truth: np.ndarray
    prior: np.ndarray
    maps: np.ndarray
    known: np.ndarray
    fixed_view: int
    freeze_time: int


def grid_example(
    scene: int,
    *,
    views: int,
    times: int,
    size: int,
    frame_step: float,
    fixed_view: int,
    freeze_time: int,
) -> GridExample:
    """Render a scene's grid, forget all but a row and a column, reproject these."""
    grid, rig = sample_grid(scene, views, times, size, frame_step=frame_step)
    references = only_references(grid, fixed_view, freeze_time)
    prior = reprojection_prior(references, rig, fixed_view, freeze_time)
    maps = prior_maps(prior.valid, prior.source, references.known)
    return GridExample(grid.frames, prior.frames, maps, references.known, fixed_view, freeze_time)


def training_example(
    number: int, *, seed: int, size: int, tokens: int, patch: int, reuse: int
) -> GridExample:
    """The number-th training example: a window of a grid of at most `tokens` tokens.

    `reuse` examples in a row are windows of the same grid, 2 to 6 views by 2 to 6 times. Windows
    are half, three quarters or all of the frames, the same in all cells; the smaller they are,
    the more cells fit. Colours, sides and the order of views are varied: the renderer's are few.
    """
    shared = np.random.default_rng((seed, number // reuse))
    edge = int(shared.choice((size // 2, size * 3 // 4, size), p=(0.5, 0.3, 0.2)))
    limit = tokens // (edge // patch) ** 2  # cells
    shapes = [(v, t) for v in range(2, 7) for t in range(2, 7) if v * t <= limit]
    most = max(v * t for v, t in shapes)
    views, times = shapes[int(shared.choice([
        i for i, (v, t) in enumerate(shapes) if v * t >= 0.6 * most
    ]))]  # fmt: skip
    example = _cached_example(
        int(shared.integers(HELD_OUT_SEED)),
        views=views,
        times=times,
        size=size,
        frame_step=float(np.exp(shared.uniform(np.log(0.7), np.log(8.0)))),
        fixed_view=0 if shared.random() < 0.6 else int(shared.integers(views)),
        freeze_time=0 if shared.random() < 0.4 else int(shared.integers(times)),
    )
    return _varied(example, np.random.default_rng((seed, number, 1)), edge)


_cached_example = lru_cache(maxsize=1)(grid_example)


def held_out_examples(
    count: int, *, size: int, views: int = 5, times: int = 5
) -> list[GridExample]:
    """The examples that every evaluation uses."""
    return [
        grid_example(
            HELD_OUT_SEED + number, views=views, times=times, size=size,
            frame_step=2.0 + number % 4, fixed_view=0, freeze_time=number % 2 * (times // 2),
        )
        for number in range(count)
    ]  # fmt: skip


def _varied(example: GridExample, rng: np.random.Generator, edge: int) -> GridExample:
    height, width = example.truth.shape[-2:]
    top, left = (int(rng.integers(0, n - edge + 1)) for n in (height, width))
    window = np.s_[..., top : top + edge, left : left + edge]
    step = -1 if rng.random() < 0.5 else 1  # mirror
    order = -1 if rng.random() < 0.5 else 1  # of views
    channels = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
    gamma, gain = np.exp(rng.uniform(-0.4, 0.4)), rng.uniform(0.8, 1.15)

    def cut(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x[window][::order][..., ::step])

    def recolour(x: np.ndarray) -> np.ndarray:
        varied: np.ndarray = np.clip(cut(x)[:, :, channels] ** gamma * gain, 0, 1)
        return varied.astype(np.float32)

    views = example.known.shape[0]
    return GridExample(
        recolour(example.truth),
        recolour(example.prior),
        cut(example.maps),
        np.ascontiguousarray(example.known[::order]),
        example.fixed_view if order > 0 else views - 1 - example.fixed_view,
        example.freeze_time,
    )
