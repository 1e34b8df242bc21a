# SPDX-License-Identifier: Apache-2.0
"""Gaussians made from pixels, moved, joined, rendered. Never predicts any, and imports torch only
where tensors are asked for."""

from typing import Any

from .raster_cpu import Projected, Rendered, gather_colour, project
from .rendering import render

__all__ = [
    "CameraTensors",
    "GaussianTensors",
    "Projected",
    "Rendered",
    "gather_colour",
    "project",
    "render",
]


def __getattr__(name: str) -> Any:
    if name in ("CameraTensors", "GaussianTensors"):
        from . import tensors

        return getattr(tensors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
