# SPDX-License-Identifier: Apache-2.0
"""LPIPS (Zhang et al., 2018) over a backbone whose weights the person brings, and what stands in
for it where there are none. Nothing is ever downloaded.

The distance: features of five layers, each scaled to unit length over its channels; their squared
differences weighted per channel, averaged over the picture, summed over the layers. torchmetrics'
own class computes the same, but takes its backbone from torchvision, which this environment leaves
out and which fetches the weights by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viewtime_formats.errors import ViewtimeError


class _Conv(NamedTuple):
    """A convolution of torchvision's `features`, by its number there."""

    number: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class _Pool(NamedTuple):
    kernel: int
    stride: int


class _Tap(NamedTuple):
    """Where features are taken."""


def _vgg16() -> list[_Conv | _Pool | _Tap]:
    plan: list[_Conv | _Pool | _Tap] = []
    number, inputs = 0, 3
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if plan:
            plan.append(_Pool(2, 2))
            number += 1
        for _ in range(count):
            plan.append(_Conv(number, inputs, outputs))
            number, inputs = number + 2, outputs
        plan.append(_Tap())
    return plan


def _alex() -> list[_Conv | _Pool | _Tap]:
    return [
        _Conv(0, 3, 64, 11, 4, 2), _Tap(), _Pool(3, 2),
        _Conv(3, 64, 192, 5, 1, 2), _Tap(), _Pool(3, 2),
        _Conv(6, 192, 384), _Tap(),
        _Conv(8, 384, 256), _Tap(),
        _Conv(10, 256, 256), _Tap(),
    ]  # fmt: skip


BACKBONES = {"vgg": _vgg16, "alex": _alex}
WIDTHS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
# What the network's pictures in [-1, 1] are moved and scaled by before the backbone.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """LPIPS with torchvision's feature names (`features.0.weight`, ...) and one linear weight per
    layer (`lin0.model.1.weight`, ..., shape (1, C, 1, 1), as the published ones are named)."""

    def __init__(self, backbone: str = "vgg") -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ViewtimeError(
                f"LPIPS backbone is {backbone!r}, must be one of {', '.join(BACKBONES)}"
            )
        self.plan = BACKBONES[backbone]()
        self.features = nn.ModuleDict()
        for part in self.plan:
            if isinstance(part, _Conv):
                self.features[str(part.number)] = nn.Conv2d(*part[1:])
        self.lins = nn.ParameterList(
            nn.Parameter(torch.ones(1, width, 1, 1) / width) for width in WIDTHS[backbone]
        )
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance (B,) of pictures a and b, (B, 3, H, W) display sRGB in [0, 1]."""
        total = torch.zeros(a.shape[0], device=a.device)
        for weight, fa, fb in zip(self.lins, self._taps(a), self._taps(b)):
            difference = (_unit(fa) - _unit(fb)).square()  # (B, C, h, w)
            total = total + (difference * weight).sum(dim=1).mean(dim=(1, 2))
        return total

    def _taps(self, x: Tensor) -> list[Tensor]:
        x = (x * 2 - 1 - self.shift) / self.scale  # type: ignore[operator]
        found = []
        for part in self.plan:
            if isinstance(part, _Tap):
                found.append(x)
            elif isinstance(part, _Pool):
                x = F.max_pool2d(x, part.kernel, part.stride)
            else:
                x = F.relu(self.features[str(part.number)](x))
        return found


def _unit(x: Tensor) -> Tensor:
    """Features (B, C, h, w) of unit length over their channels; zeros stay zeros.

    The square root of 0 has no gradient, so the small number stands under it, as in torchmetrics.
    """
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()


def load_lpips(path: Path, backbone: str = "vgg") -> Lpips:
    """LPIPS with the weights of one safetensors file.

    Raises:
        ViewtimeError: when the file cannot be read, or names what is absent in it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = Lpips(backbone)
    try:
        state = load_file(path)
        for name, layer in model.features.items():
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            layer.weight.copy_(state[f"features.{name}.weight"])
            layer.bias.copy_(state[f"features.{name}.bias"])
        for number, weight in enumerate(model.lins):
            weight.copy_(state[f"lin{number}.model.1.weight"])
    except (OSError, SafetensorError) as error:
        raise ViewtimeError(f"{path}: not readable as safetensors: {error}") from error
    except (KeyError, RuntimeError) as error:
        raise ViewtimeError(f"{path}: not the weights of LPIPS ({backbone}): {error}") from error
    return model.eval()


def gradient_distance(a: Tensor, b: Tensor, scales: int = 4) -> Tensor:
    """What stands in for LPIPS where it has no weights: mean absolute difference of the pictures'
    gradients, at `scales` sizes, each half the one before. a, b: (B, 3, H, W). Returns (B,).

    It asks for edges where the truth has edges, and knows nothing of what people see.
    """
    total = torch.zeros(a.shape[0], device=a.device, dtype=a.dtype)
    for _ in range(scales):
        for axis in (-1, -2):
            total = total + (a.diff(dim=axis) - b.diff(dim=axis)).abs().mean(dim=(1, 2, 3))
        if min(a.shape[-2:]) < 4:
            break
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total / (2 * scales)
