# SPDX-License-Identifier: Apache-2.0
"""Predicted depth made to agree between views: a plane sweep around the prediction.

Needs cameras that are known; works on one timestep's pictures and never looks at another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from viewtime_formats.rig import Camera

Float32 = NDArray[np.float32]

PLANES = 64
MARGIN = 1.6
"""How far the planes reach beyond the predicted depths, as a factor."""
NEIGHBOURS = 4
"""Views that each view is compared with: those nearest by angle."""
TRUNCATION = 0.25
"""Mean colour difference from which on a mismatch costs no more: an occlusion, most likely."""
TRUST = 0.05
"""Cost of a depth e times the predicted one: what decides where there is no texture."""
STEP, JUMP, EDGE = 0.015, 0.2, 0.06
"""Smoothness: cost of a step of one plane, of a jump, and the colour edge that halves it."""


@njit(cache=True, nogil=True)
def _costs(image, others, matrices, shifts, inverse, guess, trust, truncation, out):
    """Fill out (H,W,K): mean colour difference of the better half of the other views."""
    height, width, planes = out.shape
    count = others.shape[0]
    found = np.empty(count)
    for row in range(height):
        for column in range(width):
            for k in range(planes):
                w = inverse[k]
                judges = 0
                for n in range(count):
                    m, s = matrices[n], shifts[n]
                    x, y = column + 0.5, row + 0.5
                    z = m[2, 0] * x + m[2, 1] * y + m[2, 2] + s[2] * w
                    if z <= 1e-6:
                        continue
                    u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] + s[0] * w) / z - 0.5
                    v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] + s[1] * w) / z - 0.5
                    if u < 0.0 or v < 0.0 or u > width - 1.001 or v > height - 1.001:
                        continue
                    i, j = int(u), int(v)
                    a, b = u - i, v - j
                    difference = 0.0
                    for c in range(3):
                        top = others[n, j, i, c] * (1.0 - a) + others[n, j, i + 1, c] * a
                        low = others[n, j + 1, i, c] * (1.0 - a) + others[n, j + 1, i + 1, c] * a
                        difference += abs(top * (1.0 - b) + low * b - image[row, column, c])
                    found[judges] = min(difference / 3.0, truncation)
                    judges += 1
                # A surface hidden from some views is still seen by about half of them. What lies
                # outside every other picture is neither likely nor unlikely.
                half = (judges + 1) // 2
                total = 0.0 if half else 0.25 * truncation
                for place in range(half):
                    best = place
                    for n in range(place + 1, judges):
                        if found[n] < found[best]:
                            best = n
                    found[place], found[best] = found[best], found[place]
                    total += found[place]
                off = abs(np.log(max(w, 1e-9) * guess[row, column]))
                out[row, column, k] = total / max(half, 1) + trust * min(off, 1.5)


@njit(cache=True, nogil=True)
def _path(costs, image, dy, dx, step, jump, edge, total):
    """Add to total the cheapest cost to come along direction (dy, dx) (semi-global matching)."""
    height, width, planes = costs.shape
    before = np.zeros((height, width, planes), np.float32)
    rows = range(height) if dy >= 0 else range(height - 1, -1, -1)
    for row in rows:
        for n in range(width):
            column = n if dx >= 0 else width - 1 - n
            y, x = row - dy, column - dx
            if y < 0 or x < 0 or y >= height or x >= width:
                for k in range(planes):
                    before[row, column, k] = costs[row, column, k]
                    total[row, column, k] += costs[row, column, k]
                continue
            change = 0.0
            for c in range(3):
                change += abs(image[row, column, c] - image[y, x, c])
            leap = jump / (1.0 + change / (3.0 * edge))
            lowest = np.inf
            for k in range(planes):
                lowest = min(lowest, before[y, x, k])
            for k in range(planes):
                way = min(before[y, x, k], lowest + leap)
                if k > 0:
                    way = min(way, before[y, x, k - 1] + step)
                if k < planes - 1:
                    way = min(way, before[y, x, k + 1] + step)
                value = costs[row, column, k] + way - lowest
                before[row, column, k] = value
                total[row, column, k] += value


@njit(cache=True, nogil=True)
def _smoothed(costs, out):
    """3x3 mean over the picture, per plane."""
    height, width, planes = costs.shape
    for row in range(height):
        for column in range(width):
            top, bottom = max(row - 1, 0), min(row + 2, height)
            left, right = max(column - 1, 0), min(column + 2, width)
            share = np.float32(1.0 / ((bottom - top) * (right - left)))
            for k in range(planes):
                out[row, column, k] = 0.0
            for y in range(top, bottom):
                for x in range(left, right):
                    for k in range(planes):
                        out[row, column, k] += share * costs[y, x, k]


def nearest_views(cameras: Sequence[Camera], v: int) -> list[int]:
    """The views that look most nearly as view v does, but from another place."""
    axis = cameras[v].rotation[2]
    order = sorted(
        (n for n in range(len(cameras)) if n != v),
        key=lambda n: (-float(axis @ cameras[n].rotation[2]), n),
    )
    return [n for n in order if np.linalg.norm(cameras[n].center - cameras[v].center) > 1e-9][
        :NEIGHBOURS
    ]


def sweep_depth(
    images: Float32,
    cameras: Sequence[Camera],
    predicted: Float32,
    surface: NDArray[np.bool_],
) -> Float32:
    """Depth of each view that makes the views agree, not far from the prediction.

    Args:
        images: (V,H,W,3) display sRGB. cameras: V of that size. predicted: (V,H,W) planar z > 0
            in scene units. surface: (V,H,W), False where the sky is.

    Returns:
        (V,H,W) float32 planar z; the prediction itself for a view without neighbours.
    """
    images = np.ascontiguousarray(images, np.float32)
    views, height, width, _ = images.shape
    refined = np.asarray(predicted, np.float32).copy()
    for v in range(views):
        others = nearest_views(cameras, v)
        if not others or not surface[v].any():
            continue
        seen = 1.0 / predicted[v][surface[v]].astype(np.float64)
        low, high = np.percentile(seen, 2) / MARGIN, np.percentile(seen, 98) * MARGIN
        inverse = np.linspace(low, high, PLANES)
        here = cameras[v]
        unproject = np.linalg.inv(here.intrinsics)
        matrices, shifts = np.empty((len(others), 3, 3)), np.empty((len(others), 3))
        for n, other in enumerate(others):
            pose = cameras[other].camera_from_world @ here.world_from_camera
            matrices[n] = cameras[other].intrinsics @ pose[:, :3] @ unproject
            shifts[n] = cameras[other].intrinsics @ pose[:, 3]
        raw = np.empty((height, width, PLANES), np.float32)
        _costs(
            images[v],
            images[others],
            matrices,
            shifts,
            inverse,
            np.ascontiguousarray(predicted[v], np.float64),
            TRUST,
            TRUNCATION,
            raw,
        )
        costs, total = np.empty_like(raw), np.zeros_like(raw)
        _smoothed(raw, costs)
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            _path(costs, images[v], dy, dx, STEP, JUMP, EDGE, total)
        refined[v] = 1.0 / _between_planes(total, inverse)
    return refined


def _between_planes(total: Float32, inverse: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H,W) inverse depth at the bottom of a parabola through the best plane and its neighbours."""
    best = np.clip(total.argmin(-1), 1, len(inverse) - 2)[..., None]
    left, middle, right = (
        np.take_along_axis(total, best + n, -1)[..., 0].astype(np.float64) for n in (-1, 0, 1)
    )
    bend = left - 2.0 * middle + right
    offset = np.where(bend > 1e-9, 0.5 * (left - right) / np.maximum(bend, 1e-9), 0.0)
    return inverse[best[..., 0]] + np.clip(offset, -0.5, 0.5) * (inverse[1] - inverse[0])
