# SPDX-License-Identifier: Apache-2.0
"""DPT heads: trunk tokens of four layers to a map of the frames' size, named as in VGGT.

What VGGT lacks (surface logit, picture skip) has names of its own and starts silent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.layers import Table, uv_halves


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

    def __init__(self, channels: Sequence[int], features: int, hidden: int, out: int) -> None:
        super().__init__()
        for i, c in enumerate(channels, start=1):
            setattr(self, f"layer{i}_rn", nn.Conv2d(c, features, 3, padding=1, bias=False))
            setattr(self, f"refinenet{i}", FusionBlock(features, has_skip=i < 4))
        if not out:  # features only
            self.output_conv1 = nn.Conv2d(features, features, 3, padding=1)
            return
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, out, 1)
        )


class DPTHead(nn.Module):
    """Tokens of four layers, each (N,P,2C), to raw maps (N,out,H,W).

    out 0: no last convolutions; features (N,features,H/shrink,W/shrink) instead. picture: a
    network of the frames whose map is added before the last convolutions. uv: add sines of the
    picture coordinates to the maps.
    """

    def __init__(
        self,
        config: ReconstructorConfig,
        out: int,
        *,
        features: int | None = None,
        hidden: int | None = None,
        uv: bool = True,
        shrink: int = 1,
    ) -> None:
        super().__init__()
        self.patch, self.first_patch = config.patch, config.first_patch
        self.uv, self.shrink = uv, shrink
        channels, dim = config.head_channels, 2 * config.dim
        features = config.head_features if features is None else features
        self.uv_channels = (*channels, features // 2)  # of the maps that sines are added to
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
        hidden = config.head_hidden if hidden is None else hidden
        self.scratch = Scratch(channels, features, hidden, out)
        self.start()

    def start(self) -> None:
        """Keep the signal's size through the head: with torch's own start a hundredth of what the
        tokens say is left at the end, and a fresh head learns nothing but its biases."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
                taps = layer.weight[0, 0].numel()
                fan = layer.in_channels * (taps if isinstance(layer, nn.Conv2d) else 1)
                rectified = any(part in name for part in ("output_conv2", "resConfUnit"))
                gain = (2.0 if rectified else 1.0) ** 0.5
                # A unit's second convolution adds to its skip: small, so that the sum stays.
                gain *= 0.2 if name.endswith("conv2") or name == "scratch.output_conv2.2" else 1.0
                nn.init.normal_(layer.weight, std=gain / fan**0.5)

    def forward(
        self, tokens: Sequence[Tensor], pictures: Tensor, sines: Sequence[Table] | None = None
    ) -> Tensor:
        """tokens: four layers (N,P,2C); pictures (N,3,H,W) in [0,1]; sines: of picture_sines,
        where they are known already. See the class."""
        return self.scratch.output_conv2(self.features(tokens, pictures, sines))

    def picture_sines(self, pictures: Tensor) -> list[Table]:
        """What is added to the maps of pictures (N,3,H,W): by layer, and last of all, a half for
        x (c/2,1,w) and one for y (c/2,h,1). The same for all pictures of a size."""
        if not self.uv:
            return []
        rows, columns, (height, width) = self._sizes(pictures)
        aspect = pictures.shape[-1] / pictures.shape[-2]
        *layers, last = self.uv_channels
        sizes = [*((rows, columns, count) for count in layers), (height, width, last)]
        found = [uv_halves(*size, aspect=aspect, device=pictures.device) for size in sizes]
        return [(0.1 * x.to(pictures.dtype), 0.1 * y.to(pictures.dtype)) for x, y in found]

    def features(
        self,
        tokens: Sequence[Tensor],
        pictures: Tensor,
        sines: Sequence[Table] | None = None,
        picture: nn.Module | None = None,
    ) -> Tensor:
        """What the last convolutions see: (N,features/2,H,W)."""
        sines = self.picture_sines(pictures) if sines is None else sines
        rows, columns, size = self._sizes(pictures)
        maps = []
        for i, (layer, project) in enumerate(zip(tokens, self.projects)):
            x = self.norm(layer[:, self.first_patch :])  # (N,hw,2C)
            x = project(x.transpose(1, 2).reshape(x.shape[0], -1, rows, columns))
            maps.append(self.resize_layers[i](_with_uv(x, sines, i)))
        x = self.scratch.output_conv1(self._fused(maps))
        del maps
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        x = _with_uv(x, sines, -1)
        return x if picture is None else x + picture(pictures)

    def _sizes(self, pictures: Tensor) -> tuple[int, int, tuple[int, int]]:
        """Rows and columns of patches, and (height, width) of the map that is made of them."""
        rows, columns = (side // self.patch for side in pictures.shape[-2:])
        return (
            rows,
            columns,
            (rows * self.patch // self.shrink, columns * self.patch // self.shrink),
        )

    def _fused(self, maps: list[Tensor]) -> Tensor:
        """Maps of four layers, fine to coarse, as one map of twice the finest one's size."""
        s = self.scratch
        one, two, three, four = (getattr(s, f"layer{i}_rn")(m) for i, m in enumerate(maps, start=1))
        x = s.refinenet4(four, None, three.shape[-2:])
        x = s.refinenet3(x, three, two.shape[-2:])
        x = s.refinenet2(x, two, one.shape[-2:])
        return s.refinenet1(x, one, (2 * one.shape[-2], 2 * one.shape[-1]))


def _with_uv(x: Tensor, sines: Sequence[Table], which: int) -> Tensor:
    """x (N,c,h,w), in place, with the halves of one map's sines on the halves of its channels."""
    if sines:
        across, down = sines[which]
        x[:, : len(across)] += across
        x[:, len(across) :] += down
    return x


class DepthHead(DPTHead):
    """Depth (N,H,W) > 0, its confidence (N,H,W) >= 1, and surface logits (N,H,W) or None."""

    def __init__(self, config: ReconstructorConfig) -> None:
        super().__init__(config, 2)
        self.surface: nn.Conv2d | None = None
        self.picture_skip: nn.Sequential | None = None
        if config.surface:
            half = config.head_features // 2
            self.surface = nn.Conv2d(config.head_hidden, 1, 1)
            first, last = nn.Conv2d(3, half, 3, padding=1), nn.Conv2d(half, half, 3, padding=1)
            nn.init.normal_(first.weight, std=27**-0.5)
            nn.init.zeros_(first.bias)  # type: ignore[arg-type]
            for layer in (self.surface, last):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            self.picture_skip = nn.Sequential(first, nn.GELU(), last)

    def forward(  # type: ignore[override]
        self, tokens: Sequence[Tensor], pictures: Tensor, sines: Sequence[Table] | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        x = self.features(tokens, pictures, sines)
        if self.picture_skip is not None:
            x = x + self.picture_skip(pictures - 0.5)
        conv = self.scratch.output_conv2
        x = conv[1](conv[0](x))
        raw = conv[2](x)
        surface = None if self.surface is None else self.surface(x)[:, 0]
        return raw[:, 0].exp(), 1.0 + raw[:, 1].exp(), surface


class PointHead(DPTHead):
    """Points (N,H,W,3) in view 0's frame and their confidence (N,H,W) >= 1."""

    def __init__(self, config: ReconstructorConfig) -> None:
        super().__init__(config, 4)

    def forward(  # type: ignore[override]
        self, tokens: Sequence[Tensor], pictures: Tensor, sines: Sequence[Table] | None = None
    ) -> tuple[Tensor, Tensor]:
        raw = super().forward(tokens, pictures, sines)
        y = raw[:, :3].permute(0, 2, 3, 1)
        return y.sign() * torch.expm1(y.abs()), 1.0 + raw[:, 3].exp()
