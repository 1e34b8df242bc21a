# SPDX-License-Identifier: Apache-2.0
"""From a grid with known cells to a grid with all cells: encode, sample, decode.

Known cells come back exactly as given; nothing is read from or written to disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from viewtime.generator.conditioning import Conditions
from viewtime.generator.errors import GeneratorError
from viewtime.generator.fit import check_frames, check_times
from viewtime.generator.load import BASIC_MAPS, Generator
from viewtime.generator.sampler import asking, linear_schedule, sample
from viewtime.generator.text import clean_prompt

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
    guidance: float | None = None,
    prompt: str = "",
    negative_prompt: str = "",
    solver: str = "euler",
    shift: float = 1.0,
    texts: Tensor | None = None,
    on_step: Preview | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> np.ndarray:
    """All frames of the grid, (V, T, 3, H, W) float32 in [0, 1].

    prior: frames and validity for the unseen cells, or None. A model that takes one then starts
    from copies of the references (see `naive`), and from noise where there is no reference. Where
    the model was not made to take one, the prior's pixels lead it by latent replacement (see
    `sampler.keep_pixels`).
    prompt, negative_prompt: see `text`; guidance: of the prompt, see `choose_guidance`.
    texts: both prompts as `encode_texts` gives them, where that has been done already, with the
    guidance that `choose_guidance` gave.
    solver, shift: see `sampler`. on_step(step, steps, frames) gets what the grid would be if
    sampling ended there, (V, T, 3, h, w): a cheap look at the latents, and as small as these,
    where there is a VAE.
    With a prior, no more steps are taken than the model's `steps_with_prior`.
    The same seed gives the same frames on one device.
    Raises GeneratorError where grid and model do not fit, Cancelled soon after should_cancel().
    """
    check_frames(generator, *grid.frames.shape[-2:])
    check_times(generator, grid.frames.shape[1])  # before a text encoder of 10 GB is loaded
    if prior is None and generator.takes_prior and grid.known.any():
        from viewtime.generator.naive import naive_prior

        prior = naive_prior(grid.frames, grid.known, evidence=generator.takes_evidence)
    most = generator.model.config.steps_with_prior if prior is not None else 0
    schedule = linear_schedule(min(steps, most) if most else steps, shift)
    if texts is None:
        guidance = choose_guidance(generator, grid.known, guidance, prompt, negative_prompt)
        texts = encode_texts(generator, prompt, negative_prompt, guidance, should_cancel)
    elif guidance is None:
        guidance = default_guidance(generator, grid.known)
    codec, known, check = generator.codec, grid.known, asking(should_cancel)
    with codec.calling_before_each_part(check):
        conditions = make_conditions(generator, grid, prior, texts[:1])
    noise = torch.randn(
        conditions.reference.shape, generator=torch.Generator().manual_seed(seed)
    ).to(generator.device)

    def frames_of(latents: Tensor) -> np.ndarray:
        frames = codec.decode(latents[0]).cpu().numpy()
        frames[known] = grid.frames[known]
        return frames

    def report(step: int, total: int, latents: Tensor) -> None:
        if on_step is None:
            return
        if codec.spatial == 1:
            on_step(step, total, frames_of(latents))
        else:
            look = latent_preview(latents[0])
            on_step(step, total, look[:, latent_of_time(grid.frames.shape[1], look.shape[1])])

    latents = sample(
        generator.model, conditions, noise, schedule, solver=solver, guidance=guidance,
        negative=texts[1:] if guidance != 1 else None, on_step=report, should_cancel=should_cancel,
    )  # fmt: skip
    with codec.calling_before_each_part(check):
        return frames_of(latents)


def encode_texts(
    generator: Generator,
    prompt: str,
    negative_prompt: str,
    guidance: float,
    should_cancel: Callable[[], bool] | None = None,
) -> Tensor:
    """Embeddings (1 or 2, L, text_dim): of the prompt, and of the negative one if it is needed.

    Raises Cancelled before or after a text encoder is at work, as should_cancel() says.
    """
    prompts = [prompt] if guidance == 1 else [prompt, negative_prompt]
    if not generator.takes_text:
        return generator.encode_text(prompts)
    check = asking(should_cancel)
    check()
    texts = generator.encode_text(prompts)
    check()
    return texts


def latent_of_time(times: int, latent_times: int) -> list[int]:
    """The latent that each of the times is in: the first has one of its own, then several share."""
    if latent_times == 1:
        return [0] * times
    each = (times - 1) // (latent_times - 1)
    return [0, *(1 + t // each for t in range(times - 1))]


def default_guidance(generator: Generator, known: np.ndarray) -> float:
    """1 (none) with both references, where it hardly helps, 5 with one or none (appendix B).

    known: (V, T). Also 1 for a model without a text encoder, which has nothing to be guided by.
    """
    if not generator.takes_text:
        return 1.0
    both = bool(known.all(axis=0).any() and known.all(axis=1).any())
    return 1.0 if both else 5.0


def choose_guidance(
    generator: Generator, known: np.ndarray, wanted: float | None, prompt: str, negative_prompt: str
) -> float:
    """The guidance that is wanted, or `default_guidance` for None; 1 in any case where prompt and
    negative prompt are the same text, since a second pass at each step could change nothing."""
    if not generator.takes_text or clean_prompt(prompt) == clean_prompt(negative_prompt):
        return 1.0
    return default_guidance(generator, known) if wanted is None else wanted


def latent_preview(latents: Tensor) -> np.ndarray:
    """A rough look at latents (V, T', C, h, w): (V, T', 3, h, w) in [0, 1], no decoding.

    The three directions in which the latents differ most, as colours; shapes can be made out,
    the colours mean nothing.
    """
    flat = latents.float().cpu().movedim(2, -1).flatten(0, -2)  # (cells, C)
    flat = flat - flat.mean(dim=0)
    _, _, axes = torch.linalg.svd(flat[:: max(1, len(flat) // 4096)], full_matrices=False)
    shown = flat @ axes[:3].T
    shown = (0.5 + shown / (4 * shown.std().clamp_min(1e-6))).clamp(0, 1)
    views, times, _, height, width = latents.shape
    return shown.unflatten(0, (views, times, height, width)).movedim(-1, 2).numpy()


def make_conditions(
    generator: Generator, grid: FrameGrid, prior: Prior | None, text: Tensor | None = None
) -> Conditions:
    """References, prior and text of one grid as latents, with a batch axis of 1.

    text: (1, L, text_dim); None means that of no prompt.
    """
    check_frames(generator, *grid.frames.shape[-2:])
    codec, device = generator.codec, generator.device
    frames = torch.from_numpy(np.asarray(grid.frames, dtype=np.float32)).to(device)
    known = torch.from_numpy(np.asarray(grid.known)).to(device)
    reference, known_latents, exact = codec.encode_known(frames, known)
    conditions = Conditions(
        reference=reference[None],
        known=known_latents[None],
        exact=exact[None],
        text=generator.encode_text([""]) if text is None else text,
    )
    if generator.model.config.references == "kept":
        conditions = _led_by_references(conditions)
    if prior is None:
        return conditions
    if prior.frames.shape != grid.frames.shape:
        raise GeneratorError(
            f"the prior has frames {prior.frames.shape}, the grid {grid.frames.shape}"
        )
    prior_frames = torch.from_numpy(np.asarray(prior.frames, dtype=np.float32)).to(device)
    prior_frames[known] = frames[known]
    count = generator.model.config.prior_maps if generator.takes_prior else BASIC_MAPS
    maps = torch.from_numpy(prior_maps(prior, grid.known, count)).to(device)
    shrunk = codec.shrink(maps)[None]
    latents = codec.encode(prior_frames)[None]
    if not generator.takes_prior:
        return _led_by_pixels(conditions, shrunk[:, :, :, :1] > 0.5, latents)
    given = conditions.exactly_known[..., None, None, None]
    latents = torch.where(given, conditions.reference, latents)
    return replace(conditions, prior=latents, maps=shrunk)


def _led_by_references(conditions: Conditions) -> Conditions:
    """References that are not exact lead by latent replacement; exact ones are pinned anyway."""
    reference = conditions.reference
    cells = conditions.known & ~conditions.exactly_known  # (B, V, T)
    kept = cells[..., None, None, None].expand(*cells.shape, 1, *reference.shape[-2:])
    return replace(conditions, kept=kept, kept_latents=reference)


def _led_by_pixels(conditions: Conditions, valid: Tensor, latents: Tensor) -> Conditions:
    """Reprojected latents lead where they are valid (B, V, T, 1, h, w), before what led so far."""
    if conditions.kept is None or conditions.kept_latents is None:
        return replace(conditions, kept=valid, kept_latents=latents)
    latents = torch.where(valid, latents, conditions.kept_latents)
    return replace(conditions, kept=valid | conditions.kept, kept_latents=latents)


def prior_maps(prior: Prior, known: np.ndarray, count: int = BASIC_MAPS) -> np.ndarray:
    """What the model is told of a prior: (V, T, count, H, W) float32 in [0, 1].

    known (V, T). The first maps are zeros and ones: valid (or known), taken from the fixed view at
    its time, taken from what stands still. Of a naive filling none is set. The others are the
    prior's evidence. Raises GeneratorError for a prior without what the model wants.
    """
    from viewtime.generator.prior import EVIDENCE, ROW, STILL

    given, source = known[:, :, None, None], prior.source
    basic = (prior.valid | given, (source == ROW) & ~given, (source == STILL) & ~given)
    maps = np.stack(basic, axis=2).astype(np.float32)
    if count == BASIC_MAPS:
        return maps
    if count != BASIC_MAPS + EVIDENCE:
        raise GeneratorError(
            f"the model wants {count} maps of its prior, there are {BASIC_MAPS} or "
            f"{BASIC_MAPS + EVIDENCE}"
        )
    if prior.evidence is None:
        raise GeneratorError("the model wants the evidence of its prior: make it with evidence")
    return np.concatenate((maps, prior.evidence.astype(np.float32)), axis=2)
