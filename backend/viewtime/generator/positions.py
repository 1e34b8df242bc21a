# SPDX-License-Identifier: Apache-2.0
"""Positions of view-time tokens: (v, t, y, x) -> (v * T_max + t, y, x) in the stock table.

The rotary table itself is the stock model's; rows of it are picked, none are made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from viewtime.generator.attention import TokenGrid
from viewtime.generator.errors import GeneratorError


class ViewTimePositions(nn.Module):
    """Takes the place of `WanTransformer3DModel.rope`.

    t_max is the stride between views; 0 means the grid's own number of times, which makes the
    grid one long sequence and coincides with the stock positions. Adds no key to the state dict.
    """

    def __init__(self, stock: Any, grid: TokenGrid, t_max: int = 0) -> None:
        super().__init__()
        self.stock, self.grid, self.t_max = stock, grid, t_max

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """hidden_states: (B, C, V*T, h, w). Returns cos and sin, each (1, N, 1, head_dim).

        Raises GeneratorError when a position lies outside the table or views would overlap.
        """
        stock, grid = self.stock, self.grid
        _, _, _, height, width = hidden_states.shape
        rows, columns = height // stock.patch_size[1], width // stock.patch_size[2]
        t_max = self.t_max or max(grid.time_index) + 1
        if max(grid.time_index) >= t_max:
            raise GeneratorError(
                f"the model has positions for {t_max} times per view, "
                f"the grid has {max(grid.time_index) + 1}"
            )
        frames = [v * t_max + t for v in grid.view_index for t in grid.time_index]
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

        return table(stock.freqs_cos), table(stock.freqs_sin)
