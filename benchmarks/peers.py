# SPDX-License-Identifier: Apache-2.0
"""View-time attention by other means, for the benchmarks to compare with.

Each maker takes a grid and returns a function of q, k, v (B, N, H, D). It never uses this
project's kernels, but for FlexAttention's mask of blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from viewtime_kernels import flex, view_time_mask

Method = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense_masked(views: int, times: int, space: int, like: Tensor) -> Method:
    """One SDPA call over all tokens under a mask, which is made once, in the dtype that the kernel
    adds to the scores: (N, N), 0 or minus infinity."""
    seen = view_time_mask(views, times, space, device=like.device)
    mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    mask.masked_fill_(seen.logical_not_(), float("-inf"))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    return attend


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All tokens attend to all: another result, and what view-time attention saves."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def frame_loop(views: int, times: int, space: int) -> Method:
    """One SDPA call per frame over the keys it sees, gathered."""
    cells = torch.arange(views * times).view(views, times)
    seen = [
        torch.cat((cells[v], cells[:v, t], cells[v + 1 :, t]))
        for v in range(views)
        for t in range(times)
    ]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, _, heads, dim = q.shape
        q, k, v = (x.reshape(batch, -1, space, heads, dim) for x in (q, k, v))
        outs = []
        for frame, keys in enumerate(seen):
            k_f, v_f = (x[:, keys.to(x.device)].flatten(1, 2).transpose(1, 2) for x in (k, v))
            outs.append(F.scaled_dot_product_attention(q[:, frame].transpose(1, 2), k_f, v_f))
        return torch.cat(outs, dim=2).transpose(1, 2)

    return attend


def flex_attention(views: int, times: int, options: flex.FlexOptions) -> Method:
    """torch's compiled FlexAttention; the first call compiles."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flex.attend(
            q, k, v, pattern="view_time", views=views, times=times, scale=q.shape[-1] ** -0.5,
            options=options,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out

    return attend


def describe(options: flex.FlexOptions) -> str:
    """FlexOptions in words, for a table."""
    block = "x".join(map(str, options.block)) if isinstance(options.block, tuple) else options.block
    words = [f"block {block}", *(f"{name} {value}" for name, value in options.kernel)]
    return ", ".join(words + ([options.mode] if options.mode else []))
