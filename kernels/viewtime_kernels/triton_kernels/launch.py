# SPDX-License-Identifier: Apache-2.0
"""From tensors to launches: strides, descriptors, grids and the constants a build depends on.

It never computes attention itself and never chooses between backends.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from viewtime_kernels.triton_kernels import tiles
from viewtime_kernels.triton_kernels.backward_kernels import delta_kernel, dkv_kernel, dq_kernel
from viewtime_kernels.triton_kernels.configs import Config, Kernel, choose, generation
from viewtime_kernels.triton_kernels.forward_kernel import forward_kernel

CODES = {"view_time": tiles.VIEW_TIME.value, "view": tiles.VIEW.value, "time": tiles.TIME.value}
DELTA_BLOCK = 128


def canonical(pattern: str, views: int, times: int) -> tuple[str, int, int]:
    """The same pattern on the grid that serves it best: one view or one time leaves one group of
    tokens that lie side by side, which is a row."""
    if pattern not in CODES:
        raise ValueError(f"pattern must be one of {', '.join(CODES)}, got {pattern!r}")
    if pattern == "view_time" and (views == 1 or times == 1):
        return "view", 1, views * times
    if pattern == "time" and times == 1:
        return "view", 1, views
    if pattern == "time" and views == 1:
        return "view", times, 1
    return pattern, views, times


def tail_block(block: int, pattern: str, times: int, space: int) -> int:
    """The size of the tail tiles, which hold what tiles of `block` leave over at the end of a row
    and of a frame: the next power of two, from 16 to half a block; 0 where they leave nothing."""
    rest = 0 if pattern == "time" else times * space % block
    rest = max(rest, 0 if pattern == "view" else space % block)
    return max(16, min(block // 2, triton.next_power_of_2(rest))) if rest else 0


def constants(
    kernel: Kernel, config: Config, pattern: str, times: int, space: int, dim: int
) -> dict[str, Any]:
    """The compile-time arguments of a kernel for a canonical pattern and grid."""
    streamed, home = config.streamed(kernel), config.home(kernel)
    return {
        "DIM": dim,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_TAIL": tail_block(streamed, pattern, times, space),
        # A home tile of several times, or one that hangs over the end of its row.
        "STRADDLE": space % home != 0 and (pattern != "view" or times * space % home != 0),
        "PATTERN": CODES[pattern],
        "TMA": config.tma,
    }


def unit_strided(x: Tensor) -> Tensor:
    """x itself where its last stride is 1, otherwise a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def flat_rows(x: Tensor) -> bool:
    """Whether (B, N, H, D) can be read as a (B * N, H * D) matrix that a TMA descriptor takes:
    heads side by side, batches on end, 16-byte steps. Slices of one packed qkv tensor can."""
    batch, tokens, heads, dim = x.shape
    step = 16 // x.element_size()
    return (
        (heads == 1 or x.stride(2) == dim)
        and (batch == 1 or x.stride(0) == tokens * x.stride(1))
        and x.stride(1) % step == 0
        and x.data_ptr() % 16 == 0
        and batch * tokens < 2**31
    )


def descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """Tiles of `rows` tokens of one head of x, which must have `flat_rows`."""
    batch, tokens, heads, dim = x.shape
    return TensorDescriptor(x, [batch * tokens, heads * dim], [x.stride(1), 1], [rows, dim])


def positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float, int]:
    """(q, scale, sign) with a positive scale: a running maximum of scores times the scale needs
    one. The sign (-1, 0 or 1) has gone into q and belongs into dq."""
    if scale > 0:
        return q, scale, 1
    sign = 0 if scale == 0 else -1
    return q * sign, abs(scale) or 1.0, sign


def config_for(kernel: Kernel, q: Tensor, config: Config | None) -> Config:
    if config is not None:
        return config
    if q.is_cuda:
        return choose(kernel, q.shape[-1], generation(*torch.cuda.get_device_capability(q.device)))
    return choose(kernel, q.shape[-1], 90)  # the interpreter


