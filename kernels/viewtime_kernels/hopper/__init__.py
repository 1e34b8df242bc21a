# SPDX-License-Identifier: Apache-2.0
"""View-time attention for sm_90 (H100, H200): a warp-specialised forward written in Gluon.

COMPILED, NEVER RUN: its schedule is simulated and its builds are inspected in the tests, but no
GPU has executed it yet, and Gluon has no interpreter. The backward is `inclusion_exclusion`'s over
cuDNN, predicted to be faster than our own kernels until those multiply five times, not seven.
Importing this package does not import triton, and never fails for want of it.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from viewtime_kernels import inclusion_exclusion, triton_kernels


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int
) -> str | None:
    """Why this kernel cannot serve the call, in words, or None where it can."""
    if triton_kernels.interpreting():
        return "Gluon kernels cannot run in Triton's interpreter"
    reason = triton_kernels.unsupported(q, k, v, pattern=pattern, views=views, times=times)
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(q.device)
    if capability != (9, 0):
        return f"the hopper kernel is built for compute capability 9.0, this GPU has {capability}"
    if importlib.util.find_spec("triton.experimental.gluon.nvidia.hopper") is None:
        return "this triton has no Gluon for Hopper: 3.6 or later is needed"
    batch, tokens = q.shape[:2]
    if batch * tokens >= 2**31:
        return f"{batch} x {tokens} tokens are more than TMA coordinates reach"
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int, scale: float
) -> tuple[Tensor, Tensor]:
    """As `viewtime_kernels.triton_kernels.forward`: (out (B, N, H, D), lse (B, H, N))."""
    from viewtime_kernels.hopper.launch import run_forward

    return run_forward(q, k, v, pattern=pattern, views=views, times=times, scale=scale)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *,
    pattern: str, views: int, times: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) by `inclusion_exclusion`; any backend's backward fits any forward."""
    return inclusion_exclusion.backward(
        grad_out, q, k, v, out, lse, pattern=pattern, views=views, times=times, scale=scale
    )
