# SPDX-License-Identifier: Apache-2.0
"""Gaussians made from pixels, moved, joined, rendered. Never predicts any, never imports torch."""

from .raster_cpu import Rendered, gather_colour, render

__all__ = ["Rendered", "gather_colour", "render"]
