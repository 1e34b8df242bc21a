# SPDX-License-Identifier: Apache-2.0
"""Trunk of the reconstructor: frame, global and temporal attention in turn over a V x T grid.

Without its own additions (temporal blocks, ray embedding) it is VGGT's alternating attention.
"""

import torch
from torch import Tensor, nn

from viewtime.reconstructor.layers import Block, Rope2D, uv_embedding

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class PatchEmbed(nn.Module):
    """Patches of a picture as tokens: one convolution (VGGT's "conv" embedding)."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (N, h*w, C)


class Aggregator(nn.Module):
    """Frames (B,T,V,3,H,W) to tokens (B,T,V,P,2C) per layer; P = 1 + registers + (H/p)(W/p).

    Each timestep attends within each frame, then over its V frames (view 0 is the reference),
    then each token attends over T at its own view and place.
    """

    def __init__(
        self,
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        registers: int,
        layer_scale: float,
        temporal_mlp_ratio: float,
        uv_tokens: bool,
        rays: bool,
    ) -> None:
        super().__init__()
        self.patch, self.registers, self.uv_tokens = patch, registers, uv_tokens
        self.head_dim = dim // heads
        self.patch_embed = PatchEmbed(patch, 3, dim)
        # Slot 0 belongs to view 0, slot 1 to every other view.
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, dim) * 1e-2)
        self.register_token = nn.Parameter(torch.randn(1, 2, registers, dim) * 1e-2)

        def blocks(ratio: float, silent: bool) -> nn.ModuleList:
            return nn.ModuleList(
                Block(dim, heads, ratio, layer_scale=layer_scale, silent=silent)
                for _ in range(depth)
            )

        self.frame_blocks = blocks(mlp_ratio, False)
        self.global_blocks = blocks(mlp_ratio, False)
        # Ours: silent at the start, so a stock checkpoint gives stock output.
        self.temporal_blocks = blocks(temporal_mlp_ratio, True)
        self.ray_embed = PatchEmbed(patch, 6, dim) if rays else None
        if self.ray_embed is not None:
            for parameter in self.ray_embed.parameters():
                nn.init.zeros_(parameter)
        self.rope = Rope2D()

    @property
    def first_patch(self) -> int:
        """Index of the first patch token among the P tokens of a frame."""
        return 1 + self.registers

    def forward(
        self, frames: Tensor, rays: Tensor | None = None, temporal: bool = True
    ) -> list[Tensor]:
        """frames (B,T,V,3,H,W) in [0,1]; rays (B,V,6,H,W) or None. See the class."""
        batch, times, views, _, height, width = frames.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"frames are {width}x{height}; sides must divide by {self.patch}")
        rows, columns = height // self.patch, width // self.patch
        mean = frames.new_tensor(_MEAN).view(1, 3, 1, 1)
        std = frames.new_tensor(_STD).view(1, 3, 1, 1)
        patches = self.patch_embed((frames.flatten(0, 2) - mean) / std)  # (BTV, hw, C)
        dim = patches.shape[-1]
        if self.uv_tokens:
            patches = patches + uv_embedding(rows, columns, dim).flatten(1).T.to(patches)
        patches = patches.view(batch, times, views, rows * columns, dim)
        if rays is not None and self.ray_embed is not None:
            embedded = self.ray_embed(rays.flatten(0, 1))  # (BV, hw, C)
            patches = patches + embedded.view(batch, 1, views, rows * columns, dim)

        slots = torch.ones(views, dtype=torch.long, device=frames.device)
        slots[0] = 0
        special = torch.cat([self.camera_token, self.register_token], dim=2)[0, slots]
        special = special.expand(batch, times, *special.shape)  # (B,T,V,1+R,C)
        x = torch.cat([special.to(patches.dtype), patches], dim=3)  # (B,T,V,P,C)
        count = x.shape[3]

        frame_table, global_table, time_table = self._tables(rows, columns, views, times, x)
        layers = []
        for i in range(len(self.frame_blocks)):
            x = x.reshape(batch * times * views, count, dim)
            within = self.frame_blocks[i](x, frame_table)
            x = within.reshape(batch * times, views * count, dim)
            x = self.global_blocks[i](x, global_table).view(batch, times, views, count, dim)
            if temporal and times > 1:
                x = x.permute(0, 2, 3, 1, 4).reshape(batch * views * count, times, dim)
                x = self.temporal_blocks[i](x, time_table)
                x = x.view(batch, views, count, times, dim).permute(0, 3, 1, 2, 4)
            within = within.view(batch, times, views, count, dim)
            layers.append(torch.cat([within, x], dim=-1))  # (B,T,V,P,2C)
        return layers

    def _tables(
        self, rows: int, columns: int, views: int, times: int, like: Tensor
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """RoPE tables of one frame, of all views, and of time. Special tokens sit at (0, 0)."""
        y = torch.arange(1, rows + 1).repeat_interleave(columns)
        x = torch.arange(1, columns + 1).repeat(rows)
        grid = torch.stack([y, x], dim=-1)
        positions = torch.cat([torch.zeros(self.first_patch, 2, dtype=grid.dtype), grid])
        positions = positions.to(like.device)
        steps = torch.arange(times, device=like.device)[:, None].expand(times, 2)
        frame = self.rope.table(positions, self.head_dim)
        return (
            frame,
            tuple(part.repeat(views, 1) for part in frame),  # type: ignore[return-value]
            self.rope.table(steps, self.head_dim),
        )
