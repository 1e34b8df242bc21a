# SPDX-License-Identifier: Apache-2.0
"""View-time attention over many devices, each of which holds some of the views, at all times.

Rows stay at home; columns travel by one all-to-all and back. Never gathers all tokens anywhere,
and never starts or configures a process group.

A token's softmax over its row and column is put together from three parts, as in
`inclusion_exclusion`: the row and the token's own frame, which are local, and the column, which
needs all views at one time. So queries, keys and values go from "some views, all times" to "all
views, some times", the column part is computed there, and its output and log-sum-exp come back.
The first exchange runs beside the row part, the second beside the own frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from viewtime_kernels import backends, checks

Part = tuple[str, int, int]  # pattern, views, times: what a backend needs to know


def sharded_view_time_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None,
    group: dist.ProcessGroup | None = None, backend: str = "auto",
) -> Tensor:  # fmt: skip
    """This rank's share of `view_time_attention`, differentiable once.

    q, k, v: (B, N / P, H, D) on each of the P ranks of the group (None: all ranks). Rank r holds
    the views r * views / P up to (r + 1) * views / P of the grid, at all times, tokens in (view,
    time, space) order; views and times are those of the whole grid, the same on all ranks. Every
    rank must call, and must call backward if any does. scale and backend as in
    `view_time_attention`, where a backend is chosen for each of the three parts by itself.

    Returns out (B, N / P, H, D) in the dtype of the inputs, contiguous.

    Each rank sends 4 (P - 1) / P times the bytes of its q in the forward (q, k, v, out) and 5 in
    the backward (the gradient, out, dq, dk, dv), each time with one log-sum-exp beside it.

    Raises ValueError where P does not divide both views and times, where no process group was
    started, where this process is not in the group, and as `view_time_attention` does.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("no process group: call torch.distributed.init_process_group first")
    ranks = dist.get_world_size(group)
    if ranks < 1:
        raise ValueError("this process is not a member of the group that was given")
    if views < 1 or times < 1 or views % ranks or times % ranks:
        raise ValueError(
            f"{ranks} ranks must divide both the views and the times: "
            f"got {views} views and {times} times"
        )
    checks.check_inputs(q, k, v, views // ranks, times)
    backends.check_name(backend)
    q, k, v = checks.autocast(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    plan = _Plan(views, times, ranks, group, scale, backend)
    with torch.autocast(q.device.type, enabled=False):
        return _Sharded.apply(q, k, v, plan)


@dataclass(frozen=True)
class _Plan:
    """The grid, who shares it, and the three parts as the backends know them."""

    views: int
    times: int
    ranks: int
    group: dist.ProcessGroup | None
    scale: float
    backend: str

    @property
    def rows(self) -> Part:
        return "view", self.views // self.ranks, self.times

    @property
    def columns(self) -> Part:
        return "time", self.views, self.times // self.ranks

    @property
    def frames(self) -> Part:
        return "view", self.views // self.ranks * self.times, 1

    def forward(self, part: Part, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """out (B, n, H, D) and lse (B, n, H, 1) of one part."""
        arguments: Any = dict(pattern=part[0], views=part[1], times=part[2])
        chosen = backends.resolve(self.backend, q, k, v, **arguments)
        out, lse = chosen.forward(q, k, v, scale=self.scale, **arguments)
        return out, lse.transpose(1, 2).unsqueeze(-1)

    def backward(
        self, part: Part, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One part's share of dq, dk, dv, given the out and lse (B, n, H, 1) of the whole."""
        arguments: Any = dict(pattern=part[0], views=part[1], times=part[2])
        chosen = backends.resolve(self.backend, q, k, v, **arguments)
        lse = lse.squeeze(-1).transpose(1, 2).contiguous()
        return chosen.backward(grad, q, k, v, out, lse, scale=self.scale, **arguments)

    def send_to_columns(self, x: Tensor) -> _Travelling:
        """(B, v * T * S, ...) of some views at all times, on its way to all views at some times."""
        b, n, *rest = x.shape
        v, t = self.views // self.ranks, self.times // self.ranks
        x = x.reshape(b, v, self.ranks, t, n // (v * self.times), *rest)
        return _Travelling(x.movedim(2, 0), self.group)

    def at_columns(self, travelling: _Travelling) -> Tensor:
        """What arrived, as (B, V * t * S, ...)."""
        x = travelling.arrived()  # (P, B, v, t, S, ...): the sender is the first of views
        return x.movedim(0, 1).flatten(1, 4)

    def send_to_rows(self, x: Tensor) -> _Travelling:
        """The way back, from (B, V * t * S, ...)."""
        b, n, *rest = x.shape
        v, t = self.views // self.ranks, self.times // self.ranks
        x = x.reshape(b, self.ranks, v, t, n // (self.views * t), *rest)
        return _Travelling(x.movedim(1, 0), self.group)

    def at_rows(self, travelling: _Travelling) -> Tensor:
        """What arrived, as (B, v * T * S, ...)."""
        x = travelling.arrived()  # (P, B, v, t, S, ...): the sender is the first of times
        return x.movedim(0, 2).flatten(1, 4)


class _Travelling:
    """(P, ...) tensors under way: slice p goes to rank p, and slice p of what comes is p's.

    What was sent is kept until all has arrived, so that its memory is not used again before.
    """

    def __init__(self, x: Tensor, group: dist.ProcessGroup | None) -> None:
        self.sent = x.contiguous()
        self.received = torch.empty_like(self.sent)
        self.work = dist.all_to_all_single(self.received, self.sent, group=group, async_op=True)

    def arrived(self) -> Tensor:
        """Waits; on a GPU it is the current stream that waits, not the host."""
        self.work.wait()
        return self.received


class _Sharded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: _Plan) -> Tensor:
        under_way = [plan.send_to_columns(x) for x in (q, k, v)]
        out_r, lse_r = plan.forward(plan.rows, q, k, v)
        columns = [plan.at_columns(x) for x in under_way]
        back = [plan.send_to_rows(x) for x in plan.forward(plan.columns, *columns)]
        out_f, lse_f = plan.forward(plan.frames, q, k, v)
        out_c, lse_c = (plan.at_rows(x) for x in back)

        top = torch.maximum(lse_r, lse_c)
        z_r, z_c, z_f = ((lse - top).exp() for lse in (lse_r, lse_c, lse_f))
        z = z_r + z_c - z_f  # 1 at least, for top is one of the two
        lse = top + z.log()
        wide = torch.mul(out_r, z_r / z)  # in the dtype of lse: float32 for half inputs
        wide.addcmul_(out_c.to(wide.dtype), z_c / z)
        wide.addcmul_(out_f.to(wide.dtype), z_f.neg_() / z)
        out = wide.to(q.dtype)
        ctx.save_for_backward(q, k, v, *columns, out, lse)
        ctx.plan = plan
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Each part by the out and lse of the whole softmax, which makes it that part's share:
        rows plus columns minus own frames, exactly. No gradient goes through the merge."""
        plan: _Plan = ctx.plan
        q, k, v, q_c, k_c, v_c, out, lse = ctx.saved_tensors
        under_way = [plan.send_to_columns(x) for x in (grad, out, lse)]
        shares_r = plan.backward(plan.rows, grad, q, k, v, out, lse)
        grad_c, out_c, lse_c = (plan.at_columns(x) for x in under_way)
        shares = plan.backward(plan.columns, grad_c, q_c, k_c, v_c, out_c, lse_c)
        back = [plan.send_to_rows(x) for x in shares]
        shares_f = plan.backward(plan.frames, grad, q, k, v, out, lse)
        dq, dk, dv = (
            r.to(lse.dtype).add_(plan.at_rows(c)).sub_(f).to(q.dtype)
            for r, c, f in zip(shares_r, back, shares_f, strict=True)
        )
        return dq, dk, dv, None
