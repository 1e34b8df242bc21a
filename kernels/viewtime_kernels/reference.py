# SPDX-License-Identifier: Apache-2.0
"""The definition of view-time attention, written as one masked softmax in float64.

It is what every other form is tested against; it never tries to be fast and needs O(N^2) memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_TOKENS = 6144  # 300 MB of float64 scores per head


def view_time_mask(
    views: int, times: int, space: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Who sees whom: True where query and key share their view or their time.

    Returns (N, N) bool with N = views * times * space, tokens in (view, time, space) order.
    The share of True is (times + views - 1) / (times * views).
    """
    return pattern_mask("view_time", views, times, space, device)


def pattern_mask(
    pattern: str, views: int, times: int, space: int, device: torch.device | str = "cpu"
) -> Tensor:
    """As `view_time_mask`, for "view_time", "view" (rows alone) or "time" (columns alone)."""
    frame = torch.arange(views * times * space, device=device) // space
    view, time = frame // times, frame % times
    same_view, same_time = view[:, None] == view[None, :], time[:, None] == time[None, :]
    return {"view_time": same_view | same_time, "view": same_view, "time": same_time}[pattern]


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor, scale: float | None = None
) -> Tensor:
    """Softmax attention in float64 under a mask; what is masked out gets weight exactly zero.

    q, k, v: (B, N, H, D). mask: (N, N) bool, True = may see. Returns (B, N, H, D) float64,
    differentiable. Eq. 1 of the paper multiplies the mask into the scores; minus infinity is
    what it means (a score of zero would still get a weight).
    """
    weights = _scores(q, k, mask, q.shape[-1] ** -0.5 if scale is None else scale).softmax(dim=-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v.double())


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int
) -> str | None:
    """Why these inputs cannot be served; None when they can."""
    if q.shape[1] > MOST_TOKENS:
        return (
            f"it holds all N x N scores in float64, for tests, and takes at most {MOST_TOKENS} "
            f"tokens, not {q.shape[1]}"
        )
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int, scale: float
) -> tuple[Tensor, Tensor]:
    """q, k, v: (B, N, H, D). Returns out (B, N, H, D) in their dtype and lse (B, H, N)."""
    scores = _scores(q, k, _mask(q, pattern, views, times), scale)
    lse = scores.logsumexp(dim=-1)
    out = torch.einsum("bhnm,bmhd->bnhd", (scores - lse[..., None]).exp(), v.double())
    wide = torch.promote_types(q.dtype, torch.float32)
    return out.to(q.dtype).contiguous(), lse.to(wide)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    *, pattern: str, views: int, times: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v. The weights are computed anew in float64, so `out` and `lse`,
    which are rounded, are not used."""
    weights = _scores(q, k, _mask(q, pattern, views, times), scale).softmax(dim=-1)
    grad, dtype = grad_out.double(), q.dtype
    grad_weights = torch.einsum("bnhd,bmhd->bhnm", grad, v.double())
    inner = (weights * grad_weights).sum(dim=-1, keepdim=True)
    grad_scores = weights * (grad_weights - inner) * scale
    dq = torch.einsum("bhnm,bmhd->bnhd", grad_scores, k.double())
    dk = torch.einsum("bhnm,bnhd->bmhd", grad_scores, q.double())
    dv = torch.einsum("bhnm,bnhd->bmhd", weights, grad)
    return dq.to(dtype).contiguous(), dk.to(dtype).contiguous(), dv.to(dtype).contiguous()


def _mask(q: Tensor, pattern: str, views: int, times: int) -> Tensor:
    return pattern_mask(pattern, views, times, q.shape[1] // (views * times), q.device)


def _scores(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * scale
    return scores.masked_fill(~mask, float("-inf"))
