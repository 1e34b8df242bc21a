# SPDX-License-Identifier: Apache-2.0
"""One sweep and two checks that every backend of view-time attention goes through.

Truth is the float64 masked softmax of the very inputs; a backend may err at most twice as much
as torch's own masked attention in the same dtype, plus a rounding. Never knows a backend by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

import viewtime_kernels

ATOL = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
PATTERNS = ("view_time", "view", "time")


@dataclass(frozen=True)
class Case:
    """One problem: a grid, a pattern, and how the inputs are drawn and laid out.

    spread multiplies q and k. own adds a logit of this much to each pair of tokens of one frame
    (negative: the own frame gets next to no mass). layout: "plain" (contiguous), "packed" (slices
    of one qkv tensor), "heads_first" (transposed from (B, H, N, D)).
    """

    views: int
    times: int
    space: int
    pattern: str = "view_time"
    dtype: torch.dtype = torch.float32
    batch: int = 1
    heads: int = 2
    dim: int = 64
    spread: float = 1.0
    own: float = 0.0
    layout: str = "plain"
    scale: float | None = None

    def __str__(self) -> str:
        extra = [
            f"{name}={value}"
            for name, value, usual in (
                ("batch", self.batch, 1), ("spread", self.spread, 1.0), ("own", self.own, 0.0),
                ("layout", self.layout, "plain"), ("scale", self.scale, None),
            )
            if value != usual
        ]  # fmt: skip
        grid = f"V{self.views}T{self.times}S{self.space}H{self.heads}D{self.dim}"
        return "-".join([self.pattern, grid, str(self.dtype).removeprefix("torch."), *extra])

    @property
    def tokens(self) -> int:
        return self.views * self.times * self.space


# (views, times, space): V=1, T=1, S=1, S no multiple of a tile, S of the paper with V, T shrunken
# so that they still have a row, a column and tokens that see neither.
GRIDS = [
    (1, 3, 40), (3, 1, 40), (3, 4, 1), (1, 1, 70), (2, 3, 7), (4, 3, 17), (3, 2, 65), (2, 2, 130),
]  # fmt: skip
PAPER_GRIDS = [(2, 3, 144), (2, 2, 576), (2, 2, 1350)]


def sweep(
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    dims: tuple[int, ...] = (64,),
    *,
    paper: bool = True,
) -> list[Case]:
    """The cases for these dtypes and head dims. `paper` adds S = 144, 576 and 1350 (one head),
    in the first dtype and head dim alone; leave it out where each case takes many seconds."""
    cases = []
    for dtype in dtypes:
        for dim in dims:
            cases += [Case(*grid, dtype=dtype, dim=dim) for grid in GRIDS]
        base = Case(3, 3, 20, dtype=dtype, dim=dims[0])
        cases += [
            replace(base, batch=2, layout="packed"),
            replace(base, batch=2, layout="heads_first", pattern="time"),
            replace(base, batch=2, pattern="view", heads=3),
            replace(base, pattern="time", space=9),
            replace(base, spread=8.0),
            replace(base, own=12.0),
            replace(base, own=-12.0),
            replace(base, scale=0.3),
        ]
    if paper:
        cases += [Case(*grid, dtype=dtypes[0], dim=dims[0], heads=1) for grid in PAPER_GRIDS]
    return cases


def inputs_of(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v in the case's layout and dtype, and a gradient of the output; by a fixed seed."""
    generator = torch.Generator().manual_seed(hash((case.views, case.times, case.space)) % 2**31)
    size = (case.batch, case.tokens, case.heads, case.dim)
    q, k, v, grad = torch.randn(4, *size, generator=generator).unbind(0)
    q, k = q * case.spread, k * case.spread
    if case.own:
        # One direction per frame, orthogonal enough in D dimensions, of length r: a pair of the
        # same frame gains r * r * scale in its logit.
        marks = torch.randn(case.views * case.times, case.dim, generator=generator)
        scale = case.dim**-0.5 if case.scale is None else case.scale
        marks *= math.sqrt(abs(case.own) / scale) / marks.norm(dim=-1, keepdim=True)
        marks = marks.repeat_interleave(case.space, dim=0)[None, :, None]
        q, k = q + marks, k + math.copysign(1.0, case.own) * marks
    if case.layout == "packed":
        q, k, v = torch.stack((q, k, v), dim=2).to(device, case.dtype).unbind(2)
    elif case.layout == "heads_first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    q, k, v, grad = (x.to(device, case.dtype) for x in (q, k, v, grad))
    return q, k, v, grad


