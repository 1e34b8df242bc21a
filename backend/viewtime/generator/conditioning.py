# SPDX-License-Identifier: Apache-2.0
"""What the generator is told besides the noised latents: references, prior, text.

Everything enters by being added to the patch embeddings of the noised latents; nothing is ever
concatenated, and a cell without a reference adds nothing, which is not the same as a black one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Conditions:
    """The conditions of one batch of grids, as latents.

    reference: (B, V, T, C, h, w), read where known. known: (B, V, T) bool.
    prior: (B, V, T, C, h, w) or None; known cells hold the reference. valid: (B, V, T, 1, h, w)
    float in [0, 1], where the prior is to be trusted; None exactly when prior is.
    text: (B, L, text_dim), L may be 0.
    """

    reference: Tensor
    known: Tensor
    text: Tensor
    prior: Tensor | None = None
    valid: Tensor | None = None

    def without_prior(self) -> Conditions:
        return replace(self, prior=None, valid=None)


class PriorEmbedding(nn.Module):
    """Patch embedding of the prior and of two maps: where it is valid, which cells are known.

    The only parameters that are not the stock model's. They start at zero, so that a fresh one
    changes nothing.
    """

    def __init__(self, channels: int, width: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels + 2, width, patch_size, patch_size, bias=True)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, prior: Tensor, valid: Tensor, known: Tensor) -> Tensor:
        """Shapes as in Conditions. Returns (B, width, V*T, rows, columns)."""
        known_map = known[..., None, None, None].to(prior).expand_as(valid)
        return self.proj(to_video(torch.cat((prior, valid.to(prior), known_map), dim=3)))


def to_video(x: Tensor) -> Tensor:
    """(B, V, T, C, h, w) -> (B, C, V*T, h, w): views one after the other, as Wan's frame axis."""
    return x.flatten(1, 2).transpose(1, 2)


def from_video(x: Tensor, views: int) -> Tensor:
    """(B, C, V*T, h, w) -> (B, V, T, C, h, w)."""
    return x.transpose(1, 2).unflatten(1, (views, -1))


def source(conditions: Conditions, noise: Tensor, *, sigma: float, sigma_invalid: float) -> Tensor:
    """x_1 of the flow: where sampling starts, given standard normal noise (B, V, T, C, h, w).

    With a prior: the prior plus a little noise, more where it is not valid, so that the flow's
    way is short where the prior is good. Without: the noise itself.
    """
    if conditions.prior is None or conditions.valid is None:
        return noise
    return conditions.prior + noise * torch.lerp(
        torch.full_like(conditions.valid, sigma_invalid), torch.tensor(sigma), conditions.valid
    )
