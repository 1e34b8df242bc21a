# SPDX-License-Identifier: Apache-2.0
"""DINOv2 with registers as a patch embedding, with the names its weights have inside VGGT.

It returns normalised patch tokens; the class token and its own registers stay inside.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viewtime.reconstructor.layers import Block, token


class PatchEmbed(nn.Module):
    """Patches of a picture as tokens: one convolution (VGGT's "conv" embedding)."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (N, h*w, C)


class DinoV2(nn.Module):
    """Pictures (N,3,H,W), normalised, to tokens (N, (H/p)(W/p), C)."""

    def __init__(self, *, patch: int, size: int, dim: int, depth: int, heads: int, registers: int):
        super().__init__()
        self.patch = patch
        self.side = size // patch
        self.patch_embed = PatchEmbed(patch, 3, dim)
        self.cls_token = token(1, 1, dim, std=1e-6)
        self.pos_embed = token(1, 1 + self.side**2, dim, std=0.02)
        self.register_tokens = token(1, registers, dim, std=1e-6)
        # A weight of DINO's training; nothing here reads it.
        self.mask_token = nn.Parameter(torch.zeros(1, dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(dim, heads, 4.0, qk_norm=False, layer_scale=1.0, eps=1e-6) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        count, _, height, width = x.shape
        x = self.patch_embed(x)  # (N, hw, C)
        places = self.places(height // self.patch, width // self.patch).to(x.dtype)
        first = (self.cls_token + places[:, :1]).expand(count, -1, -1)
        registers = self.register_tokens.expand(count, -1, -1)
        x = torch.cat([first.to(x.dtype), registers.to(x.dtype), x + places[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + registers.shape[1] :]

    def places(self, rows: int, columns: int) -> Tensor:
        """Position embedding (1, 1 + rows*columns, C): of the class token, then of the patches."""
        if (rows, columns) == (self.side, self.side):
            return self.pos_embed
        table = self.pos_embed.float()
        grid = table[:, 1:].reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
