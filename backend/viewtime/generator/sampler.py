# SPDX-License-Identifier: Apache-2.0
"""Euler steps along a rectified flow: a function of (model, conditions, noise, schedule).

It never draws noise itself and never knows of frames, only of latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from viewtime.generator.conditioning import Conditions, source
from viewtime.generator.errors import GeneratorError
from viewtime.generator.model import ViewTimeTransformer

OnStep = Callable[[int, int, Tensor], None]


class Cancelled(Exception):
    """The caller asked to stop; nothing was produced."""


def linear_schedule(steps: int) -> list[float]:
    """Flow times from 1 in equal steps; the end at 0 is implied. steps=4: 1, .75, .5, .25.

    Shifted schedules bunch few steps at the ends and waste the last one; these do not.
    """
    if steps < 1:
        raise GeneratorError(f"steps is {steps}, must be at least 1")
    return [1 - i / steps for i in range(steps)]


def pin_known(x: Tensor, t: Tensor, start: Tensor, conditions: Conditions) -> Tensor:
    """Put known cells exactly on their straight way from start to reference, at flow time t.

    x, start: (B, V, T, C, h, w); t: (B,). Training and sampling both see known cells like this.
    """
    t = t.view(-1, 1, 1, 1, 1, 1)
    known = conditions.known[..., None, None, None]
    return torch.where(known, (1 - t) * conditions.reference + t * start, x)


@torch.no_grad()
def sample(
    model: ViewTimeTransformer,
    conditions: Conditions,
    noise: Tensor,
    schedule: Sequence[float],
    *,
    on_step: OnStep | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Tensor:
    """Clean latents (B, V, T, C, h, w); known cells are the references themselves.

    noise: standard normal, of the shape of the latents. schedule: falling flow times, the first
    of them 1. on_step(step, total, estimate) gets the clean latents as foreseen after each step.
    Raises Cancelled between two transformer blocks once should_cancel() says so.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    def check() -> None:
        if should_cancel is not None and should_cancel():
            raise Cancelled

    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=list(schedule), device=noise.device)
    config, batch = model.config, noise.shape[0]
    start = source(conditions, noise, sigma=config.sigma, sigma_invalid=config.sigma_invalid)
    x = start
    with model.calling_before_each_block(check):
        for step, timestep in enumerate(scheduler.timesteps):
            t = scheduler.sigmas[step].to(noise).expand(batch)
            x = pin_known(x, t, start, conditions)
            velocity = model(x, t, conditions).float()
            if on_step is not None:
                ahead = x - t.view(-1, 1, 1, 1, 1, 1) * velocity
                on_step(step + 1, len(schedule), _with_references(ahead, conditions))
            x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
    return _with_references(x, conditions)


def _with_references(x: Tensor, conditions: Conditions) -> Tensor:
    return torch.where(conditions.known[..., None, None, None], conditions.reference, x)
