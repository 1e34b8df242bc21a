# SPDX-License-Identifier: Apache-2.0
"""Trunk of the reconstructor: frame, global and temporal attention in turn over a V x T grid.

Without its own additions (temporal blocks, ray embedding) it is VGGT's alternating attention.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.dino import DinoV2, PatchEmbed
from viewtime.reconstructor.layers import Block, Rope2D, Table, token, uv_embedding
from viewtime.reconstructor.memory import WHOLE, Chunks

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Aggregator(nn.Module):
    """Frames (B,T,V,3,H,W) to tokens (B,T,V,P,2C) of the layers asked for.

    P = 1 camera token + registers + (H/p)(W/p) patches. Each timestep attends within each frame,
    then over its V frames (view 0 is the reference); after each of the two, or after the pair,
    each token attends over T at its own view and place.

    checkpointing: recompute blocks in the backward pass instead of keeping their activations.
    """

    def __init__(self, config: ReconstructorConfig) -> None:
        super().__init__()
        self.config = c = config
        self.checkpointing = False
        self.patch_embed: nn.Module
        if c.patch_embed == "dinov2":
            self.patch_embed = DinoV2(
                patch=c.patch,
                size=c.size,
                dim=c.dim,
                depth=c.dino_depth,
                heads=c.dino_heads,
                registers=c.registers,
            )
        else:
            self.patch_embed = PatchEmbed(c.patch, 3, c.dim)
        # Slot 0 belongs to view 0, slot 1 to every other view.
        self.camera_token = token(1, 2, 1, c.dim, std=1e-2)
        self.register_token = token(1, 2, c.registers, c.dim, std=1e-2)
        self.frame_blocks = _blocks(c, c.mlp_ratio)
        self.global_blocks = _blocks(c, c.mlp_ratio)
        # Ours: silent at the start, so a stock checkpoint gives stock output.
        self.frame_temporal_blocks: nn.ModuleList | None = None
        self.temporal_blocks: nn.ModuleList | None = None
        if c.temporal == "layer":
            self.frame_temporal_blocks = temporal_blocks(c)
        if c.temporal != "none":
            self.temporal_blocks = temporal_blocks(c)
        self.ray_embed = PatchEmbed(c.patch, 6, c.dim) if c.rays else None
        if self.ray_embed is not None:
            for parameter in self.ray_embed.parameters():
                nn.init.zeros_(parameter)
        self.rope = Rope2D(c.rope_base)

    def forward(
        self,
        frames: Tensor,
        rays: Tensor | None = None,
        *,
        temporal: bool = True,
        keep: Collection[int] | None = None,
        chunks: Chunks = WHOLE,
    ) -> dict[int, Tensor]:
        """frames (B,T,V,3,H,W) in [0,1]; rays (B,V,6,H,W) or None.

        keep: layers to return, all of them when None. chunks bounds memory and changes nothing
        but rounding; it counts only where no gradients are kept.
        """
        batch, times, views = frames.shape[:3]
        keep = range(self.config.depth) if keep is None else keep
        temporal = temporal and times > 1
        x = self.tokens(frames, rays, chunks)  # (B,T,V,P,C)
        count, dim = x.shape[3:]
        frame_table, global_table, time_table = self._tables(frames, x)
        layers: dict[int, Tensor] = {}
        for i, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks)):
            x = x.view(batch * times * views, count, dim)
            x = self._rows(frame_block, x, frame_table, chunks.frames)
            if temporal and self.frame_temporal_blocks is not None:
                x = x.view(batch, times, views * count, dim)
                x = self._over_time(self.frame_temporal_blocks[i], x, time_table, chunks.tokens)
            kept = within = None
            if i in keep and torch.is_grad_enabled():
                within = x.view(batch, times, views, count, dim)
            elif i in keep:  # what follows may write into x
                kept = x.new_empty(batch, times, views, count, 2 * dim)
                kept[..., :dim] = x.view(batch, times, views, count, dim)
            x = x.view(batch * times, views * count, dim)
            x = self._rows(global_block, x, global_table, chunks.timesteps)
            if temporal and self.temporal_blocks is not None:
                x = x.view(batch, times, views * count, dim)
                x = self._over_time(self.temporal_blocks[i], x, time_table, chunks.tokens)
            x = x.view(batch, times, views, count, dim)
            if kept is not None:
                kept[..., dim:] = x
                layers[i] = kept
            elif within is not None:
                layers[i] = torch.cat([within, x], dim=-1)  # (B,T,V,P,2C)
        return layers

    def tokens(self, frames: Tensor, rays: Tensor | None, chunks: Chunks = WHOLE) -> Tensor:
        """What the first frame block sees: (B,T,V,P,C), special tokens first."""
        batch, times, views, channels, height, width = frames.shape
        patch = self.config.patch
        if channels != 3:
            raise ValueError(f"frames have {channels} channels; 3 (RGB) are needed")
        if height % patch or width % patch:
            raise ValueError(f"frames are {width}x{height}; sides must divide by {patch}")
        mean = frames.new_tensor(_MEAN).view(1, 3, 1, 1)
        std = frames.new_tensor(_STD).view(1, 3, 1, 1)
        flat = frames.flatten(0, 2)  # (BTV,3,H,W)
        size = len(flat) if torch.is_grad_enabled() else chunks.frames or len(flat)
        patches = _joined([self.patch_embed((part - mean) / std) for part in flat.split(size)])
        rows, columns = height // patch, width // patch
        if self.config.uv_tokens:
            places = uv_embedding(rows, columns, patches.shape[-1], device=patches.device)
            patches = patches + places.flatten(1).T.to(patches)
        patches = patches.view(batch, times, views, rows * columns, -1)
        if rays is not None and self.ray_embed is not None:
            embedded = self.ray_embed(rays.flatten(0, 1))  # (BV,hw,C)
            patches = patches + embedded.view(batch, 1, views, rows * columns, -1)
        slots = torch.ones(views, dtype=torch.long, device=frames.device)
        slots[0] = 0
        special = torch.cat([self.camera_token, self.register_token], dim=2)[0, slots]
        special = special.expand(batch, times, *special.shape)  # (B,T,V,1+R,C)
        # The residual stream is never narrower than the weights, whatever the blocks compute in.
        return torch.cat([special, patches.to(special.dtype)], dim=3)

    def _rows(self, block: nn.Module, x: Tensor, table: Table, size: int) -> Tensor:
        """block over sequences x (N,L,C), `size` of them at a time."""
        if torch.is_grad_enabled():
            return self._keep(block, x, table)
        if not 0 < size < len(x):
            return block(x, table)
        for part in x.split(size):
            part.copy_(block(part, table))
        return x

    def _over_time(self, block: nn.Module, x: Tensor, table: Table, size: int) -> Tensor:
        """block over T for each token of x (B,T,N,C), `size` tokens at a time."""
        batch, times, count, dim = x.shape
        if torch.is_grad_enabled():
            rows = x.transpose(1, 2).reshape(batch * count, times, dim)
            rows = self._keep(block, rows, table)
            return rows.view(batch, count, times, dim).transpose(1, 2).contiguous()
        for sample in x:
            for part in sample.split(size or count, dim=1):  # (T,n,C), a view
                rows = part.transpose(0, 1).contiguous()  # (n,T,C)
                part.copy_(block(rows, table).transpose(0, 1))
        return x

    def _keep(self, block: Callable[..., Tensor], x: Tensor, table: Table) -> Tensor:
        if self.checkpointing:
            return checkpoint(block, x, table, use_reentrant=False)
        return block(x, table)

    def _tables(self, frames: Tensor, x: Tensor) -> tuple[Table, Table, Table]:
        """RoPE tables of one frame, of all views, and of time. Special tokens sit at (0, 0)."""
        times, views, height, width = (frames.shape[i] for i in (1, 2, 4, 5))
        rows, columns = height // self.config.patch, width // self.config.patch
        head_dim = self.config.dim // self.config.heads
        y = torch.arange(1, rows + 1).repeat_interleave(columns)
        patches = torch.stack([y, torch.arange(1, columns + 1).repeat(rows)], dim=-1)
        special = torch.zeros(self.config.first_patch, 2, dtype=patches.dtype)
        cos, sin = self.rope.table(torch.cat([special, patches]).to(x.device), head_dim)
        steps = torch.arange(times, device=x.device)[:, None].expand(times, 2)
        over_views = (cos.repeat(views, 1), sin.repeat(views, 1))
        return (cos, sin), over_views, self.rope.table(steps, head_dim)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def temporal_blocks(config: ReconstructorConfig) -> nn.ModuleList:
    """Fresh temporal blocks, one per layer: the identity until they are trained."""
    return _blocks(config, config.temporal_mlp_ratio, silent=True)


def _blocks(c: ReconstructorConfig, mlp_ratio: float, *, silent: bool = False) -> nn.ModuleList:
    """One block per layer, with the hyper-parameters of VGGT's frame and global attention."""
    return nn.ModuleList(
        Block(c.dim, c.heads, mlp_ratio, layer_scale=c.layer_scale, silent=silent)
        for _ in range(c.depth)
    )
