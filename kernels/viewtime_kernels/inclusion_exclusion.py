# SPDX-License-Identifier: Apache-2.0
"""Rows plus columns minus own frames over stock flash kernels: exact, linear memory, any device.

The mask is never built: the softmax over the union of row and column is put together from three
dense calls, and this module never computes a score itself.

With Z the softmax denominator of a group of keys and O its output, the union of row r and column
c, whose intersection is the token's own frame f, has

    out = (Z_r O_r + Z_c O_c - Z_f O_f) / (Z_r + Z_c - Z_f),

where nothing cancels: Z_f is at most the smaller of Z_r and Z_c, so errors grow by a factor of
(Z_r + Z_c + Z_f) / Z <= 3 at most. The gradient is, in the same way, the row's plus the column's
minus the own frame's, each by the stock flash backward given the output and log-sum-exp of the
union.
"""

from __future__ import annotations

import torch
from torch import Tensor

from viewtime_kernels import parts

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Rows:
    """One group per view: (B, V*T*S, H, D) <-> (B*V, H, T*S, D), without a copy.

    `Rows(V * T)` are the frames, `Rows(1)` all tokens together.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def gather(self, x: Tensor) -> Tensor:
        b, n, h, d = x.shape
        return x.reshape(b * self.groups, n // self.groups, h, d).transpose(1, 2)

    def scatter(self, x: Tensor, batch: int) -> Tensor:
        """Back to (B, V, T*S, H, D)."""
        _, h, length, d = x.shape
        return x.transpose(1, 2).reshape(batch, self.groups, length, h, d)


class Columns:
    """One group per time: (B, V*T*S, H, D) <-> (B*T, H, V*S, D), one copy on the way in."""

    def __init__(self, views: int, times: int) -> None:
        self.views, self.times = views, times

    def gather(self, x: Tensor) -> Tensor:
        b, n, h, d = x.shape
        x = x.reshape(b, self.views, self.times, n // (self.views * self.times), h, d)
        return x.transpose(1, 2).reshape(b * self.times, n // self.times, h, d).transpose(1, 2)

    def scatter(self, x: Tensor, batch: int) -> Tensor:
        """Back to (B, V, T, S, H, D), a view of strides."""
        _, h, length, d = x.shape
        x = x.transpose(1, 2).reshape(batch, self.times, self.views, length // self.views, h, d)
        return x.transpose(1, 2)


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int
) -> str | None:
    """Why these inputs cannot be served; None when they can. All floating dtypes of 16 bits and
    more, all head dims and all devices are served."""
    if q.dtype not in FLOATS:
        return f"it takes float64, float32, bfloat16 and float16, not {q.dtype}"
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int, scale: float
) -> tuple[Tensor, Tensor]:
    """q, k, v: (B, N, H, D). Returns out (B, N, H, D) in their dtype and lse (B, H, N)."""
    work, dtype = parts.working_dtype(q), q.dtype
    q, k, v = (_ready(x, work) for x in (q, k, v))
    alone = _single_group(pattern, views, times)
    if alone is not None:
        out, lse = _attend(alone, q, k, v, scale)
        lse = lse.reshape(q.shape[0], q.shape[1], q.shape[2]).transpose(1, 2)
        return out.reshape(q.shape).to(dtype).contiguous(), lse.contiguous()

    b, n, h, d = q.shape
    shape = b, views, times, n // (views * times), h
    out_r, lse_r = _attend(Rows(views), q, k, v, scale)
    out_c, lse_c = _attend(Columns(views, times), q, k, v, scale)
    out_f, lse_f = _attend(Rows(views * times), q, k, v, scale)
    lse_r, lse_c, lse_f = (x.reshape(*shape, 1) for x in (lse_r, lse_c, lse_f))
    out_r, out_c, out_f = (x.reshape(*shape, d) for x in (out_r, out_c, out_f))

    top = torch.maximum(lse_r, lse_c)
    z_r, z_c, z_f = (lse_r - top).exp_(), (lse_c - top).exp_(), (lse_f - top).exp_()
    z = z_r + z_c - z_f  # 1 at least, for top is one of the two
    lse = top.add_(z.log())
    z_r, z_c, z_f = z_r.div_(z), z_c.div_(z), z_f.div_(z).neg_()
    out = torch.empty(*shape, d, dtype=dtype, device=q.device)
    for i in range(views):  # a view at a time, so that the sum stays in the caches
        total = torch.mul(out_r[:, i], z_r[:, i])  # in the dtype of lse: float32 for half inputs
        total.addcmul_(out_c[:, i].to(total.dtype), z_c[:, i])
        out[:, i] = total.addcmul_(out_f[:, i].to(total.dtype), z_f[:, i])
    return out.view(b, n, h, d), lse.reshape(b, n, h).transpose(1, 2).contiguous()


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    *, pattern: str, views: int, times: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, each (B, N, H, D), from what `forward` returned. Plain autograd
    over the three outputs would be silently wrong, since no gradient flows through a stock
    kernel's log-sum-exp."""
    work, dtype = parts.working_dtype(q), q.dtype
    given = [_ready(x, work) for x in (grad_out, q, k, v, out)]
    lse_n = lse.transpose(1, 2)[..., None]  # (B, N, H, 1)
    b, n, h, d = q.shape
    alone = _single_group(pattern, views, times)
    if alone is not None:
        grads = _share(alone, given, lse_n, scale)
        first, second, third = (g.reshape(b, n, h, d).to(dtype).contiguous() for g in grads)
        return first, second, third

    shape = b, views, times, n // (views * times), h, d
    rows = [x.reshape(shape) for x in _share(Rows(views), given, lse_n, scale)]
    columns = [x.reshape(shape) for x in _share(Columns(views, times), given, lse_n, scale)]
    frames = [x.reshape(shape) for x in _share(Rows(views * times), given, lse_n, scale)]
    made = []
    for r, c, f in zip(rows, columns, frames, strict=True):
        total = torch.empty(shape, dtype=dtype, device=q.device)
        for i in range(views):
            total[:, i] = r[:, i].to(lse.dtype).add_(c[:, i]).sub_(f[:, i])
        made.append(total.view(b, n, h, d))
    return made[0], made[1], made[2]


def _single_group(pattern: str, views: int, times: int) -> Rows | Columns | None:
    """The grouping that gives the pattern by one dense call; None where it takes three."""
    if pattern == "view_time":
        return Rows(1) if views == 1 or times == 1 else None
    return Rows(views) if pattern == "view" else Columns(views, times)


def _attend(
    groups: Rows | Columns, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    batch = q.shape[0]
    q_g, k_g, v_g = (groups.gather(x) for x in (q, k, v))
    out, lse = parts.part_for(q_g).forward(q_g, k_g, v_g, scale)
    return groups.scatter(out, batch), groups.scatter(lse[..., None], batch)


def _share(groups: Rows | Columns, given: list[Tensor], lse: Tensor, scale: float) -> list[Tensor]:
    """The part of the gradients of q, k and v that comes through the keys of these groups."""
    grad, q, k, v, out = (groups.gather(x) for x in given)
    lse_g = groups.gather(lse).squeeze(-1).contiguous()
    grads = parts.part_for(q).backward(grad, q, k, v, out, lse_g, scale)
    return [groups.scatter(x, given[0].shape[0]) for x in grads]


def _ready(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In the dtype to work in and with D contiguous, which stock kernels take for granted."""
    x = x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()
