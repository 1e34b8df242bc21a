# SPDX-License-Identifier: Apache-2.0
"""Heads of the reconstructor: camera refinement and dense depth (DPT), named as in VGGT.

What VGGT lacks (surface logit, picture skip) has names of its own and starts silent.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viewtime.reconstructor.layers import Block, Mlp, uv_embedding


class CameraHead(nn.Module):
    """Camera tokens (N, V, 2C) to pose encodings (N, V, 9), refined over a few rounds.

    Encoding "absT_quaR_FoV": translation, quaternion xyzw, vertical and horizontal field of view
    in radians; camera from view 0, OpenCV axes.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        heads: int,
        mlp_ratio: float,
        layer_scale: float,
        rounds: int = 4,
    ) -> None:
        super().__init__()
        self.rounds = rounds
        self.trunk = nn.ModuleList(
            Block(dim, heads, mlp_ratio, qk_norm=False, layer_scale=layer_scale)
            for _ in range(depth)
        )
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.pose_branch = Mlp(dim, dim // 2, 9)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """One encoding (N, V, 9) per round; the last is the answer."""
        tokens = self.token_norm(tokens)
        raw: Tensor | None = None
        answers = []
        for _ in range(self.rounds):
            if raw is None:
                embedded = self.embed_pose(self.empty_pose_tokens.expand(*tokens.shape[:2], 9))
            else:
                embedded = self.embed_pose(raw.detach())
            shift, scale, gate = self.poseLN_modulation(embedded).chunk(3, dim=-1)
            x = gate * (self.adaln_norm(tokens) * (1.0 + scale) + shift) + tokens
            for block in self.trunk:
                x = block(x)
            delta = self.pose_branch(self.trunk_norm(x))
            raw = delta if raw is None else raw + delta
            answers.append(torch.cat([raw[..., :7], F.relu(raw[..., 7:])], dim=-1))
        return answers


class ResidualConvUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Upstream's in-place ReLU rectifies the skip as well; its weights expect that.
        x = F.relu(x)
        return x + self.conv2(F.relu(self.conv1(x)))


class FusionBlock(nn.Module):
    def __init__(self, channels: int, has_skip: bool) -> None:
        super().__init__()
        if has_skip:
            self.resConfUnit1 = ResidualConvUnit(channels)
        self.resConfUnit2 = ResidualConvUnit(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        x = F.interpolate(self.resConfUnit2(x), size=size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Scratch(nn.Module):
    """The fusion part of a DPT head (a name that DPT checkpoints carry)."""

    refinenet1: FusionBlock
    refinenet2: FusionBlock
    refinenet3: FusionBlock
    refinenet4: FusionBlock

    def __init__(self, channels: tuple[int, int, int, int], features: int, out: int) -> None:
        super().__init__()
        for i, c in enumerate(channels, start=1):
            setattr(self, f"layer{i}_rn", nn.Conv2d(c, features, 3, padding=1, bias=False))
            setattr(self, f"refinenet{i}", FusionBlock(features, has_skip=i < 4))
        self.hidden = hidden = 32 if features >= 64 else features // 2
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, out, 1)
        )


class DepthHead(nn.Module):
    """Four layers of patch tokens to depth, confidence and a surface logit per pixel.

    surface and picture_skip are ours: `surface` tells things from sky, `picture_skip` lets edges
    of the picture sharpen those of the depth.
    """

    def __init__(
        self,
        dim: int,
        patch: int,
        channels: tuple[int, int, int, int],
        features: int,
        *,
        layers: tuple[int, int, int, int],
        own_parts: bool,
    ) -> None:
        super().__init__()
        self.patch, self.layers = patch, layers
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, 4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(channels, features, 2)
        self.surface: nn.Conv2d | None = None
        self.picture_skip: nn.Sequential | None = None
        if own_parts:
            self.surface = nn.Conv2d(self.scratch.hidden, 1, 1)
            self.picture_skip = nn.Sequential(
                nn.Conv2d(3, features // 2, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(features // 2, features // 2, 3, padding=1),
            )

        self._start()

    def _start(self) -> None:
        """Keep the signal's size through the head: with torch's own start a hundredth of what the
        tokens say is left at the end, and a fresh head learns nothing but its biases."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                silent = self.surface is layer or name == "picture_skip.2"
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
                if silent:
                    nn.init.zeros_(layer.weight)
                    continue
                taps = layer.weight[0, 0].numel()
                fan = layer.in_channels * (taps if isinstance(layer, nn.Conv2d) else 1)
                rectified = any(part in name for part in ("output_conv2", "resConfUnit"))
                gain = (2.0 if rectified else 1.0) ** 0.5
                # A unit's second convolution adds to its skip: small, so that the sum stays.
                gain *= 0.2 if name.endswith("conv2") or name == "scratch.output_conv2.2" else 1.0
                nn.init.normal_(layer.weight, std=gain / fan**0.5)

    def forward(
        self, tokens: list[Tensor], pictures: Tensor, first_patch: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """tokens: per layer (N,P,2C); pictures (N,3,H,W) in [0,1].

        Returns depth (N,H,W) > 0, confidence (N,H,W) >= 1 and surface logits (N,H,W) or None.
        """
        height, width = pictures.shape[-2:]
        rows, columns = height // self.patch, width // self.patch
        maps = []
        for layer, project, resize in zip(self.layers, self.projects, self.resize_layers):
            x = self.norm(tokens[layer][:, first_patch:])
            x = project(x.transpose(1, 2).reshape(x.shape[0], -1, rows, columns))
            maps.append(resize(self._with_uv(x, width / height)))
        s = self.scratch
        maps = [getattr(s, f"layer{i}_rn")(m) for i, m in enumerate(maps, start=1)]
        x = s.refinenet4(maps[3], None, maps[2].shape[-2:])
        x = s.refinenet3(x, maps[2], maps[1].shape[-2:])
        x = s.refinenet2(x, maps[1], maps[0].shape[-2:])
        x = s.refinenet1(x, maps[0], (2 * maps[0].shape[-2], 2 * maps[0].shape[-1]))
        x = s.output_conv1(x)
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
        x = self._with_uv(x, width / height)
        if self.picture_skip is not None:
            x = x + self.picture_skip(pictures - 0.5)
        x = s.output_conv2[1](s.output_conv2[0](x))
        raw = s.output_conv2[2](x)
        surface = None if self.surface is None else self.surface(x)[:, 0]
        return raw[:, 0].exp(), 1.0 + raw[:, 1].exp(), surface

    @staticmethod
    def _with_uv(x: Tensor, aspect: float) -> Tensor:
        embedding = uv_embedding(x.shape[-2], x.shape[-1], x.shape[1], aspect=aspect)
        return x + 0.1 * embedding.to(x)
