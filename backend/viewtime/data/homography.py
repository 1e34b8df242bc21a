# SPDX-License-Identifier: Apache-2.0
"""Multi-view clips from one video: every view warps it by a smooth homography of its own.

It gives training grids with real motion where no cameras exist; it never invents depth.
"""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _warp(image, inverse, out):
    """Bilinear lookup of image (H,W,3) at inverse @ (x, y, 1) for each pixel centre of out."""
    height, width = image.shape[0], image.shape[1]
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            x, y = column + 0.5, row + 0.5
            w = inverse[2, 0] * x + inverse[2, 1] * y + inverse[2, 2]
            u = (inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]) / w - 0.5
            v = (inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]) / w - 0.5
            u, v = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
            i, j = min(int(u), max(width - 2, 0)), min(int(v), max(height - 2, 0))
            a, b = u - i, v - j
            right, below = min(i + 1, width - 1), min(j + 1, height - 1)
            for k in range(3):
                top = image[j, i, k] * (1.0 - a) + image[j, right, k] * a
                low = image[below, i, k] * (1.0 - a) + image[below, right, k] * a
                out[row, column, k] = top * (1.0 - b) + low * b


def homography_from_corners(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The (3,3) homography that takes four points (4,2) to four points (4,2)."""
    rows = []
    for (x, y), (u, v) in zip(source, target):
        rows.append([x, y, 1.0, 0.0, 0.0, 0.0, -u * x, -u * y])
        rows.append([0.0, 0.0, 0.0, x, y, 1.0, -v * x, -v * y])
    solution = np.linalg.solve(np.array(rows), np.asarray(target, np.float64).reshape(8))
    return np.append(solution, 1.0).reshape(3, 3)


def random_homographies(seed: int, views: int, width: int, height: int) -> np.ndarray:
    """(views, 3, 3) homographies in pixels, picture from view, that change smoothly over the views.

    View 0 is the identity. The pictures' corners stay inside the video's frame, so that no
    border is invented.
    """
    rng = np.random.default_rng([seed, 37])
    corners = np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]])
    inward = np.sign(np.array([width, height]) / 2.0 - corners) * [width, height]
    full = inward * rng.uniform(0.0, 0.28, (4, 2))
    bend = inward * rng.uniform(-0.06, 0.06, (4, 2))
    result = np.empty((views, 3, 3))
    for v in range(views):
        share = v / max(views - 1, 1)
        moved = corners + share * full + share * (1.0 - share) * bend
        moved = np.clip(moved, 0.0, [width, height])
        result[v] = homography_from_corners(corners, moved)
    return result


def warp_video(video: np.ndarray, homographies: np.ndarray) -> np.ndarray:
    """A grid (V,T,3,H,W) float32: the video (T,H,W,3) seen through each view's homography (V,3,3).

    homographies take a view's pixels (centres at +0.5) to the video's.
    """
    times, height, width, _ = video.shape
    out = np.empty((len(homographies), times, height, width, 3), np.float32)
    for v, matrix in enumerate(np.asarray(homographies, np.float64)):
        for t in range(times):
            _warp(np.ascontiguousarray(video[t], np.float32), matrix, out[v, t])
    return np.ascontiguousarray(out.transpose(0, 1, 4, 2, 3))
