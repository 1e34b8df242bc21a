# SPDX-License-Identifier: Apache-2.0
"""Stock attention over dense groups, with the log-sum-exp, and its backward for any out and lse.

This is where devices and dtypes are told apart; it never knows of views and times.

All tensors are (G, H, L, D), strided as they come with D contiguous; lse is (G, H, L), natural
logarithm, float32 (float64 for float64 inputs). `backward` takes the `out` and `lse` of the
softmax that the group is a part of, which may run over more keys than the group's own: the
weights are exp(score - lse) and the row sum is grad . out, so the result is the group's exact
share of the gradient.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Part(Protocol):
    """One stock kernel: forward with log-sum-exp, backward with a given out and log-sum-exp."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]: ...

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class CpuFlash:
    """torch's flash attention for the CPU: float64, float32, bfloat16, float16."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, scale=scale
        )

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, False, scale=scale
        )


class CudaFlash:
    """torch's FlashAttention-2 on CUDA: bfloat16 and float16."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        made = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, scale=scale)
        return made[0], made[1]

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Without dropout the generator's state is never read, yet the operator wants tensors.
        state = torch.zeros(2, dtype=torch.int64, device=q.device)
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, False,
            state, state[:1], scale=scale,
        )  # fmt: skip


class Plain:
    """Matrix products and a softmax, for devices and dtypes that no flash kernel serves."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = (q.to(wide) @ k.to(wide).mT) * scale
        lse = scores.logsumexp(dim=-1)
        return ((scores - lse[..., None]).exp() @ v.to(wide)).to(v.dtype), lse

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        dtype = q.dtype
        grad, q, k, v, out = (x.to(wide) for x in (grad, q, k, v, out))
        weights = ((q @ k.mT) * scale - lse[..., None]).exp()
        inner = (grad * out).sum(dim=-1, keepdim=True)
        grad_scores = weights * (grad @ v.mT - inner) * scale
        parts = grad_scores @ k, grad_scores.mT @ q, weights.mT @ grad
        return parts[0].to(dtype), parts[1].to(dtype), parts[2].to(dtype)


def part_for(x: Tensor) -> type[Part]:
    """The kernel that serves tensors like x."""
    if x.device.type == "cpu":
        return CpuFlash
    if x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16):
        return CudaFlash
    return Plain