def streams(build: dict[str, Any], rows: int, a: Tensor, b: Tensor) -> tuple[Any, ...]:
    """Descriptors of the streamed pair, for tiles of `rows` and for tails, or four None. Takes
    TMA back from `build` where a descriptor cannot describe the tensors."""
    build["TMA"] = build["TMA"] and flat_rows(a) and flat_rows(b)
    if not build["TMA"]:
        return None, None, None, None
    tail = build["BLOCK_TAIL"] or rows
    return descriptor(a, rows), descriptor(b, rows), descriptor(a, tail), descriptor(b, tail)


def run_forward(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int, scale: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out (B, N, H, D) in q's dtype, lse (B, H, N) float32, natural). See `forward`."""
    pattern, views, times = canonical(pattern, views, times)
    q, k, v = (unit_strided(x) for x in (q, k, v))
    q, scale, _ = positive_scale(q, scale)
    batch, tokens, heads, dim = q.shape
    space = tokens // (views * times)
    config = config_for("forward", q, config)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, tokens), dtype=torch.float32, device=q.device)
    build = constants("forward", config, pattern, times, space, dim)
    descriptors = streams(build, config.block_n, k, v)
    grid = (triton.cdiv(times * space, config.block_m) * views * batch * heads,)
    forward_kernel[grid](
        q, k, v, out, lse, *descriptors,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        heads, views, times, space, scale * math.log2(math.e), **build,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out, lse


def run_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *,
    pattern: str, views: int, times: int, scale: float,
    dq_config: Config | None = None, dkv_config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv), each (B, N, H, D) contiguous in q's dtype. See `backward`."""
    pattern, views, times = canonical(pattern, views, times)
    grad, q, k, v, out = (unit_strided(x) for x in (grad_out, q, k, v, out))
    q, scale, sign = positive_scale(q, scale)
    batch, tokens, heads, dim = q.shape
    space = tokens // (views * times)
    lse = lse.contiguous()
    sum_row = triton.cdiv(tokens, 4) * 4
    lse2, delta = torch.empty((2, batch, heads, sum_row), device=q.device).unbind(0)
    delta_kernel[(triton.cdiv(tokens, DELTA_BLOCK) * batch * heads,)](
        out, grad, lse, lse2, delta, *out.stride()[:3], *grad.stride()[:3], sum_row, heads, tokens,
        DIM=dim, BLOCK=DELTA_BLOCK, num_warps=8,
    )  # fmt: skip

    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad.stride()[:3], sum_row)
    sizes = heads, views, times, space, scale * math.log2(math.e)

    config = config_for("dq", q, dq_config)
    build = constants("dq", config, pattern, times, space, dim)
    descriptors = streams(build, config.block_n, k, v)
    grid = (triton.cdiv(times * space, config.block_m) * views * batch * heads,)
    dq_kernel[grid](
        q, k, v, grad, lse2, delta, dq, *descriptors, *strides, *sizes, **build,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip

    config = config_for("dkv", q, dkv_config)
    build = constants("dkv", config, pattern, times, space, dim)
    descriptors = streams(build, config.block_m, q, grad)
    sums: list[Any] = [None, None]
    # Full tiles start on 16 bytes of a row of sums only where frames hold a multiple of 4 tokens.
    # Down columns alone the descriptors cost more registers than they save.
    build["SUMS_TMA"] = build["TMA"] and space % 4 == 0 and pattern != "time"
    if build["SUMS_TMA"]:
        shape, tile = [batch * heads, sum_row], [1, config.block_m]
        sums = [TensorDescriptor(x, shape, [sum_row, 1], tile) for x in (lse2, delta)]
    grid = (triton.cdiv(times * space, config.block_n) * views * batch * heads,)
    dkv_kernel[grid](
        q, k, v, grad, lse2, delta, *sums, dk, dv, *descriptors, *strides, *sizes, **build,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if sign != 1:
        dq *= sign
    return dq, dk, dv
