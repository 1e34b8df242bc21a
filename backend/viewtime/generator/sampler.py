# SPDX-License-Identifier: Apache-2.0
"""Steps along a rectified flow: a function of (model, conditions, noise, schedule).

It never draws noise itself and never knows of frames, only of latents. The solvers are diffusers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viewtime.generator.conditioning import Conditions, source
from viewtime.generator.errors import GeneratorError
from viewtime.generator.model import ViewTimeTransformer

OnStep = Callable[[int, int, Tensor], None]

SOLVERS = ("euler", "unipc")
"""euler: what the paper and the bundled model use. unipc: what Wan's checkpoints come with."""

KEEP_UNTIL = 0.3
"""Flow time down to which kept pixels lead a model that takes no prior; below it the model is free
to blend them with what it made beside them."""


class Cancelled(Exception):
    """The caller asked to stop; nothing was produced."""


def asking(should_cancel: Callable[[], bool] | None) -> Callable[[], None]:
    """A function that raises Cancelled once should_cancel() says so."""

    def check() -> None:
        if should_cancel is not None and should_cancel():
            raise Cancelled

    return check


def linear_schedule(steps: int, shift: float = 1.0) -> list[float]:
    """Flow times from 1 down; the end at 0 is implied. steps=4, shift=1: 1, .75, .5, .25.

    shift: s -> shift * s / (1 + (shift - 1) * s), as Wan's checkpoints want for many steps (3 for
    480 lines, 5 for 720). With few steps it bunches them at the ends and wastes the last one.
    """
    if steps < 1:
        raise GeneratorError(f"steps is {steps}, must be at least 1")
    if not shift > 0:
        raise GeneratorError(f"shift is {shift}, must be above 0")
    even = [1 - i / steps for i in range(steps)]
    return [shift * s / (1 + (shift - 1) * s) for s in even]


def make_scheduler(solver: str, schedule: Sequence[float], device: torch.device) -> Any:
    """A diffusers scheduler that is ready to step through the schedule."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    scheduler: Any
    if solver == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    elif solver == "unipc":
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
        )
    else:
        raise GeneratorError(f"solver is {solver!r}, must be one of {', '.join(SOLVERS)}")
    scheduler.set_timesteps(sigmas=np.array(schedule), device=device)
    return scheduler


def pin_known(x: Tensor, t: Tensor, start: Tensor, conditions: Conditions) -> Tensor:
    """Put what is known exactly on its straight way from start to reference, at flow time t.

    x, start: (B, V, T, C, h, w); t: (B,). Training and sampling both see known cells like this.
    """
    t = t.view(-1, 1, 1, 1, 1, 1)
    known = conditions.exactly_known[..., None, None, None]
    return torch.where(known, (1 - t) * conditions.reference + t * start, x)


def keep_pixels(x: Tensor, t: Tensor, start: Tensor, conditions: Conditions) -> Tensor:
    """The training-free use of reprojected pixels, and of references that are not exact: where they
    are valid, they replace the latents, noised as far as the flow time t (B,) says, until
    KEEP_UNTIL."""
    if conditions.kept is None or conditions.kept_latents is None or float(t.max()) <= KEEP_UNTIL:
        return x
    t = t.view(-1, 1, 1, 1, 1, 1)
    return torch.where(conditions.kept, (1 - t) * conditions.kept_latents + t * start, x)


@torch.no_grad()
def sample(
    model: ViewTimeTransformer,
    conditions: Conditions,
    noise: Tensor,
    schedule: Sequence[float],
    *,
    solver: str = "euler",
    guidance: float = 1.0,
    negative: Tensor | None = None,
    on_step: OnStep | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Tensor:
    """Clean latents (B, V, T, C, h, w); cells that are known exactly are the references themselves.

    noise: standard normal, of the shape of the latents. schedule: falling flow times, the first
    of them 1. guidance: classifier-free guidance over the text, v_none + guidance * (v - v_none),
    1 = none; negative: the text of v_none, (B, L, text_dim), needed for any other value.
    on_step(step, total, estimate) gets the clean latents as foreseen after each step.
    Raises Cancelled between two transformer blocks once should_cancel() says so.
    """
    if guidance != 1.0 and negative is None:
        raise GeneratorError(f"guidance is {guidance}, which needs a negative text")
    scheduler = make_scheduler(solver, schedule, noise.device)
    config, batch = model.config, noise.shape[0]
    start = source(conditions, noise, sigma=config.sigma, sigma_invalid=config.sigma_invalid)
    x = start
    model.forget_cache()
    try:
        with model.calling_before_each_block(asking(should_cancel)):
            for step, timestep in enumerate(scheduler.timesteps):
                t = torch.as_tensor(schedule[step], device=noise.device).to(noise).expand(batch)
                x = pin_known(keep_pixels(x, t, start, conditions), t, start, conditions)
                velocity = model.velocity(x, t, conditions, cache="text")
                if guidance != 1.0:
                    assert negative is not None
                    without = model.velocity(x, t, replace(conditions, text=negative), cache="none")
                    velocity = without + guidance * (velocity - without)
                if on_step is not None:
                    ahead = x - t.view(-1, 1, 1, 1, 1, 1) * velocity
                    on_step(step + 1, len(schedule), _with_references(ahead, conditions))
                x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
    finally:
        model.forget_cache()  # nobody shall pay for its memory between two jobs
    return _with_references(x, conditions)


def _with_references(x: Tensor, conditions: Conditions) -> Tensor:
    exact = conditions.exactly_known[..., None, None, None]
    return torch.where(exact, conditions.reference, x)
