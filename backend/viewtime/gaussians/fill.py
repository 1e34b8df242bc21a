# SPDX-License-Identifier: Apache-2.0
"""Regions of depth maps and smooth filling of holes in pictures.

Never adds detail: a filled hole carries the colours around it and nothing else.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

Float32 = NDArray[np.float32]


@njit(cache=True, nogil=True)
def _flood(depth, jump, label, queue):
    height, width = depth.shape
    count = 0
    for seed in range(height * width):
        if label[seed] >= 0 or not np.isfinite(depth[seed // width, seed % width]):
            continue
        label[seed] = count
        queue[0], head, tail = seed, 0, 1
        while head < tail:
            p = queue[head]
            head += 1
            y, x = p // width, p % width
            for k in range(4):
                v, u = y + (k == 0) - (k == 1), x + (k == 2) - (k == 3)
                if 0 <= v < height and 0 <= u < width and label[v * width + u] < 0:
                    here, there = depth[y, x], depth[v, u]
                    if abs(here - there) < jump * min(here, there):
                        label[v * width + u] = count
                        queue[tail] = v * width + u
                        tail += 1
        count += 1


def segments(depth: Float32, *, jump: float = 0.02) -> NDArray[np.int64]:
    """Depth-connected regions of a picture.

    Args:
        depth: (H, W) planar z; sky (inf) and unknown (nan) belong to no segment.
        jump: relative step between neighbours (left, right, up, down) from which they are apart.

    Returns:
        (H * W,) labels from 0, -1 for no segment.
    """
    label, queue = np.full(depth.size, -1, np.int64), np.empty(depth.size, np.int64)
    _flood(np.ascontiguousarray(depth, np.float32), jump, label, queue)
    return label


def push_pull(image: Float32, valid: NDArray[np.bool_], empty: ArrayLike = (0, 0, 0)) -> Float32:
    """The picture (H, W, 3) with pixels that are not valid (H, W) filled smoothly from the others.

    Averages of valid pixels go up a pyramid of halved pictures, and come down into the holes. A
    picture without any valid pixel becomes `empty` all over.
    """
    if not valid.any():
        return np.broadcast_to(np.asarray(empty, np.float32), image.shape).copy()
    if valid.all():
        return image
    height, width = valid.shape
    weight = valid.astype(np.float32)[..., None]
    even = ((0, height % 2), (0, width % 2), (0, 0))
    sums, weights = (
        np.pad(array, even).reshape((height + 1) // 2, 2, (width + 1) // 2, 2, -1).sum((1, 3))
        for array in (image * weight, weight)
    )
    coarse = push_pull(sums / np.maximum(weights, 1), weights[..., 0] > 0, empty)
    return np.where(valid[..., None], image, _doubled(coarse, height, width))


def _doubled(image: Float32, height: int, width: int) -> Float32:
    """Bilinear enlargement by two, cut to height x width."""
    for axis, size in ((0, height), (1, width)):
        image = np.moveaxis(image, axis, 0)
        before = np.concatenate([image[:1], image[:-1]])
        after = np.concatenate([image[1:], image[-1:]])
        pairs = np.stack([0.75 * image + 0.25 * before, 0.75 * image + 0.25 * after], 1)
        doubled = pairs.reshape(-1, *image.shape[1:])[:size].astype(np.float32)
        image = np.moveaxis(doubled, 0, axis)
    return image
