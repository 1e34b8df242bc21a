# SPDX-License-Identifier: Apache-2.0
"""Gaussian heads: a DPT whose raw maps say how each pixel's depth becomes a Gaussian.

Raw numbers only; what they mean is in `splats`. It never looks at cameras.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.dpt import DPTHead
from viewtime.reconstructor.layers import Table

RESIDUAL = {"offset": 3, "opacity": 1, "scale": 3, "rotation": 4, "colour": 3}
"""Channels of the paper's head (appendix C), in its order; 14 together."""
ANYSPLAT = {"opacity": 1, "scale": 3, "rotation": 4, "sh": 75, "weight": 1}
"""Channels of AnySplat's head: spherical harmonics of degree 4, 25 per colour; 84 together."""


class ResidualHead(DPTHead):
    """The paper's head: VGGT's depth head with 14 channels, started as Splatt3R starts its own.

    At first every Gaussian sits on its pixel's depth, small, faint and of the pixel's colour.
    """

    def __init__(self, config: ReconstructorConfig) -> None:
        super().__init__(config, sum(RESIDUAL.values()))
        # Splatt3R has 1 for opacity and colour, after layers that shrink what tokens say to about
        # a hundredth; ours keep its size (DPTHead.start), so that 1 would be loud noise.
        gain = {"offset": 1e-3, "scale": 3e-5, "opacity": 0.1, "colour": 0.1}
        bias = {
            "offset": 1e-3,
            "scale": config.gaussian_log_scale,
            "opacity": config.gaussian_opacity,
        }
        last = self.scratch.output_conv2[2]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        first = 0
        for name, count in RESIDUAL.items():
            part = slice(first, first + count)
            nn.init.xavier_uniform_(last.weight[part], gain.get(name, 1.0))
            nn.init.constant_(last.bias[part], bias.get(name, 0.0))
            first += count


class AnySplatHead(DPTHead):
    """AnySplat's head: 84 channels, wider last layers and a 7x7 convolution of the frames."""

    def __init__(self, config: ReconstructorConfig) -> None:
        hidden = config.head_features // 2
        super().__init__(config, sum(ANYSPLAT.values()), hidden=hidden)
        self.input_merger = nn.Sequential(nn.Conv2d(3, hidden, 7, padding=3), nn.ReLU())

    def forward(
        self, tokens: Sequence[Tensor], pictures: Tensor, sines: Sequence[Table] | None = None
    ) -> Tensor:
        features = self.features(tokens, pictures, sines, self.input_merger)
        return self.scratch.output_conv2(features)


def gaussian_head(config: ReconstructorConfig) -> DPTHead | None:
    """A fresh head of the configured kind, or None."""
    if config.gaussian_head == "residual":
        return ResidualHead(config)
    return AnySplatHead(config) if config.gaussian_head == "anysplat" else None
