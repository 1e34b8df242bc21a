# SPDX-License-Identifier: Apache-2.0
"""The rectified-flow objective of fine-tuning (section 3.1): one equation, one place.

It is given latents and draws noise and time; it never makes data and never steps a weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from viewtime.generator.conditioning import Conditions
from viewtime.generator.sampler import pin_known


@dataclass(frozen=True)
class Draw:
    """What was drawn for one batch: x (B, V, T, C, h, w) at flow time t (B,), and the velocity it
    should have."""

    x: Tensor
    t: Tensor
    velocity: Tensor


def draw(clean: Tensor, conditions: Conditions, generator: torch.Generator, shift: float) -> Draw:
    """A point on the straight way from the data x_0 to noise x_1: x_t = (1 - t) x_0 + t x_1.

    clean: (B, V, T, C, h, w). t is uniform, then shifted as the base model's schedule is:
    shift t / (1 + (shift - 1) t). Cells known exactly lie on the way from their reference.
    """
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    t = torch.rand(clean.shape[0], generator=generator).to(clean)
    t = shift * t / (1 + (shift - 1) * t)
    way = t.view(-1, 1, 1, 1, 1, 1)
    x = pin_known((1 - way) * clean + way * noise, t, noise, conditions)
    return Draw(x, t, noise - clean)


def flow_loss(velocity: Tensor, drawn: Draw, conditions: Conditions) -> Tensor:
    """Mean squared error of the velocity over the cells that are not given."""
    unseen = ~conditions.exactly_known
    return (velocity.float() - drawn.velocity)[unseen].square().mean()
