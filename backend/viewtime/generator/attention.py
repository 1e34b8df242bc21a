# SPDX-License-Identifier: Apache-2.0
"""View-time attention inside a stock diffusers Wan transformer, as attention processors.

Only how tokens see each other changes: the projections, norms and weights are the stock ones,
and no parameter is ever added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from viewtime_kernels import view_time_attention


@dataclass
class TokenGrid:
    """The grid of the forward pass under way, shared by all processors and the positions.

    The Wan blocks call their attention with the tokens alone, so what the tokens are has to
    reach it from the side.

    views, times: V and T (times in latents). view_index, time_index: the place of each row and
    column of the grid in the position table, 0..V-1 and 0..T-1 unless training spreads them.
    """

    views: int = 1
    times: int = 1
    view_index: tuple[int, ...] = (0,)
    time_index: tuple[int, ...] = (0,)

    def set(
        self,
        views: int,
        times: int,
        view_index: tuple[int, ...] | None = None,
        time_index: tuple[int, ...] | None = None,
    ) -> None:
        self.views, self.times = views, times
        self.view_index = tuple(range(views)) if view_index is None else view_index
        self.time_index = tuple(range(times)) if time_index is None else time_index


class ViewTimeProcessor:
    """Self-attention over row and column of the grid, for `block.attn1.set_processor`."""

    def __init__(self, grid: TokenGrid) -> None:
        self.grid = grid

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """hidden_states: (B, N, C), tokens in (view, time, row, column) order. Returns the same."""
        if attn.fused_projections:
            q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        # RMS norm over all heads, before the split, in the dtype of its weight: torch has no fused
        # form for mixed dtypes, which autocast would otherwise make here.
        q = attn.norm_q(q.to(attn.norm_q.weight.dtype))
        k = attn.norm_k(k.to(attn.norm_k.weight.dtype))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))  # (B, N, H, D)
        if rotary_emb is not None:
            q, k = rotate(q, *rotary_emb), rotate(k, *rotary_emb)
        q, k = q.to(v.dtype), k.to(v.dtype)
        out = view_time_attention(q, k, v, views=self.grid.views, times=self.grid.times)
        out = out.flatten(2).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](out))


class TextProcessor:
    """The stock cross-attention, which is left out where there is no text at all.

    A softmax over nothing gives zero, and the output projection of zero is its bias; the
    bundled model has no text, and so does not pay for two projections of every token.
    """

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if encoder_hidden_states is not None and encoder_hidden_states.shape[1] == 0:
            return attn.to_out[0].bias.type_as(hidden_states)
        return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs. x: (B, N, H, D); cos, sin: (1, N, 1, D), each value
    standing twice, as diffusers gives them. Returns the dtype of x."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x)
