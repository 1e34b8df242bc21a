# SPDX-License-Identifier: Apache-2.0
"""World points into the pixels of a camera, and what the depth there says of them.

Compiled loops over points; never draws and never decides what a verdict is good for.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from viewtime_formats.rig import Camera

from .parallel import in_parallel

UNSEEN, SAME, BEHIND, THROUGH = 0, 1, 2, 3
"""Verdicts of another view: outside its picture; the same surface; hidden behind a nearer one; the
view sees through the point, to something farther or to the sky."""


@njit(cache=True, nogil=True)
def _project(start, stop, points, pose, lens, width, height, pixel, z):
    for i in range(start, stop):
        x, y, w = points[i, 0], points[i, 1], points[i, 2]
        depth = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * w + pose[2, 3]
        pixel[i], z[i] = -1, depth
        if not depth > 1e-6:
            continue
        u = lens[0] * (pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * w + pose[0, 3]) / depth
        v = lens[1] * (pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * w + pose[1, 3]) / depth
        u += lens[2]
        v += lens[3]
        if 0 <= u < width and 0 <= v < height:
            pixel[i] = int(v) * width + int(u)


def project_points(
    points: NDArray[np.float32], camera: Camera
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Where points (N, 3) fall: pixel (N,) as y * width + x, -1 outside the picture or behind the
    camera, and planar z (N,)."""
    points = np.ascontiguousarray(points, np.float32)
    pixel, z = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
    k = camera.intrinsics
    lens = np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]])
    pose = np.ascontiguousarray(camera.camera_from_world)
    in_parallel(
        lambda start, stop: _project(
            start, stop, points, pose, lens, camera.width, camera.height, pixel, z
        ),
        len(points),
    )
    return pixel, z


@njit(cache=True, nogil=True)
def _judge(pixel, z, tolerance, depth, reach, verdict):
    height, width = depth.shape
    for i in range(pixel.shape[0]):
        verdict[i] = UNSEEN
        if pixel[i] < 0:
            continue
        y, x = pixel[i] // width, pixel[i] % width
        band = tolerance[i] * z[i]
        seen = depth[y, x]
        if seen < z[i] - band:
            verdict[i] = BEHIND
        elif seen <= z[i] + band:
            verdict[i] = SAME
        else:
            # At a silhouette the nearest pixel may miss the surface by half a pixel.
            verdict[i] = THROUGH
            for v in range(max(y - reach, 0), min(y + reach + 1, height)):
                for u in range(max(x - reach, 0), min(x + reach + 1, width)):
                    if depth[v, u] <= z[i] + band:
                        verdict[i] = UNSEEN


def judge_points(
    pixel: NDArray[np.int64],
    z: NDArray[np.float32],
    depth: NDArray[np.float32],
    tolerance: float | NDArray[np.float32],
    *,
    reach: int = 1,
) -> NDArray[np.uint8]:
    """What a view's depth (H, W; sky inf, unknown nan) says of projected points (N,).

    Args:
        tolerance: relative depth difference, one for all or (N,), within which a surface is the
            same.
        reach: a point is seen through only when all pixels this far around lie behind it; where
            they disagree, or are unknown, the verdict is UNSEEN.

    Returns:
        (N,) uint8 of UNSEEN, SAME, BEHIND, THROUGH.
    """
    # Unknown depth must convict nobody: at minus infinity it neither agrees nor lets see through.
    known = np.where(np.isnan(depth), -np.inf, depth).astype(np.float32)
    band = np.broadcast_to(np.asarray(tolerance, np.float32), z.shape)
    verdict = np.empty(len(z), np.uint8)
    _judge(pixel, z, np.ascontiguousarray(band), known, reach, verdict)
    return verdict
