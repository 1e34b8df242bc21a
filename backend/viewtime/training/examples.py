# SPDX-License-Identifier: Apache-2.0
"""Grids to train and judge the generator with: synthetic scenes, their references, their prior.

Each is a function of its number; nothing is stored, nothing is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from viewtime.data.synthetic import sample_grid
from viewtime.generator.codec import PixelCodec
from viewtime.generator.conditioning import Conditions
from viewtime.generator.generation import BASIC_MAPS, prior_maps
from viewtime.generator.naive import naive_prior
from viewtime.generator.prior import (
    EVIDENCE,
    PREDICTED_NOISE,
    Prior,
    only_references,
    reprojection_prior,
)
from viewtime.grid import FrameGrid
from viewtime.training.depth_noise import noisy_references

if TYPE_CHECKING:
    from viewtime_formats.rig import Rig

HELD_OUT_SEED = 900_000_000
"""Scenes from here on are never trained on."""

GIVEN = ("depth", "noisy", "both", "row", "column", "none")
"""What an example gives. depth: row and column with exact depth, reprojected; noisy: with depth as
wrong as predicted depth is; both: the same without depth; row, column: one of them; none."""
MAPS = BASIC_MAPS + EVIDENCE


@dataclass(frozen=True)
class GridExample:
    """truth: (V, T, 3, H, W) float32 in [0, 1]; prior: the same, or None where nothing is given;
    maps: (V, T, MAPS, H, W), see prior_maps; known: (V, T) bool; fixed_view, freeze_time: the row
    and column that are given where they are; given: one of GIVEN."""

    truth: np.ndarray
    prior: np.ndarray | None
    maps: np.ndarray
    known: np.ndarray
    fixed_view: int
    freeze_time: int
    given: str = "depth"


@dataclass(frozen=True)
class GridChoice:
    """Which grid of which scene: everything that its pictures follow from."""

    scene: int
    views: int
    times: int
    size: int
    frame_step: float
    fixed_view: int
    freeze_time: int
    cast_on: str = "numba"


@lru_cache(maxsize=4)
def _grid(choice: GridChoice) -> tuple[FrameGrid, Rig]:
    if choice.cast_on == "numba":
        return sample_grid(
            choice.scene, choice.views, choice.times, choice.size, frame_step=choice.frame_step
        )
    from viewtime.data.raycast_torch import sample_grid_on

    frames, depth, rig = sample_grid_on(
        choice.cast_on, choice.scene, choice.views, choice.times, choice.size,
        frame_step=choice.frame_step,
    )  # fmt: skip
    known = np.ones((choice.views, choice.times), bool)
    return FrameGrid(frames.cpu().numpy(), known, depth.cpu().numpy()), rig


@lru_cache(maxsize=4)
def _reprojected(choice: GridChoice, noisy: bool) -> Prior:
    grid, rig = _grid(choice)
    references = only_references(grid, choice.fixed_view, choice.freeze_time)
    noise = 0.0
    if noisy:
        rng = np.random.default_rng((choice.scene, 5))
        references = noisy_references(references, choice.fixed_view, choice.freeze_time, rng)
        noise = PREDICTED_NOISE
    return reprojection_prior(
        references, rig, choice.fixed_view, choice.freeze_time, depth_noise=noise, evidence=True
    )


def grid_example(choice: GridChoice, given: str = "depth") -> GridExample:
    """Cast a scene's grid, forget all but what is given, make the prior of that."""
    frames = _grid(choice)[0].frames
    known = np.zeros((choice.views, choice.times), bool)
    if given not in ("column", "none"):
        known[choice.fixed_view] = True
    if given not in ("row", "none"):
        known[:, choice.freeze_time] = True
    prior = None
    if given in ("depth", "noisy"):
        prior = _reprojected(choice, given == "noisy")
    elif known.any():
        prior = naive_prior(frames, known, evidence=True)
    if prior is None:
        maps = np.zeros((*known.shape, MAPS, *frames.shape[3:]), np.float32)
    else:
        maps = prior_maps(prior, known, MAPS)
    return GridExample(
        frames, None if prior is None else prior.frames, maps, known,
        choice.fixed_view, choice.freeze_time, given,
    )  # fmt: skip


