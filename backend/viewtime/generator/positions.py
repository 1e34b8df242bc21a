# SPDX-License-Identifier: Apache-2.0
"""Positions of view-time tokens: (v, t, y, x) -> (v * T_max + t, y, x) in the stock table, and
the two alternatives of appendix B.

The rotary table itself is the stock model's; rows of it are picked, none are made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from viewtime.generator.attention import TokenGrid
from viewtime.generator.errors import GeneratorError

POSITIONS = ("flat", "sum", "learned")
"""flat: v * T_max + t, the paper's choice. sum: v + t, where row and column both count on by one
but the diagonals coincide. learned: t alone, and a `ViewEmbedding` added to queries and keys."""


class ViewTimePositions(nn.Module):
    """Takes the place of `WanTransformer3DModel.rope`.

    kind: one of POSITIONS. t_max is the stride between views; 0 means the grid's own number of
    times, which makes the grid one long sequence and coincides with the stock positions. Adds no
    key to the state dict.
    """

    def __init__(self, stock: Any, grid: TokenGrid, t_max: int = 0, kind: str = "flat") -> None:
        super().__init__()
        self.stock, self.grid, self.t_max, self.kind = stock, grid, t_max, kind

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """hidden_states: (B, C, V*T, h, w). Returns cos and sin, each (1, N, 1, head_dim).

        Raises GeneratorError when a position lies outside the table or views would overlap.
        """
        stock, grid = self.stock, self.grid
        _, _, _, height, width = hidden_states.shape
        rows, columns = height // stock.patch_size[1], width // stock.patch_size[2]
        frames = self._frames()
        limit = stock.freqs_cos.shape[0]
        if max(max(frames) + 1, rows, columns) > limit:
            raise GeneratorError(
                f"{grid.views} views x {grid.times} times of {rows} x {columns} tokens need "
                f"{max(max(frames) + 1, rows, columns)} positions, the model has {limit}"
            )
        index = torch.tensor(frames, device=stock.freqs_cos.device)
        widths = [stock.t_dim, stock.h_dim, stock.w_dim]

        def table(values: Tensor) -> Tensor:
            of_frame, of_row, of_column = values.split(widths, dim=1)
            shape = (len(frames), rows, columns)
            parts = (
                of_frame[index][:, None, None].expand(*shape, -1),
                of_row[:rows][None, :, None].expand(*shape, -1),
                of_column[:columns][None, None].expand(*shape, -1),
            )
            return torch.cat(parts, dim=-1).reshape(1, -1, 1, values.shape[1])

        # The tables lie elsewhere where the weights are brought to the device in parts.
        cos, sin = table(stock.freqs_cos), table(stock.freqs_sin)
        return cos.to(hidden_states.device), sin.to(hidden_states.device)

    def _frames(self) -> list[int]:
        """The row of the table for each frame of the grid, in (view, time) order."""
        grid = self.grid
        cells = [(v, t) for v in grid.view_index for t in grid.time_index]
        if self.kind == "sum":
            return [v + t for v, t in cells]
        if self.kind == "learned":
            return [t for _, t in cells]
        t_max = self.t_max or max(grid.time_index) + 1
        if max(grid.time_index) >= t_max:
            raise GeneratorError(
                f"the model has positions for {t_max} times per view, "
                f"the grid has {max(grid.time_index) + 1}"
            )
        return [v * t_max + t for v, t in cells]


class ViewEmbedding(nn.Module):
    """The learnable view position of appendix B: sines and cosines of learned frequencies, then
    two linear layers. What it adds starts at zero."""

    def __init__(self, width: int, frequencies: int = 16) -> None:
        super().__init__()
        # From one turn in 6 views to one in 6,000: what the rotary table spans, too.
        self.frequencies = nn.Parameter(torch.logspace(0, -3, frequencies))
        self.mlp = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, views: tuple[int, ...]) -> Tensor:
        """views: V view numbers. Returns (V, width)."""
        index = torch.tensor(views, dtype=torch.float32, device=self.frequencies.device)
        angle = index[:, None] * self.frequencies  # (V, frequencies)
        return self.mlp(torch.cat((angle.sin(), angle.cos()), dim=-1))
