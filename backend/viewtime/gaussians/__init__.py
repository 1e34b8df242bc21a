# SPDX-License-Identifier: Apache-2.0
"""Gaussians made from pixels, moved, joined, rendered. Never predicts any, never imports torch."""

from .raster_cpu import Rendered, render

__all__ = ["Rendered", "render"]
