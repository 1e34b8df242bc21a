# SPDX-License-Identifier: Apache-2.0
"""Attention of each token to all tokens of its view and all tokens of its time, in one softmax.

The mask is never built: the softmax over the union of row and column is put together from three
dense calls, and this module never computes a score itself.

With Z the softmax denominator of a group of keys and O its output, the union of row r and column
c, whose intersection is the token's own frame f, has

    out = (Z_r O_r + Z_c O_c - Z_f O_f) / (Z_r + Z_c - Z_f),

where nothing cancels: Z_f is at most the smaller of Z_r and Z_c. The gradient is, in the same
way, the row's plus the column's minus the own frame's, each by the stock flash backward given the
output and log-sum-exp of the union.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from viewtime_kernels.parts import part_for


def view_time_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None
) -> Tensor:
    """Fused view-time attention (Eq. 1 of the paper, mask = minus infinity).

    q, k, v: (B, N, H, D), N = views * times * space, tokens in (view, time, space) order, any
    strides. scale multiplies the scores, D ** -0.5 by default. Returns (B, N, H, D) in the dtype
    of the inputs. Differentiable once.

    Raises ValueError where shapes, dtypes, devices or the grid do not fit.
    """
    _check(q, k, v, views, times)
    if views == 1 or times == 1:
        return _dense(q, k, v, _Whole(), scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _ViewTimeAttention.apply(q, k, v, views, times, scale)


def view_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None
) -> Tensor:
    """Each token sees the tokens of its own view, at all times (a row of the grid).

    Shapes and errors as in `view_time_attention`.
    """
    _check(q, k, v, views, times)
    return _dense(q, k, v, _Rows(views, times), scale)


def time_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None
) -> Tensor:
    """Each token sees the tokens of its own time, in all views (a column of the grid).

    Shapes and errors as in `view_time_attention`.
    """
    _check(q, k, v, views, times)
    return _dense(q, k, v, _Columns(views, times), scale)


class _Whole:
    """All tokens as one group: (B, N, H, D) <-> (B, H, N, D)."""

    def gather(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def scatter(self, x: Tensor, batch: int) -> Tensor:
        return x.transpose(1, 2)


class _Rows:
    """One group per view: (B, V*T*S, H, D) <-> (B*V, H, T*S, D), without a copy."""

    def __init__(self, views: int, times: int) -> None:
        self.groups = views

    def gather(self, x: Tensor) -> Tensor:
        b, n, h, d = x.shape
        return x.reshape(b * self.groups, n // self.groups, h, d).transpose(1, 2)

    def scatter(self, x: Tensor, batch: int) -> Tensor:
        _, h, length, d = x.shape
        return x.transpose(1, 2).reshape(batch, self.groups * length, h, d)


class _Frames(_Rows):
    """One group per frame: (B, V*T*S, H, D) <-> (B*V*T, H, S, D), without a copy."""

    def __init__(self, views: int, times: int) -> None:
        self.groups = views * times


class _Columns:
    """One group per time: (B, V*T*S, H, D) <-> (B*T, H, V*S, D), one copy each way."""

    def __init__(self, views: int, times: int) -> None:
        self.views, self.times = views, times

    def gather(self, x: Tensor) -> Tensor:
        b, n, h, d = x.shape
        x = x.reshape(b, self.views, self.times, n // (self.views * self.times), h, d)
        return x.transpose(1, 2).reshape(b * self.times, n // self.times, h, d).transpose(1, 2)

    def scatter(self, x: Tensor, batch: int) -> Tensor:
        _, h, length, d = x.shape
        x = x.transpose(1, 2).reshape(batch, self.times, self.views, length // self.views, h, d)
        return x.transpose(1, 2).reshape(batch, self.times * length, h, d)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, groups: _Whole | _Rows | _Columns, scale: float | None
) -> Tensor:
    q_g, k_g, v_g = (groups.gather(x) for x in (q, k, v))
    return groups.scatter(F.scaled_dot_product_attention(q_g, k_g, v_g, scale=scale), q.shape[0])


class _ViewTimeAttention(torch.autograd.Function):
    """Row plus column minus own frame. Plain autograd over the three outputs would be silently
    wrong, since no gradient flows through a stock kernel's log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, views: int, times: int, scale: float
    ) -> Tensor:
        part, batch = part_for(q), q.shape[0]

        def attend(groups: _Rows | _Columns) -> tuple[Tensor, Tensor]:
            out, lse = part.forward(groups.gather(q), groups.gather(k), groups.gather(v), scale)
            return groups.scatter(out, batch), groups.scatter(lse[..., None], batch)

        out_r, lse_r = attend(_Rows(views, times))  # (B, N, H, D), (B, N, H, 1)
        out_c, lse_c = attend(_Columns(views, times))
        out_f, lse_f = attend(_Frames(views, times))

        top = torch.maximum(lse_r, lse_c)
        z_r, z_c, z_f = (lse_r - top).exp(), (lse_c - top).exp(), (lse_f - top).exp()
        z = z_r + z_c - z_f
        lse = top + z.log()
        out = out_r * (z_r / z)  # in the dtype of lse: float32 for half inputs
        out.addcmul_(out_c.to(out.dtype), z_c / z).addcmul_(out_f.to(out.dtype), z_f / z, value=-1)
        out = out.to(q.dtype)

        ctx.save_for_backward(q, k, v, out, lse)
        ctx.grid = views, times, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        views, times, scale = ctx.grid
        part, batch = part_for(q), q.shape[0]

        def share(groups: _Rows | _Columns) -> list[Tensor]:
            gather: Callable[[Tensor], Tensor] = groups.gather
            lse_g = gather(lse).squeeze(-1).contiguous()
            grads = part.backward(
                gather(grad), gather(q), gather(k), gather(v), gather(out), lse_g, scale
            )
            return [groups.scatter(g, batch).to(lse.dtype) for g in grads]

        total = share(_Rows(views, times))
        for mine, more in zip(total, share(_Columns(views, times)), strict=True):
            mine += more
        for mine, twice in zip(total, share(_Frames(views, times)), strict=True):
            mine -= twice
        return (*(g.to(q.dtype) for g in total), None, None, None)


def _check(q: Tensor, k: Tensor, v: Tensor, views: int, times: int) -> None:
    if q.dim() != 4:
        raise ValueError(f"q must be (batch, tokens, heads, dim), got shape {tuple(q.shape)}")
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)} but q has {tuple(q.shape)}")
        if x.dtype != q.dtype:
            raise ValueError(f"{name} is {x.dtype} but q is {q.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} but q is on {q.device}")
    if not q.is_floating_point():
        raise ValueError(f"q must be floating point, got {q.dtype}")
    if views < 1 or times < 1:
        raise ValueError(f"views and times must be at least 1, got {views} and {times}")
    if q.shape[1] == 0 or q.shape[1] % (views * times):
        raise ValueError(
            f"{q.shape[1]} tokens are not views x times x space: "
            f"{views} x {times} = {views * times} does not divide them"
        )
