# SPDX-License-Identifier: Apache-2.0
"""VGGT's track head: where points of the first frame are in every other frame.

Optional: nothing in Viewtime's pipeline needs tracks. Names are upstream's, its slips included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.dpt import DPTHead
from viewtime.reconstructor.layers import Mlp, token

LEVELS, RADIUS, STRIDE, ROUNDS, MAX_SCALE = 7, 4, 2, 4, 518.0
"""Correlation pyramid, search radius, pixels per feature, refinement rounds, flow unit."""
HEADS, VIRTUAL = 8, 64


class TrackHead(nn.Module):
    """Tokens and query points to tracks, visibility and confidence."""

    def __init__(self, config: ReconstructorConfig) -> None:
        super().__init__()
        self.feature_extractor = DPTHead(
            config, 0, features=config.track_features, uv=False, shrink=STRIDE
        )
        self.tracker = Tracker(config.track_features, config.track_hidden, config.track_depth)

    def forward(
        self, tokens: Sequence[Tensor], pictures: Tensor, query: Tensor, *, chunk: int = 8
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """tokens: four layers (B,S,P,2C); pictures (B,S,3,H,W); query (B,N,2) pixels (x, y).

        Returns per round the tracks (B,S,N,2) in pixels, and visibility and confidence (B,S,N).
        """
        batch, frames = pictures.shape[:2]
        flat = [layer.flatten(0, 1) for layer in tokens]
        flat_pictures = pictures.flatten(0, 1)
        maps = torch.cat(
            [
                self.feature_extractor.features(
                    [layer[i : i + chunk] for layer in flat], flat_pictures[i : i + chunk]
                )
                for i in range(0, batch * frames, chunk)
            ]
        )
        return self.tracker(maps.view(batch, frames, *maps.shape[1:]), query)


class Tracker(nn.Module):
    """Feature maps (B,S,C,h,w) of one pixel in STRIDE, and query points, to tracks."""

    def __init__(self, features: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.features = features
        width = 3 * features + 4
        self.query_ref_token = token(1, 2, width, std=1.0)
        self.corr_mlp = Mlp(LEVELS * (2 * RADIUS + 1) ** 2, hidden, features)
        self.updateformer = UpdateFormer(width, hidden, features + 2, depth)
        self.fmap_norm = nn.LayerNorm(features)
        self.ffeat_norm = nn.GroupNorm(1, features)
        self.ffeat_updater = nn.Sequential(nn.Linear(features, features), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(features, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(features, 1))

    def forward(self, maps: Tensor, query: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        batch, frames, channels, height, width = maps.shape
        count = query.shape[1]
        maps = self.fmap_norm(maps.permute(0, 1, 3, 4, 2)).permute(0, 1, 4, 2, 3)
        start = query / STRIDE  # (B,N,2)
        places = start[:, None].expand(-1, frames, -1, -1)  # (B,S,N,2)
        tracks = sample(maps[:, 0], start)[:, None].expand(-1, frames, -1, -1)  # (B,S,N,C)
        pyramid = _pyramid(maps)
        sines = grid_sines(3 * channels + 4, height, width).to(maps)
        sines = sample(sines.expand(batch, -1, -1, -1), start)[:, :, None]  # (B,N,1,D)
        slots = torch.ones(frames, dtype=torch.long, device=maps.device)
        slots[0] = 0
        answers = []
        for _ in range(ROUNDS):
            places = places.detach()
            flow = (places - places[:, :1]).transpose(1, 2)  # (B,N,S,2)
            similar = self.corr_mlp(correlation(pyramid, tracks, places)).transpose(1, 2)
            scaled = flow / MAX_SCALE
            parts = [flow_sines(flow, channels // 2), scaled, scaled, similar]
            x = torch.cat([*parts, tracks.transpose(1, 2)], dim=-1)  # (B,N,S,D)
            x = x + sines + self.query_ref_token[:, slots]
            delta = self.updateformer(x).transpose(1, 2)  # (B,S,N,2+C)
            change = self.ffeat_norm(delta[..., 2:].reshape(-1, channels))
            tracks = tracks + self.ffeat_updater(change).view(batch, frames, count, channels)
            places = places + delta[..., :2]
            # The query points are given: they do not move.
            places = torch.cat([start[:, None], places[:, 1:]], dim=1)
            answers.append(places * STRIDE)
        visible = self.vis_predictor(tracks)[..., 0].sigmoid()
        return answers, visible, self.conf_predictor(tracks)[..., 0].sigmoid()


class UpdateFormer(nn.Module):
    """Attention over time and, through virtual tracks, over points: (B,N,S,in) to (B,N,S,out)."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(width)
        self.input_transform = nn.Linear(width, hidden)
        self.output_norm = nn.LayerNorm(hidden)
        self.flow_head = nn.Linear(hidden, out)
        self.virual_tracks = token(1, VIRTUAL, 1, hidden, std=1.0)  # upstream's name
        self.time_blocks = nn.ModuleList(SelfBlock(hidden) for _ in range(depth))
        self.space_virtual_blocks = nn.ModuleList(SelfBlock(hidden) for _ in range(depth))
        self.space_point2virtual_blocks = nn.ModuleList(CrossBlock(hidden) for _ in range(depth))
        self.space_virtual2point_blocks = nn.ModuleList(CrossBlock(hidden) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        batch, count, frames, _ = x.shape
        first = self.input_transform(self.input_norm(x))  # (B,N,S,D)
        x = torch.cat([first, self.virual_tracks.expand(batch, -1, frames, -1)], dim=1)
        total = x.shape[1]
        for time, among, to_points, to_virtual in zip(
            self.time_blocks,
            self.space_virtual_blocks,
            self.space_point2virtual_blocks,
            self.space_virtual2point_blocks,
        ):
            x = time(x.reshape(batch * total, frames, -1)).view(batch, total, frames, -1)
            x = x.transpose(1, 2).reshape(batch * frames, total, -1)
            points, virtual = x[:, :count], x[:, count:]
            virtual = among(to_virtual(virtual, points))
            points = to_points(points, virtual)
            x = torch.cat([points, virtual], dim=1)
            x = x.view(batch, frames, total, -1).transpose(1, 2)
        return self.flow_head(self.output_norm(x[:, :count] + first))


class SelfBlock(nn.Module):
    """Attention and MLP; the first skip carries the normalised input, as upstream has it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, HEADS, batch_first=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """Attention to a context and MLP; skips as in SelfBlock."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.cross_attn = nn.MultiheadAttention(dim, HEADS, batch_first=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x, context = self.norm1(x), self.norm_context(context)
        x = x + self.cross_attn(x, context, context, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def _pyramid(maps: Tensor) -> list[Tensor]:
    """Maps (B,S,C,h,w) at LEVELS sizes, each half of the one before."""
    levels = [maps]
    for _ in range(LEVELS - 1):
        half = F.avg_pool2d(levels[-1].flatten(0, 1), 2, 2)
        levels.append(half.view(*maps.shape[:2], *half.shape[1:]))
    return levels


def correlation(pyramid: list[Tensor], tracks: Tensor, places: Tensor) -> Tensor:
    """Similarity of tracks (B,S,N,C) to the maps around places (B,S,N,2), per level, 0 outside.

    (B,S,N, LEVELS * (2 RADIUS + 1)^2). Upstream steps through the window with y in x's place.
    """
    batch, frames, count, channels = tracks.shape
    span = torch.arange(-RADIUS, RADIUS + 1, device=places.device, dtype=places.dtype)
    window = torch.stack(torch.meshgrid(span, span, indexing="ij"), dim=-1)  # (9,9,2)
    found = []
    for level, maps in enumerate(pyramid):
        height, width = maps.shape[-2:]
        similar = tracks @ maps.flatten(3) / channels**0.5  # (B,S,N,hw)
        at = places.reshape(-1, 1, 1, 2) / 2**level + window  # (BSN,9,9,2)
        part = _bilinear(similar.view(-1, 1, height, width), at, "zeros")
        found.append(part.view(batch, frames, count, -1))
    return torch.cat(found, dim=-1)


def sample(maps: Tensor, places: Tensor) -> Tensor:
    """Maps (B,C,h,w) at places (B,N,2) of (x, y), clamped to the border: (B,N,C)."""
    return _bilinear(maps, places[:, :, None], "border")[..., 0].transpose(1, 2)


def _bilinear(maps: Tensor, places: Tensor, padding: str) -> Tensor:
    """grid_sample at pixel indices: 0 is the first pixel's centre."""
    sides = places.new_tensor([2.0 / max(side - 1, 1) for side in reversed(maps.shape[-2:])])
    return F.grid_sample(
        maps, places.detach() * sides - 1, padding_mode=padding, align_corners=True
    )


def grid_sines(channels: int, height: int, width: int) -> Tensor:
    """(1,channels,height,width): sines and cosines of x, then of y, at rates 1 to 1e-4."""
    quarter = channels // 4
    rates = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    parts = []
    for side, shape in ((width, (quarter, 1, width)), (height, (quarter, height, 1))):
        angles = (rates[:, None] * torch.arange(side, dtype=torch.float64)).view(shape)
        parts += [f(angles).expand(quarter, height, width) for f in (torch.sin, torch.cos)]
    return torch.cat(parts)[None].float()


def flow_sines(flow: Tensor, channels: int) -> Tensor:
    """Flow (...,2) as (..., 2 * channels): interleaved sines and cosines of x, then of y."""
    steps = torch.arange(0, channels, 2, device=flow.device, dtype=torch.float32)
    angles = flow[..., None] * (steps * (1000.0 / channels))  # (...,2,channels/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)
