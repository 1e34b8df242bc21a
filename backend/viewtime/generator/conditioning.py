# SPDX-License-Identifier: Apache-2.0
"""What the generator is told besides the noised latents: references, prior, text.

What a model was trained to take is added to the patch embeddings of the noised latents. Nothing is
ever concatenated; a cell without a reference adds nothing, which is not the same as a black one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Conditions:
    """The conditions of one batch of grids, as latents.

    reference: (B, V, T, C, h, w), read where known. known: (B, V, T) bool.
    exact: (B, V, T) bool, which of the known cells hold their very latents; None means all. The
    others (a frozen moment in the middle of a clip, see `codec`) tell the model what to make, and
    are made like any other cell.
    prior: (B, V, T, C, h, w) or None; known cells hold the reference. maps: (B, V, T, M, h, w)
    float in [0, 1] about the prior, None exactly when prior is; the first says where it is valid,
    the others where its pixels come from, and what they were chosen from (see
    `viewtime.generator.generation.prior_maps`).
    kept: (B, V, T, 1, h, w) bool or None, where reprojected pixels lead a model that takes no
    prior, or references that are not exact one that is not told of them; kept_latents: their
    latents (B, V, T, C, h, w). See `sampler`.
    text: (B, L, text_dim), L may be 0.
    """

    reference: Tensor
    known: Tensor
    text: Tensor
    prior: Tensor | None = None
    maps: Tensor | None = None
    exact: Tensor | None = None
    kept: Tensor | None = None
    kept_latents: Tensor | None = None

    @property
    def exactly_known(self) -> Tensor:
        return self.known if self.exact is None else self.known & self.exact


class PriorEmbedding(nn.Module):
    """Features of the prior and its maps: as patch embeddings on the way in, and, at the finest
    scale, for a correction on the way out that knows no patch borders.

    The only parameters that are not the stock model's. What they add starts at zero, so that a
    fresh one changes nothing.
    """

    def __init__(
        self,
        channels: int,
        maps: int,
        features: int,
        width: int,
        patch_size: tuple[int, int, int],
        context: int = 0,
    ) -> None:
        """context: width of the coarser scales that the correction looks at, 0 = the finest alone;
        takes evidence among the maps, patches that are multiples of 8, and 3 channels of pixels."""
        super().__init__()
        self.maps = maps
        self.features = nn.Sequential(
            _FrameConv(channels + maps + 1, features), nn.GELU(approximate="tanh"),
            _FrameConv(features, features), nn.GELU(approximate="tanh"),
        )  # fmt: skip
        self.proj = nn.Conv3d(features, width, patch_size, patch_size)
        last = _FrameConv(features, channels)
        self.correction = nn.Sequential(
            _FrameConv(features + channels, features), nn.GELU(approximate="tanh"),
            last,
        )  # fmt: skip
        self.context = CoarseContext(features + channels, context, features) if context else None
        self.choice = _FrameConv(features, CANDIDATES) if context else None
        for layer in (self.proj, last, self.choice):
            if layer is not None:
                assert layer.bias is not None
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, conditions: Conditions) -> Tensor:
        """Features (B, features, V*T, h, w) of the conditions' prior, maps and known cells."""
        prior, maps = conditions.prior, conditions.maps
        assert prior is not None and maps is not None
        known = conditions.known[..., None, None, None].to(prior).expand_as(maps[:, :, :, :1])
        return self.features(to_video(torch.cat((prior, maps.to(prior), known), dim=3)))

    def correct(self, out: Tensor, features: Tensor, conditions: Conditions) -> Tensor:
        """out (B, C, V*T, h, w), the transformer's, plus what the fine features say; cells that
        are known exactly are left out, as nobody looks at them.

        With a context also: how far to go from the prior to each of what it was chosen from.
        """
        wanted = ~conditions.exactly_known.flatten()  # (B*V*T,)

        def pick(x: Tensor) -> Tensor:
            """(B, C, V*T, h, w) -> (1, C, N, h, w): the wanted frames of all grids."""
            return x.transpose(1, 2).flatten(0, 1)[wanted].transpose(0, 1)[None]

        made = pick(out)
        seen = torch.cat((made.to(features.dtype), pick(features)), dim=1)
        hidden = self.correction[0](seen)
        if self.context is not None:
            hidden = hidden + self.context(seen)
        hidden = self.correction[1](hidden)
        made = made + self.correction[2](hidden)
        if self.choice is not None:
            assert conditions.prior is not None and conditions.maps is not None
            prior, maps = pick(to_video(conditions.prior)), pick(to_video(conditions.maps))
            colours, there = maps[:, 3 : 3 + 3 * CANDIDATES], maps[:, 3 + 3 * CANDIDATES :]
            share = self.choice(hidden).to(prior.dtype) * there[:, :CANDIDATES]
            for n in range(CANDIDATES):
                candidate = 2 * colours[:, 3 * n : 3 * n + 3] - 1  # as pixel latents are
                made = made + share[:, n : n + 1] * (candidate - prior)
        whole = out.transpose(1, 2).flatten(0, 1).to(made.dtype, copy=True)
        whole[wanted] = made[0].transpose(0, 1)
        return whole.unflatten(0, (out.shape[0], out.shape[2])).transpose(1, 2)


