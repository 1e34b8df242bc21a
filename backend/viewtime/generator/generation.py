# SPDX-License-Identifier: Apache-2.0
"""From a grid with known cells to a grid with all cells: encode, sample, decode.

Known cells come back exactly as given; nothing is read from or written to disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from viewtime.generator.conditioning import Conditions
from viewtime.generator.errors import GeneratorError
from viewtime.generator.load import Generator
from viewtime.generator.sampler import linear_schedule, sample

if TYPE_CHECKING:
    from viewtime.generator.prior import Prior
    from viewtime.grid import FrameGrid

Preview = Callable[[int, int, "np.ndarray | None"], None]


def generate(
    generator: Generator,
    grid: FrameGrid,
    *,
    prior: Prior | None,
    steps: int = 4,
    seed: int = 0,
    on_step: Preview | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> np.ndarray:
    """All frames of the grid, (V, T, 3, H, W) float32 in [0, 1].

    prior: frames and validity for the unseen cells, or None. on_step(step, steps, frames) gets
    what the grid would be if sampling ended there (None when that would cost a VAE decoding).
    With a prior, no more steps are taken than the model's `steps_with_prior`.
    The same seed gives the same frames on one device.
    Raises GeneratorError where grid and model do not fit, Cancelled soon after should_cancel().
    """
    most = generator.model.config.steps_with_prior if prior is not None else 0
    schedule = linear_schedule(min(steps, most) if most else steps)
    conditions = make_conditions(generator, grid, prior)
    noise = torch.randn(
        conditions.reference.shape, generator=torch.Generator().manual_seed(seed)
    ).to(generator.device)
    codec, known = generator.codec, grid.known

    def frames_of(latents: Tensor) -> np.ndarray:
        frames = codec.decode(latents[0]).cpu().numpy()
        frames[known] = grid.frames[known]
        return frames

    def report(step: int, total: int, latents: Tensor) -> None:
        if on_step is not None:
            on_step(step, total, frames_of(latents) if codec.spatial == 1 else None)

    latents = sample(
        generator.model, conditions, noise, schedule, on_step=report, should_cancel=should_cancel
    )
    return frames_of(latents)


def make_conditions(generator: Generator, grid: FrameGrid, prior: Prior | None) -> Conditions:
    """References, prior and text of one grid as latents, with a batch axis of 1."""
    views, times, _, height, width = grid.frames.shape
    rows, columns = generator.frame_multiple
    if height % rows or width % columns:
        near = f"{max(round(width / columns), 1) * columns} x {max(round(height / rows), 1) * rows}"
        raise GeneratorError(
            f"frames of {width} x {height} px do not fit the generator, whose frames are multiples "
            f"of {columns} x {rows}: use {near}"
        )
    if prior is not None and not generator.takes_prior:
        raise GeneratorError(f"{generator.name} takes no prior: generate without one")
    codec, device = generator.codec, generator.device
    frames = torch.from_numpy(np.asarray(grid.frames, dtype=np.float32)).to(device)
    known = torch.from_numpy(np.asarray(grid.known)).to(device)
    reference, known_latents = codec.encode_known(frames, known)
    config = generator.model.transformer.config
    conditions = Conditions(
        reference=reference[None],
        known=known_latents[None],
        text=torch.zeros(1, generator.model.config.text_tokens, config.text_dim, device=device),
    )
    if prior is None:
        return conditions
    if prior.frames.shape != grid.frames.shape:
        raise GeneratorError(
            f"the prior has frames {prior.frames.shape}, the grid {grid.frames.shape}"
        )
    prior_frames = torch.from_numpy(np.asarray(prior.frames, dtype=np.float32)).to(device)
    prior_frames[known] = frames[known]
    maps = torch.from_numpy(prior_maps(prior.valid, prior.source, grid.known)).to(device)
    return Conditions(
        reference=conditions.reference,
        known=conditions.known,
        text=conditions.text,
        prior=torch.where(
            conditions.known[..., None, None, None],
            conditions.reference,
            codec.encode(prior_frames)[None],
        ),
        maps=codec.shrink(maps)[None],
    )


def prior_maps(valid: np.ndarray, source: np.ndarray, known: np.ndarray) -> np.ndarray:
    """What the model is told of a prior: (V, T, 3, H, W) float32 of zeros and ones.

    valid (V, T, H, W) bool and source (V, T, H, W) as in Prior, known (V, T). The maps are: valid
    (or known), taken from the fixed view at its time, taken from what stands still.
    """
    from viewtime.generator.prior import ROW, STILL

    given = known[:, :, None, None]
    maps = np.stack((valid | given, (source == ROW) & ~given, (source == STILL) & ~given), axis=2)
    return maps.astype(np.float32)
