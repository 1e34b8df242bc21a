# SPDX-License-Identifier: Apache-2.0
"""View-time attention as Triton kernels for CUDA devices from sm_80 on: forward, dQ and dK/dV.

Importing this package does not import triton, and never fails for want of it.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

HEAD_DIMS = (64, 128)
DTYPES = (torch.bfloat16, torch.float16)


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int
) -> str | None:
    """Why these kernels cannot serve the call, in words, or None where they can.

    The interpreter takes float32 and float16 on the CPU; its bfloat16 products are wrong.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if q.shape[-1] not in HEAD_DIMS:
        return f"head dim {q.shape[-1]} is not one of {HEAD_DIMS}"
    if interpreting():
        if q.device.type == "cpu" and q.dtype not in (torch.float32, torch.float16):
            return f"Triton's interpreter does not serve {q.dtype}"
        return None
    if q.device.type != "cuda":
        return f"triton kernels need a CUDA device, got {q.device.type}"
    if torch.version.hip is not None:
        return "triton kernels are written for NVIDIA GPUs"
    if q.dtype not in DTYPES:
        return f"triton kernels take bfloat16 and float16, got {q.dtype}"
    capability = torch.cuda.get_device_capability(q.device)
    if capability < (8, 0):
        return f"triton kernels need compute capability 8.0, this GPU has {capability}"
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention over a token's row ("view"), column ("time") or both ("view_time").

    q, k, v: (B, N, H, D), N = views * times * space in (view, time, space) order, any strides.
    Returns out (B, N, H, D) in their dtype and lse (B, H, N) float32, natural logarithm. Call it
    only where `unsupported` gives None.
    """
    from viewtime_kernels.triton_kernels.launch import run_forward

    return run_forward(q, k, v, pattern=pattern, views=views, times=times, scale=scale)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *,
    pattern: str, views: int, times: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) for what `forward` returned; shapes as there, deterministic."""
    from viewtime_kernels.triton_kernels.launch import run_backward

    return run_backward(
        grad_out, q, k, v, out, lse, pattern=pattern, views=views, times=times, scale=scale
    )
