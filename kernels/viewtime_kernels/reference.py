# SPDX-License-Identifier: Apache-2.0
"""The definition of view-time attention, written as one masked softmax in float64.

It is what every other form is tested against; it never tries to be fast and needs O(N^2) memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def view_time_mask(
    views: int, times: int, space: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Who sees whom: True where query and key share their view or their time.

    Returns (N, N) bool with N = views * times * space, tokens in (view, time, space) order.
    The share of True is (times + views - 1) / (times * views).
    """
    token = torch.arange(views * times * space, device=device) // space
    view, time = token // times, token % times
    return (view[:, None] == view[None, :]) | (time[:, None] == time[None, :])


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor, scale: float | None = None
) -> Tensor:
    """Softmax attention in float64 under a mask; what is masked out gets weight exactly zero.

    q, k, v: (B, N, H, D). mask: (N, N) bool, True = may see. Returns (B, N, H, D) float64,
    differentiable. Eq. 1 of the paper multiplies the mask into the scores; minus infinity is
    what it means (a score of zero would still get a weight).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * scale
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v.double())
