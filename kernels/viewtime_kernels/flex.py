# SPDX-License-Identifier: Apache-2.0
"""torch's compiled FlexAttention with the block mask of the grid: the form the paper used.

The mask of blocks comes from frame arithmetic, one value per pair of blocks; scores or masks of
N x N are never made, and FlexAttention is never run uncompiled, where it would make them.

It brings an autograd of its own, so the public functions call `attend` rather than an operator.
On a CPU torch compiles it for inference alone, and without the log-sum-exp.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from viewtime_kernels.checks import check_pattern


@dataclass(frozen=True)
class FlexOptions:
    """What may be swept. block: the block mask's granularity, one size or (queries, keys); None
    is 128, and 64 on a CPU. kernel: FlexAttention's kernel_options as pairs, for instance
    (("BLOCK_M", 64), ("USE_TMA", True)). mode: torch.compile's."""

    block: int | tuple[int, int] | None = None
    kernel: tuple[tuple[str, Any], ...] = ()
    mode: str | None = None


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int
) -> str | None:
    """Why these inputs cannot be served; None when they can."""
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"FlexAttention takes float32, bfloat16 and float16, not {q.dtype}"
    if q.device.type not in ("cpu", "cuda"):
        return f"it was written for CPU and CUDA, not {q.device.type}"
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if q.device.type == "cpu" and wants_gradient:
        return "FlexAttention has no backward on a CPU: call it under torch.no_grad()"
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int, scale: float,
    return_lse: bool = False, options: FlexOptions | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of q, k, v (B, N, H, D) by compiled FlexAttention, differentiable on CUDA by its
    own autograd; with return_lse also the log-sum-exp (B, H, N). The first call per shape
    compiles (5 to 15 s), in code that is being compiled it becomes a part of that code.

    Raises ValueError for what `unsupported` names, and for return_lse on a CPU.
    """
    options = options or FlexOptions()
    reason = unsupported(q, k, v, pattern=pattern, views=views, times=times)
    if reason is None and return_lse and q.device.type == "cpu":
        reason = "FlexAttention gives no log-sum-exp on a CPU"
    if reason is not None:
        raise ValueError(f"backend 'flex' does not serve these inputs: {reason}")
    block = options.block or (64 if q.device.type == "cpu" else 128)
    pair = (block, block) if isinstance(block, int) else block
    space = q.shape[1] // (views * times)
    # Code that is being compiled takes the mask's making into itself: no cache is seen from there.
    inlined = torch.compiler.is_compiling()
    make: Callable[..., BlockMask] = block_mask.__wrapped__ if inlined else block_mask
    mask = make(pattern, views, times, space, pair, q.device)
    run: Any = flex_attention if inlined else _compiled(options.mode)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    if not torch.is_grad_enabled():  # on a CPU torch looks at requires_grad alone
        heads_first = [x.detach() for x in heads_first]
    made = run(
        *heads_first, block_mask=mask, scale=scale, kernel_options=dict(options.kernel) or None,
        return_aux=AuxRequest(lse=True) if return_lse else None,
    )  # fmt: skip
    if return_lse:
        return made[0].transpose(1, 2), made[1].lse
    return made.transpose(1, 2)


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The interface that backends share: out (B, N, H, D) and lse (B, H, N). CUDA alone."""
    out, lse = attend(
        q, k, v, pattern=pattern, views=views, times=times, scale=scale, return_lse=True
    )
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    *, pattern: str, views: int, times: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The interface that backends share. FlexAttention's backward can be reached through its
    autograd alone, so this runs the forward once more; `attend` does not. CUDA alone."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        made = attend(*leaves, pattern=pattern, views=views, times=times, scale=scale)
        assert isinstance(made, Tensor)
        dq, dk, dv = torch.autograd.grad(made, leaves, grad_out)
    return dq, dk, dv


@lru_cache(maxsize=64)
def block_mask(
    pattern: str, views: int, times: int, space: int, block: tuple[int, int], device: torch.device
) -> BlockMask:
    """FlexAttention's mask of blocks, from the frames that each block touches; kept per grid.

    block: (queries, keys) per block. A block touches a run of frames f0..f1. Two runs share a view
    where their ranges of views overlap, and a time where the two runs of times, on a circle of
    `times`, meet. All pairs are allowed (a full block, which is not masked) where both runs lie in
    one and the same view, or both in one and the same time; a few blocks that span two views in
    which all pairs are allowed all the same are masked for nothing. Blocks that reach past the
    last token are masked.
    """
    check_pattern(pattern)
    tokens = views * times * space
    q_first, q_last, q_whole = _runs(tokens, space, block[0], device)
    k_first, k_last, k_whole = (x[None] for x in _runs(tokens, space, block[1], device))
    q_first, q_last, q_whole = q_first[:, None], q_last[:, None], q_whole[:, None]

    some = torch.zeros(q_first.shape[0], k_first.shape[1], dtype=torch.bool, device=device)
    every = some.clone()
    q_view, k_view = q_first // times, k_first // times
    if pattern != "time":
        some |= (q_view <= k_last // times) & (k_view <= q_last // times)
        every |= (q_view == q_last // times) & (k_view == k_last // times) & (q_view == k_view)
    if pattern != "view":
        behind = (k_first - q_first) % times  # how far the keys' first time is ahead on the circle
        ahead = (q_first - k_first) % times
        some |= (behind <= q_last - q_first) | (ahead <= k_last - k_first)
        one_time = (q_first == q_last) & (k_first == k_last) if times > 1 else torch.ones_like(some)
        every |= one_time & (behind == 0)
    every &= q_whole & k_whole
    full_count, full_index = _ordered(every)
    part_count, part_index = _ordered(some & ~every)

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_frame, k_frame = q_idx // space, kv_idx // space
        same_view = q_frame // times == k_frame // times
        same_time = q_frame % times == k_frame % times
        if pattern == "view":
            return same_view
        return same_time if pattern == "time" else same_view | same_time

    return BlockMask.from_kv_blocks(
        part_count, part_index, full_count, full_index, BLOCK_SIZE=block, mask_mod=mask_mod,
        seq_lengths=(tokens, tokens),
    )  # fmt: skip


def _runs(
    tokens: int, space: int, block: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each block: its first frame, its last frame, and whether it lies within the tokens."""
    first = torch.arange(0, tokens, block, device=device)
    last = first + block - 1
    return first // space, last.clamp(max=tokens - 1) // space, last < tokens


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    """(queries, keys) of bool as FlexAttention wants it: per row how many, and which come first."""
    count = dense.sum(dim=-1, dtype=torch.int32)
    index = dense.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return count[None, None], index[None, None].contiguous()


@lru_cache(maxsize=8)
def _compiled(mode: str | None) -> Callable[..., Any]:
    """flex_attention compiled with static shapes. fullgraph, so that many shapes end in an error
    and never in the uncompiled form, which would hold N x N scores."""
    more: dict[str, Any] = {}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        more = dict(isolate_recompiles=True, recompile_limit=128)
    return torch.compile(flex_attention, fullgraph=True, dynamic=False, mode=mode, **more)
