# SPDX-License-Identifier: Apache-2.0
"""Noisy depth made steady: each pixel's own surface, found by a robust plane through its
neighbours. Never moves depth further than its noise allows, and never fills a hole.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .parallel import in_parallel

RADIUS = 4
"""Half side of the window in pixels."""
ROUNDS = 4
"""Rounds of reweighting: what does not fit the plane within the noise counts for less each time."""


@njit(cache=True, nogil=True, error_model="numpy")
def _fit(start, stop, inverse, noise, radius, rounds, out):
    height, width = inverse.shape
    near = np.empty(25)
    for y in range(start, stop):
        for x in range(width):
            w = inverse[y, x]
            out[y, x] = w
            if not w > 0:
                continue
            # The median of 5 x 5 begins: it lies on the surface that most of them share.
            count = 0
            for v in range(max(y - 2, 0), min(y + 3, height)):
                for u in range(max(x - 2, 0), min(x + 3, width)):
                    other = inverse[v, u]
                    if other > 0 and abs(other - w) < 6 * noise * w:
                        near[count] = other
                        count += 1
            if count < 6:
                continue
            value, slope_x, slope_y = float(np.median(near[:count])), 0.0, 0.0
            for _ in range(rounds):
                band = 2 * noise * value
                s = sx = sy = sxx = sxy = syy = t = tx = ty = 0.0
                for v in range(max(y - radius, 0), min(y + radius + 1, height)):
                    for u in range(max(x - radius, 0), min(x + radius + 1, width)):
                        other = inverse[v, u]
                        if not other > 0:
                            continue
                        dx, dy = float(u - x), float(v - y)
                        off = (other - value - slope_x * dx - slope_y * dy) / band
                        weight = 1 / (1 + off * off)
                        weight *= weight / (1 + 2 * (dx * dx + dy * dy) / (radius * radius))
                        s += weight
                        sx, sy = sx + weight * dx, sy + weight * dy
                        sxx += weight * dx * dx
                        sxy += weight * dx * dy
                        syy += weight * dy * dy
                        t += weight * other
                        tx, ty = tx + weight * other * dx, ty + weight * other * dy
                # Normal equations of value + slope_x dx + slope_y dy, by Cramer's rule.
                m00, m01, m02 = sxx * syy - sxy * sxy, sxy * sy - sx * syy, sx * sxy - sxx * sy
                determinant = s * m00 + sx * m01 + sy * m02
                if not determinant > 1e-9 * s * sxx * syy:
                    break
                m11, m12, m22 = s * syy - sy * sy, sx * sy - s * sxy, s * sxx - sx * sx
                value = (m00 * t + m01 * tx + m02 * ty) / determinant
                slope_x = (m01 * t + m11 * tx + m12 * ty) / determinant
                slope_y = (m02 * t + m12 * tx + m22 * ty) / determinant
            if abs(value - w) < 4 * noise * w:
                out[y, x] = value


def steady_depth(
    depth: NDArray[np.float32], noise: float, *, radius: int = RADIUS, rounds: int = ROUNDS
) -> NDArray[np.float32]:
    """Depth with less noise, and its edges where they were.

    1/z is linear in the picture on every plane. For each pixel a plane is fitted to the window's
    1/z by reweighted least squares (Geman-McClure), so that another surface in the window counts
    for little; a pixel that finds no such plane within four times its noise keeps its depth.

    Args:
        depth: (H, W) planar z; sky inf, unknown nan.
        noise: relative standard deviation of the depth, above 0.

    Returns:
        (H, W) float32 with sky and unknown where they were.
    """
    depth = np.asarray(depth, np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(np.isfinite(depth), 1.0 / depth.astype(np.float64), 0.0)
    out = np.empty_like(inverse)
    in_parallel(
        lambda start, stop: _fit(start, stop, inverse, float(noise), radius, rounds, out),
        len(inverse),
        4,
    )
    with np.errstate(divide="ignore"):
        return np.where(np.isfinite(depth), 1.0 / out, depth).astype(np.float32)
