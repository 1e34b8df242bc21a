# SPDX-License-Identifier: Apache-2.0
"""Gaussians made from pixels, moved, joined, rendered. Never predicts any, and imports torch only
where tensors are asked for."""

from typing import Any

from .raster_cpu import Projected, Rendered, project_gaussians
from .rendering import render
from .weights import Weights, gather_colour, weigh

__all__ = [
    "CameraTensors",
    "GaussianTensors",
    "Projected",
    "Rendered",
    "Weights",
    "gather_colour",
    "project_gaussians",
    "render",
    "weigh",
]


def __getattr__(name: str) -> Any:
    if name in ("CameraTensors", "GaussianTensors"):
        from . import tensors

        return getattr(tensors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
