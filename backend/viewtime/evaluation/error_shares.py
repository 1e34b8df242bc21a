# SPDX-License-Identifier: Apache-2.0
"""Where in the picture the squared error of splats lies: on surfaces, at depth edges, at the sky.
Says what limits a reconstruction by measuring it; never guesses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from viewtime.gaussians.lift import EDGE


def error_shares(
    shown: NDArray[np.floating], truth: NDArray[np.floating], depth: NDArray[np.floating]
) -> dict[str, float]:
    """Shares of the summed squared error by kind of place; they add up to 1.

    Args:
        shown, truth: (..., 3, H, W) display sRGB.
        depth: (..., H, W) planar z of the truth, sky infinite.

    Returns:
        "sky_outline": within a pixel of where surface and sky meet; "depth_edges": within a pixel
        of another depth edge; "surfaces": inside what is left of the surfaces; "sky": the rest.

    Raises:
        ValueError: when the shapes differ.
    """
    if shown.shape != truth.shape or depth.shape != (*truth.shape[:-3], *truth.shape[-2:]):
        raise ValueError(f"error_shares: {shown.shape}, {truth.shape}, depth {depth.shape}")
    error = ((shown - truth) ** 2).sum(axis=-3)  # (..., H, W)
    sky = np.isinf(depth)
    outline = _near(sky) & _near(~sky)
    inverse = 1.0 / np.where(sky, np.inf, depth)
    edge = np.zeros(sky.shape, bool)
    for axis in (-2, -1):
        bend = np.abs(np.diff(inverse, 2, axis=axis))
        middle = np.take(inverse, range(1, inverse.shape[axis] - 1), axis=axis)
        wide = [(0, 0)] * sky.ndim
        wide[axis] = (1, 1)
        edge |= np.pad(bend > EDGE * np.maximum(middle, 1e-9), wide)
    edges = _near(edge & ~sky) & ~outline
    places = {
        "surfaces": ~sky & ~outline & ~edges,
        "depth_edges": edges,
        "sky_outline": outline,
        "sky": sky & ~outline & ~edges,
    }
    total = float(error.sum()) or 1.0
    return {name: float(error[place].sum()) / total for name, place in places.items()}


def _near(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask grown by a pixel in its last two axes."""
    grown = mask.copy()
    for axis in (-2, -1):
        before = grown.copy()
        one, two = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
        one[axis], two[axis] = slice(1, None), slice(None, -1)
        grown[tuple(one)] |= before[tuple(two)]
        grown[tuple(two)] |= before[tuple(one)]
    return grown