CANDIDATES = 3
"""What a prior was chosen from: column, row, and what stands still (see `prior.EVIDENCE`)."""


class CoarseContext(nn.Module):
    """What is around a pixel, at 1/2, 1/4 and 1/8 of the size and back: each frame alone.

    (B, inputs, F, h, w) -> (B, outputs, F, h, w), h and w multiples of 8. It starts at zero.
    """

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        widths = (inputs, width, width * 3 // 2, width * 2)
        self.down = nn.ModuleList(_two(a, b) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(
            nn.Conv2d(b + a, a, 3, padding=1) for a, b in zip(widths[1:], widths[2:])
        )
        self.out = nn.Conv2d(width, outputs, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        scales = []
        for layer in self.down:
            frames = layer(nn.functional.avg_pool2d(frames, 2))  # (B*F, C, h/2, w/2), ...
            scales.append(frames)
        for layer, finer in zip(reversed(self.up), reversed(scales[:-1])):
            wider = nn.functional.interpolate(frames, scale_factor=2.0, mode="nearest")
            frames = nn.functional.gelu(layer(torch.cat((finer, wider), 1)), approximate="tanh")
        out = nn.functional.interpolate(
            self.out(frames), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        return out.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def _two(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.GELU(approximate="tanh"),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.GELU(approximate="tanh"),
    )  # fmt: skip


class _FrameConv(nn.Conv3d):
    """3 x 3 convolution of each frame alone: (B, inputs, F, h, w) -> (B, outputs, F, h, w).

    Computed in two dimensions with channels last, which takes 0.4 of the three-dimensional time.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        out = nn.functional.conv2d(frames, self.weight.squeeze(2), self.bias, padding=1)
        return out.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def to_video(x: Tensor) -> Tensor:
    """(B, V, T, C, h, w) -> (B, C, V*T, h, w): views one after the other, as Wan's frame axis."""
    return x.flatten(1, 2).transpose(1, 2)


def from_video(x: Tensor, views: int) -> Tensor:
    """(B, C, V*T, h, w) -> (B, V, T, C, h, w)."""
    return x.transpose(1, 2).unflatten(1, (views, -1))


def source(conditions: Conditions, noise: Tensor, *, sigma: float, sigma_invalid: float) -> Tensor:
    """x_1 of the flow: where sampling starts, given standard normal noise (B, V, T, C, h, w).

    With a prior: the prior plus a little noise, more where it is not valid, so that the flow's
    way is short where the prior is good. Without: the noise itself.
    """
    if conditions.prior is None or conditions.maps is None:
        return noise
    valid = conditions.maps[:, :, :, :1]
    return conditions.prior + noise * (sigma * valid + sigma_invalid * (1 - valid))
