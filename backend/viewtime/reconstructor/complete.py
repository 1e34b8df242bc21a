# SPDX-License-Identifier: Apache-2.0
"""Known depth with predicted depth in its holes, aligned per frame and blended at the seam.

Known depth passes through to the last bit; prediction never replaces it. Numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from viewtime.gaussians.fill import push_pull

Float32 = NDArray[np.float32]

MIN_OVERLAP = 32
"""Known pixels under which a frame's own fit says nothing."""
SEAM_LIMIT = 0.2
"""Log depth error beyond which a known pixel does not bend the prediction around it."""


def fit_disparity(predicted: NDArray[np.floating], known: NDArray[np.floating]) -> tuple:
    """Scale and shift (a, b) with 1/known close to a / predicted + b, by least absolute errors.

    predicted and known: (N,) finite, above 0. a > 0 always; where the shift is not to be had (too
    few pixels, a flat scene, a negative scale) it is 0 and a the median ratio.
    """
    x, y = 1.0 / predicted.astype(np.float64), 1.0 / known.astype(np.float64)
    scale = float(np.median(y / x))
    spread = np.percentile(x, 95) - np.percentile(x, 5)
    if len(x) < MIN_OVERLAP or spread < 0.05 * np.median(x):
        return scale, 0.0
    a, b = scale, 0.0
    for _ in range(8):  # iteratively reweighted: relative errors in depth
        error = np.abs(a * x + b - y) / y
        weight = 1.0 / np.maximum(error, 1e-3) / y**2
        mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
        variance = np.average((x - mean_x) ** 2, weights=weight)
        a = float(np.average((x - mean_x) * (y - mean_y), weights=weight) / max(variance, 1e-18))
        b = float(mean_y - a * mean_x)
    # A fit that turns the scene inside out, or puts the far behind infinity, is no fit.
    if not 0.3 * scale < a < 3.0 * scale or (a * x + b <= 0.1 * y.min()).any():
        return scale, 0.0
    return a, b


def complete_depth(
    known: NDArray[np.floating],
    predicted: NDArray[np.floating],
    surface: NDArray[np.bool_],
    *,
    fallback: tuple[float, float] | None = None,
) -> Float32:
    """One frame's depth without holes.

    Args:
        known: (H, W) planar z; inf sky, nan unknown. predicted: (H, W) finite, above 0, of any
            scale. surface: (H, W) where the prediction sees no sky.
        fallback: (scale, shift) of disparity for frames with too little known depth of their own.

    Returns:
        (H, W) float32 without nan: known where known, else the aligned prediction or inf (sky).
    """
    known = np.asarray(known, np.float32)
    hole = np.isnan(known)
    if not hole.any():
        return known.copy()
    both = np.isfinite(known) & surface
    if fallback is not None and both.sum() < MIN_OVERLAP:
        a, b = fallback
    elif both.any():
        a, b = fit_disparity(predicted[both], known[both])
    else:
        a, b = (1.0, 0.0) if fallback is None else fallback
    disparity = a / predicted.astype(np.float64) + b
    floor = 0.2 * (a / predicted.max())
    aligned = 1.0 / np.maximum(disparity, floor)
    # The prediction's error at known pixels, spread smoothly, closes the step at the seam.
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.log(known / aligned)
    near = both & (np.abs(error) < SEAM_LIMIT)
    if near.any():
        step = np.where(near, error, 0.0).astype(np.float32)[..., None]
        aligned = aligned * np.exp(push_pull(step, near)[..., 0])
    filled = np.where(surface, aligned, np.inf).astype(np.float32)
    return np.where(hole, filled, known)
