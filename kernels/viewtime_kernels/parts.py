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

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20  # what `Plain` may hold of scores at a time


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
        # Without hardware for it, bfloat16 costs 1.5 to 3 times the float32 time in the backward.
        slow = q.dtype == torch.bfloat16 and not _cpu_multiplies_bfloat16()
        given = [x.float() if slow else x for x in (grad, q, k, v, out)]
        made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *given, lse, 0.0, False, scale=scale
        )
        return made[0].to(q.dtype), made[1].to(q.dtype), made[2].to(q.dtype)


class CudaFlash:
    """torch's FlashAttention-2 on CUDA: bfloat16 and float16, head dims by 8 up to 256."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        made = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, scale=scale)
        return made[0], made[1]

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Without dropout the generator's state is never read, yet the operator wants tensors.
        seed, offset = torch.zeros(2, 1, dtype=torch.int64, device=q.device).unbind()
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, False,
            seed, offset, scale=scale,
        )  # fmt: skip


class Cudnn:
    """cuDNN's attention on CUDA: bfloat16 and float16, head dims by 8 up to 128.

    It never gets a mask: with one its backward has given NaN at lengths such as 576
    (pytorch#196678). It wants the gradient laid out as the output is.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        made = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, False, False, scale=scale
        )
        return made[0], made[1].view(q.shape[:3])  # lse comes as (G, H, L, 1)

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        if grad.stride() != out.stride():
            grad = torch.empty_strided(
                out.shape, out.stride(), dtype=out.dtype, device=out.device
            ).copy_(grad)
        # Without dropout the generator's state is never read, yet the operator wants tensors.
        seed, offset = torch.zeros(2, dtype=torch.int64, device=q.device).unbind()
        return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad, q, k, v, out, lse.unsqueeze(-1), seed, offset, None, None, None,
            q.shape[2], k.shape[2], 0.0, False, scale=scale,
        )  # fmt: skip


class Plain:
    """Matrix products and a softmax, for devices and dtypes that no flash kernel serves.

    Goes over the queries in chunks whose scores fill CHUNK_BYTES at most (or one query each), so
    that memory stays linear in the tokens.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:3], dtype=wide, device=q.device)
        keys, values = k.to(wide).mT, v.to(wide)
        for these in _chunks(q):
            scores = (q[:, :, these].to(wide) @ keys) * scale
            lse[:, :, these] = scores.logsumexp(dim=-1)
            scores.sub_(lse[:, :, these, None]).exp_()
            out[:, :, these] = (scores @ values).to(q.dtype)
        return out, lse

    @staticmethod
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        keys, values = k.to(wide), v.to(wide)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(keys), torch.zeros_like(values)
        for these in _chunks(q):
            queries, g = q[:, :, these].to(wide), grad[:, :, these].to(wide)
            weights = ((queries @ keys.mT) * scale).sub_(lse[:, :, these, None]).exp_()
            inner = (g * out[:, :, these].to(wide)).sum(dim=-1, keepdim=True)
            dv += weights.mT @ g
            scores = weights.mul_((g @ values.mT).sub_(inner)).mul_(scale)
            dq[:, :, these] = (scores @ keys).to(q.dtype)
            dk += scores.mT @ queries
        return dq, dk.to(q.dtype), dv.to(q.dtype)


def _chunks(q: Tensor) -> list[slice]:
    groups, heads, length, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32).itemsize
    step = max(1, CHUNK_BYTES // (groups * heads * length * wide))
    return [slice(start, start + step) for start in range(0, length, step)]


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which `part_for(x)` is at its best; inputs are to be cast to it.

    float16 without hardware for it is emulated on a CPU: 8 to 12 times slower than float32 in
    the backward, and no more exact. bfloat16 is not: see `CpuFlash.backward`.
    """
    if x.device.type == "cpu" and x.dtype == torch.float16 and not _cpu_multiplies_float16():
        return torch.float32
    return x.dtype


@lru_cache(maxsize=1)
def _cpu_multiplies_float16() -> bool:
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("amx_fp16") or known.get("avx512_fp16"))


@lru_cache(maxsize=1)
def _cpu_multiplies_bfloat16() -> bool:
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("amx_bf16"))


def part_for(x: Tensor) -> type[Part]:
    """The kernel that serves groups like x, (G, H, L, D)."""
    if x.device.type == "cpu":
        return CpuFlash
    length, dim = x.shape[2], x.shape[3]
    half = x.dtype in (torch.bfloat16, torch.float16)
    if x.device.type != "cuda" or not half or dim % 8 or dim > 256:
        return Plain
    # From Hopper on cuDNN is about twice as fast as FlashAttention-2; before, it is not. Torch's
    # own switch, torch.backends.cuda.enable_cudnn_sdp(False), turns it off here too.
    hopper = torch.cuda.get_device_capability(x.device) >= (9, 0)
    available = torch.backends.cudnn.is_available() and torch.backends.cuda.cudnn_sdp_enabled()
    if hopper and dim <= 128 and length > 1 and available:
        return Cudnn
    return CudaFlash
