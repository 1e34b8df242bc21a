# SPDX-License-Identifier: Apache-2.0
"""From tensors to a launch of the Hopper kernel. It never computes attention itself."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from viewtime_kernels.hopper.configs import Config, choose, rests
from viewtime_kernels.hopper.kernel import hopper_forward_kernel
from viewtime_kernels.triton_kernels.launch import (
    CODES,
    canonical,
    flat_rows,
    positive_scale,
    unit_strided,
)


def descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """Tiles of `rows` tokens of one head of x, swizzled for wgmma; x must have `flat_rows`."""
    batch, tokens, heads, dim = x.shape
    kind = gl.bfloat16 if x.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for([rows, dim], kind)
    shape, strides = [batch * tokens, heads * dim], [x.stride(1), 1]
    return TensorDescriptor(x, shape, strides, [rows, dim], layout)


def run_forward(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int, scale: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out (B, N, H, D) in q's dtype, lse (B, H, N) float32, natural). Inputs that one descriptor
    cannot describe (heads not side by side) are copied first."""
    pattern, views, times = canonical(pattern, views, times)
    q, k, v = (unit_strided(x) for x in (q, k, v))
    q, scale, _ = positive_scale(q, scale)
    q, k, v = (x if flat_rows(x) else x.contiguous() for x in (q, k, v))
    batch, tokens, heads, dim = q.shape
    space = tokens // (views * times)
    config = config or choose(dim, pattern, times, space)
    row_rest, frame_rest = rests(config, pattern, times, space)
    straddle = space % config.block_m != 0 and (
        pattern != "view" or times * space % config.block_m != 0
    )
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, tokens), dtype=torch.float32, device=q.device)
    grid = (triton.cdiv(times * space, config.block_m) * views * batch * heads,)
    hopper_forward_kernel[grid](
        descriptor(q, 64), descriptor(k, config.block_n), descriptor(v, config.block_n),
        out, lse, heads, views, times, space, scale * math.log2(math.e),
        DIM=dim, STRADDLE=straddle, ROW_REST=row_rest, FRAME_REST=frame_rest,
        PATTERN=CODES[pattern], **config.constants(), **config.options(),
    )  # fmt: skip
    return out, lse