def training_example(
    number: int,
    *,
    seed: int,
    size: int,
    tokens: int,
    patch: int,
    reuse: int,
    shares: dict[str, float],
    slot: int = 0,
    cast_on: str = "numba",
) -> GridExample:
    """The example of step `number` at place `slot` of its batch: a window of a grid of at most
    `tokens` tokens, or of 2 x 2 cells where that is more.

    `reuse` steps in a row take windows of the same grids, 2 to 6 views by 2 to 6 times; the
    examples of one step are of one shape. Windows are half, three quarters or all of the frames,
    the same in all cells; the smaller they are, the more cells fit. shares: how often each of
    GIVEN is drawn. Colours, sides and the order of views are varied: the renderer's are few.
    cast_on: "numba", or the torch device that casts the rays.
    """
    shape = np.random.default_rng((seed, number // reuse))
    edge = int(shape.choice((size // 2, size * 3 // 4, size), p=(0.5, 0.3, 0.2)))
    limit = max(tokens // (edge // patch) ** 2, 4)  # cells
    shapes = [(v, t) for v in range(2, 7) for t in range(2, 7) if v * t <= limit]
    most = max(v * t for v, t in shapes)
    views, times = shapes[int(shape.choice([
        i for i, (v, t) in enumerate(shapes) if v * t >= 0.6 * most
    ]))]  # fmt: skip
    scene = np.random.default_rng((seed, number // reuse, 3, slot))
    choice = GridChoice(
        scene=int(scene.integers(HELD_OUT_SEED)),
        views=views,
        times=times,
        size=size,
        frame_step=float(np.exp(scene.uniform(np.log(0.7), np.log(8.0)))),
        fixed_view=0 if scene.random() < 0.6 else int(scene.integers(views)),
        freeze_time=0 if scene.random() < 0.4 else int(scene.integers(times)),
        cast_on=cast_on,
    )
    # No prior goes for a whole batch, and so does exact depth: they do not mix with others.
    common = np.random.default_rng((seed, number, 4))
    window = np.random.default_rng((seed, number, 1, slot))
    weights = {name: shares.get(name, 0.0) for name in GIVEN if name != "none"}
    given = "none"
    if common.random() >= shares.get("none", 0.0) and sum(weights.values()) > 0:
        exact = weights.pop("depth") / (sum(weights.values()) + shares.get("depth", 0.0))
        given = "depth"
        if common.random() >= exact:
            ends = np.cumsum(list(weights.values()))
            place = int(np.searchsorted(ends / ends[-1], window.random(), "right"))
            given = list(weights)[place]
    return _varied(grid_example(choice, given), window, edge)


def held_out_examples(
    count: int, *, size: int, views: int = 5, times: int = 5, given: str = "depth"
) -> list[GridExample]:
    """The examples that every evaluation uses."""
    return [
        grid_example(
            GridChoice(
                HELD_OUT_SEED + number, views, times, size,
                frame_step=2.0 + number % 4, fixed_view=0, freeze_time=number % 2 * (times // 2),
            ),
            given,
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
        varied: np.ndarray = np.clip(x[:, :, channels] ** gamma * gain, 0, 1)
        return varied.astype(np.float32)

    maps = cut(example.maps)
    for first in range(BASIC_MAPS, BASIC_MAPS + 9, 3):  # the evidence's colours
        maps[:, :, first : first + 3] = recolour(maps[:, :, first : first + 3])
    views = example.known.shape[0]
    return GridExample(
        recolour(cut(example.truth)),
        None if example.prior is None else recolour(cut(example.prior)),
        maps,
        np.ascontiguousarray(example.known[::order]),
        example.fixed_view if order > 0 else views - 1 - example.fixed_view,
        example.freeze_time,
        example.given,
    )


def conditions_of(
    examples: list[GridExample], maps: int = MAPS, device: torch.device | str = "cpu"
) -> tuple[Tensor, Conditions]:
    """Clean latents (B, V, T, 3, H, W) and all conditions of examples of one shape, float32 on a
    device; maps: how many of theirs the model takes."""
    codec = PixelCodec()

    def stack(arrays: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device)

    truth = codec.encode(stack([e.truth for e in examples]).float())
    known = stack([e.known for e in examples])
    given = known[..., None, None, None]
    prior = None
    if examples[0].prior is not None:
        prior = torch.where(given, truth, codec.encode(stack([e.prior for e in examples]).float()))
    conditions = Conditions(
        reference=truth * given,
        known=known,
        text=torch.zeros(len(examples), 0, 16, device=device),
        prior=prior,
        maps=None if prior is None else stack([e.maps[:, :, :maps] for e in examples]).float(),
    )
    return truth, conditions


def half(example: GridExample) -> GridExample:
    """The same in float16, for the way from one process to another."""
    return replace(
        example,
        truth=example.truth.astype(np.float16),
        prior=None if example.prior is None else example.prior.astype(np.float16),
        maps=example.maps.astype(np.float16),
    )
