# SPDX-License-Identifier: Apache-2.0
"""View-time attention as torch operators, `viewtime::attention` and its backward.

As operators they go through torch.compile as one node each, and autograd, autocast, checkpointing
and fake tensors know them. Which kernel runs is settled inside, at run time; never while tracing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from viewtime_kernels import backends, checks


@torch.library.custom_op(
    "viewtime::attention",
    mutates_args=(),
    schema=(
        "(Tensor q, Tensor k, Tensor v, str pattern, SymInt views, SymInt times, float scale, "
        "str backend) -> (Tensor, Tensor)"
    ),
)
def attention(
    q: Tensor, k: Tensor, v: Tensor,
    pattern: str, views: int, times: int, scale: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q, k, v: (B, N, H, D). Returns out (B, N, H, D) and lse (B, H, N), both contiguous."""
    chosen = backends.resolve(backend, q, k, v, pattern=pattern, views=views, times=times)
    return chosen.forward(q, k, v, pattern=pattern, views=views, times=times, scale=scale)


@torch.library.custom_op(
    "viewtime::attention_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, str pattern, "
        "SymInt views, SymInt times, float scale, str backend) -> (Tensor, Tensor, Tensor)"
    ),
)
def attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    pattern: str, views: int, times: int, scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v, each (B, N, H, D) and contiguous."""
    chosen = backends.resolve(backend, q, k, v, pattern=pattern, views=views, times=times)
    return chosen.backward(
        grad_out, q, k, v, out, lse, pattern=pattern, views=views, times=times, scale=scale
    )


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _d = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((batch, heads, tokens), dtype=wide)


@attention_backward.register_fake
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.arguments = inputs[3:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple:
    q, k, v, out, lse = ctx.saved_tensors
    dq = dk = dv = None
    if grad_out is not None:
        dq, dk, dv = attention_backward(grad_out, q, k, v, out, lse, *ctx.arguments)
    if grad_lse is not None:
        more_q, more_k = _through_lse(grad_lse, q, k, lse, ctx.arguments)
        dq = more_q if dq is None else dq + more_q
        dk = more_k if dk is None else dk + more_k
    return (dq, dk, dv, *(None for _ in ctx.arguments))


def _through_lse(
    grad_lse: Tensor, q: Tensor, k: Tensor, lse: Tensor, arguments: tuple
) -> tuple[Tensor, Tensor]:
    """Gradients of q and k through the log-sum-exp, by the same two operators.

    With P the attention weights, d lse_i / d q_i = scale * sum_j P_ij k_j, which is attention
    with the keys for values; and the sum over i of P_ij scale g_i q_i, for k_j, is the gradient
    of the values for an output gradient of scale * g * q.
    """
    scale = arguments[3]
    grad = (grad_lse * scale).transpose(1, 2)[..., None]  # (B, N, H, 1)
    mean_key, _ = attention(q, k, k, *arguments)
    weighted = (grad * q).to(q.dtype)
    more_k = attention_backward(weighted, q, k, k, mean_key, lse, *arguments)[2]
    return (grad * mean_key).to(q.dtype), more_k


def _backward_of_backward(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError("view-time attention is differentiable once: its backward has no gradient")


attention.register_autograd(_backward, setup_context=_setup_context)
attention_backward.register_autograd(_backward_of_backward)


def _autocast(
    q: Tensor, k: Tensor, v: Tensor,
    pattern: str, views: int, times: int, scale: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, v = checks.autocast(q, k, v)
    with torch.autocast(q.device.type, enabled=False):
        return attention(q, k, v, pattern, views, times, scale, backend)


# torch.library.register_autocast casts to one dtype for good; attention follows autocast's own.
_library = Library("viewtime", "FRAGMENT")
for _key in ("AutocastCPU", "AutocastCUDA"):
    _library.impl("attention", _autocast, _key)