def mask_of(case: Case) -> Tensor:
    """(N, N) bool, True = may see, written independently of the package."""
    frame = torch.arange(case.tokens) // case.space
    view, time = frame // case.times, frame % case.times
    same_view, same_time = view[:, None] == view[None], time[:, None] == time[None]
    return {"view_time": same_view | same_time, "view": same_view, "time": same_time}[case.pattern]


def masked_attention(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own attention under the mask, in the dtype of q."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = mask_of(case).to(q.device)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=case.scale).transpose(1, 2)


def with_gradients(function, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """[out, dq, dk, dv] of out = function(q, k, v) for the gradient `grad` of out."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@lru_cache(maxsize=256)
def truth_of(case: Case) -> tuple[list[Tensor], Tensor]:
    """[out, dq, dk, dv] and lse (B, H, N) in float64, on the CPU."""
    q, k, v, grad = (x.double() for x in inputs_of(case))
    made = with_gradients(lambda *x: masked_attention(case, *x), q, k, v, grad)
    scale = case.dim**-0.5 if case.scale is None else case.scale
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * scale
    return made, scores.masked_fill(~mask_of(case), float("-inf")).logsumexp(dim=-1)


@lru_cache(maxsize=256)
def stock_of(case: Case) -> list[Tensor]:
    """[out, dq, dk, dv] of torch's masked attention in the case's dtype, on the CPU."""
    q, k, v, grad = inputs_of(case)
    return with_gradients(lambda *x: masked_attention(case, *x), q, k, v, grad)


def compare(name: str, mine: Tensor, stock: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Fail if mine errs more than twice as much as stock plus a rounding, or is not finite."""
    assert mine.shape == exact.shape and mine.dtype == dtype, (name, mine.shape, mine.dtype)
    error = (mine.cpu().double() - exact).abs().max().item()
    bound = 2 * (stock.double() - exact).abs().max().item()
    bound += ATOL[dtype] * (1 + exact.abs().max().item())
    assert error <= bound, f"{name} errs by {error:.3g}, allowed {bound:.3g}"  # NaN fails too


def attend(backend: str | ModuleType, case: Case, q: Tensor, k: Tensor, v: Tensor):
    """(out, lse) by the public function for a name, or straight from a backend's module."""
    if isinstance(backend, str):
        function = getattr(viewtime_kernels, f"{case.pattern}_attention")
        return function(
            q, k, v, views=case.views, times=case.times, scale=case.scale, return_lse=True,
            backend=backend,
        )  # fmt: skip
    return backend.forward(q, k, v, **arguments_of(case))


def arguments_of(case: Case) -> dict:
    scale = case.dim**-0.5 if case.scale is None else case.scale
    return dict(pattern=case.pattern, views=case.views, times=case.times, scale=scale)


def check_forward(backend: str | ModuleType, case: Case, device: str = "cpu") -> None:
    """Output and log-sum-exp against float64."""
    q, k, v, _ = inputs_of(case, device)
    with torch.no_grad():
        out, lse = attend(backend, case, q, k, v)
    (exact, *_), exact_lse = truth_of(case)
    compare("out", out, stock_of(case)[0], exact, case.dtype)
    assert lse.shape == exact_lse.shape
    assert lse.dtype == (torch.float64 if case.dtype == torch.float64 else torch.float32)
    error = (lse.cpu().double() - exact_lse).abs().max().item()
    bound = (1e-12 if case.dtype == torch.float64 else 1e-5) * (1 + exact_lse.abs().max().item())
    assert error <= bound, f"lse errs by {error:.3g}, allowed {bound:.3g}"


def check_gradients(backend: str | ModuleType, case: Case, device: str = "cpu") -> None:
    """Output, dq, dk and dv against float64: by autograd for a name, by `backward` for a module."""
    q, k, v, grad = inputs_of(case, device)
    if isinstance(backend, str):
        made = with_gradients(lambda *x: attend(backend, case, *x)[0], q, k, v, grad)
    else:
        out, lse = attend(backend, case, q, k, v)
        made = [out, *backend.backward(grad, q, k, v, out, lse, **arguments_of(case))]
    exact, _ = truth_of(case)
    for name, mine, stock, true in zip(("out", "dq", "dk", "dv"), made, stock_of(case), exact):
        compare(name, mine, stock, true, case.dtype)
