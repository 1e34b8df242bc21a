# SPDX-License-Identifier: Apache-2.0
"""View-time attention inside a stock diffusers Wan transformer, as attention processors.

Only how tokens see each other changes: the projections, norms and weights are the stock ones. The
fused attention adds no parameter; which processors a model gets is said in `architectures`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from viewtime_kernels import time_attention, view_attention, view_time_attention

if TYPE_CHECKING:
    from viewtime.generator.positions import ViewEmbedding


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


Attend = Callable[..., Tensor]
"""(q, k, v, *, views, times) -> out, all (B, N, H, D): one of the three of viewtime_kernels."""


def project(
    attn: Any, hidden_states: Tensor, rotary_emb: tuple[Tensor, Tensor] | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, each (B, N, H, D), as the stock layer makes them of its tokens (B, N, C).

    shift: (N, C), added to q and k before their rotation, or None (appendix B, Table S1).
    """
    if attn.fused_projections:
        q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
    else:
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    # RMS norm over all heads, before the split, in the dtype of its weight: torch has no fused
    # form for mixed dtypes, which autocast would otherwise make here.
    q = attn.norm_q(q.to(attn.norm_q.weight.dtype))
    k = attn.norm_k(k.to(attn.norm_k.weight.dtype))
    if shift is not None:
        q, k = q + shift.to(q), k + shift.to(k)
    q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))  # (B, N, H, D)
    if rotary_emb is not None:
        q, k = rotate(q, *rotary_emb), rotate(k, *rotary_emb)
    return q.to(v.dtype), k.to(v.dtype), v


class ViewTimeProcessor:
    """Self-attention over the grid, for `block.attn1.set_processor`.

    attend says who sees whom: `view_time_attention` (row and column, Eq. 1), `view_attention`
    (the row) or `time_attention` (the column).
    """

    def __init__(
        self,
        grid: TokenGrid,
        attend: Attend = view_time_attention,
        view_embedding: ViewEmbedding | None = None,
    ) -> None:
        self.grid, self.attend, self.view_embedding = grid, attend, view_embedding

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """hidden_states: (B, N, C), tokens in (view, time, row, column) order. Returns the same."""
        shift = _shift(self.view_embedding, self.grid, hidden_states)
        q, k, v = project(attn, hidden_states, rotary_emb, shift)
        out = self.attend(q, k, v, views=self.grid.views, times=self.grid.times)  # (B, N, H, D)
        out = out.flatten(2).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](out))


class ParallelProcessor:
    """The parallel architecture of Fig. 3b: rows and columns each in a branch of their own, then
    put together by `synchronise(rows, columns)`, both (B, N, C)."""

    def __init__(
        self,
        grid: TokenGrid,
        synchronise: Callable[[Tensor, Tensor], Tensor],
        view_embedding: ViewEmbedding | None = None,
    ) -> None:
        self.grid, self.synchronise, self.view_embedding = grid, synchronise, view_embedding

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """hidden_states: (B, N, C), tokens in (view, time, row, column) order. Returns the same."""
        shift = _shift(self.view_embedding, self.grid, hidden_states)
        q, k, v = project(attn, hidden_states, rotary_emb, shift)
        branches = []
        for attend in (view_attention, time_attention):
            out = attend(q, k, v, views=self.grid.views, times=self.grid.times)
            out = out.flatten(2).type_as(hidden_states)
            branches.append(attn.to_out[1](attn.to_out[0](out)))  # (B, N, C)
        return self.synchronise(*branches)


def _shift(embedding: ViewEmbedding | None, grid: TokenGrid, tokens: Tensor) -> Tensor | None:
    """The view embedding of every token (N, C), None without one."""
    if embedding is None:
        return None
    per_view = tokens.shape[1] // grid.views
    return embedding(grid.view_index).repeat_interleave(per_view, dim=0)


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
