# SPDX-License-Identifier: Apache-2.0
"""The three architectures of Fig. 3, each made of a stock transformer by changing its processors.

Fused and interleaved add no parameter. What the others add starts so that it changes as little
as it can, and is kept beside the stock weights, never among them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from viewtime.generator.attention import ParallelProcessor, TokenGrid, ViewTimeProcessor
from viewtime.generator.positions import ViewEmbedding
from viewtime_kernels import time_attention, view_attention, view_time_attention

ARCHITECTURES = ("fused", "sequential", "sequential_added", "parallel", "parallel_average")
"""fused: Eq. 1. sequential: the existing layers by turns, even ones along rows, odd ones along
columns. sequential_added: every layer along rows, with an added one along columns before it.
parallel: both at once in every layer, then a linear layer; parallel_average: then a weighted mean.
"""


def install(
    transformer: Any, architecture: str, grid: TokenGrid, view_embedding: ViewEmbedding | None
) -> nn.ModuleList:
    """Give each block of a WanTransformer3DModel its self-attention; the modules that were added.

    architecture: one of ARCHITECTURES. view_embedding: see `positions`.
    """
    added = nn.ModuleList()
    for number, block in enumerate(transformer.blocks):
        if architecture == "fused":
            processor: Any = ViewTimeProcessor(grid, view_time_attention, view_embedding)
        elif architecture == "sequential":
            attend = view_attention if number % 2 == 0 else time_attention
            processor = ViewTimeProcessor(grid, attend, view_embedding)
        elif architecture == "sequential_added":
            processor = ViewTimeProcessor(grid, view_attention, view_embedding)
            layer = AcrossViews(block.attn1, grid, view_embedding)
            block.register_forward_pre_hook(layer.before_block)
            added.append(layer)
        else:
            width = block.attn1.to_out[0].out_features
            merge = Mixing(width) if architecture == "parallel" else WeightedMean()
            processor = ParallelProcessor(grid, merge, view_embedding)
            added.append(merge)
        block.attn1.set_processor(processor)
    return added


class _LinearInTheirDtype(nn.Linear):
    """A linear layer in the dtype of its tokens: they are bfloat16 in a big checkpoint's blocks,
    while what is added keeps its weights in float32."""

    def forward(self, tokens: Tensor) -> Tensor:
        weight, bias = self.weight.to(tokens.dtype), self.bias.to(tokens.dtype)
        return nn.functional.linear(tokens, weight, bias)


class Mixing(nn.Module):
    """The synchronisation layer of the parallel architecture: one linear map of both branches.

    It starts as their mean.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = _LinearInTheirDtype(2 * width, width)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(width).repeat(1, 2) / 2)
            self.linear.bias.zero_()

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows, columns: (B, N, C). Returns (B, N, C)."""
        return self.linear(torch.cat((rows, columns), dim=-1))


class WeightedMean(nn.Module):
    """The other way to synchronise: a mean of both with one learned weight, at first 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows, columns: (B, N, C). Returns (B, N, C)."""
        weight = torch.sigmoid(self.logit).to(rows.dtype)
        return weight * rows + (1 - weight) * columns


class AcrossViews(nn.Module):
    """A cross-view self-attention layer that is added before a block, as SynCamMaster adds one.

    Its attention starts with the weights of the block's own; what it adds starts at zero.
    """

    def __init__(self, like: Any, grid: TokenGrid, view_embedding: ViewEmbedding | None) -> None:
        """like: the block's own WanAttention."""
        super().__init__()
        width = like.to_out[0].out_features
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = copy.deepcopy(like)
        self.attention.set_processor(ViewTimeProcessor(grid, time_attention, view_embedding))
        self.out = _LinearInTheirDtype(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor, rotary_emb: tuple[Tensor, Tensor]) -> Tensor:
        """tokens: (B, N, C). Returns (B, N, C)."""
        seen = self.attention(self.norm(tokens.float()).type_as(tokens), None, None, rotary_emb)
        return tokens + self.out(seen)

    def before_block(self, _block: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """As a forward pre-hook: the block's tokens are its first input, the rotation its last."""
        return (self(inputs[0], inputs[-1]), *inputs[1:])
