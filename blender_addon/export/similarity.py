# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves Gaussians by an object's world transform: turned, moved and uniformly scaled.
It never approximates: what is not a similarity is refused in words."""

from __future__ import annotations

import numpy as np

from viewtime_formats import Gaussians, ViewtimeError
from viewtime_formats.sh import rotate_sh

# Blender composes matrices in float32; rotations of many turns keep about this much.
_TOLERANCE = 1e-4


def moved(gaussians: Gaussians, world_from_object: np.ndarray, name: str) -> Gaussians:
    """Gaussians in world space. `name` is the object's, for the messages.

    world_from_object: (4, 4). View-dependent colour turns with the splats. Raises ViewtimeError
    for a non-uniform scale, a mirror, and a scale of zero.
    """
    matrix = np.asarray(world_from_object, np.float64)
    if np.array_equal(matrix, np.eye(4)):
        return gaussians
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    size = float(np.cbrt(abs(np.linalg.det(linear))))
    if size < 1e-12:
        raise ViewtimeError(f"{name}: its scale is zero; splats need a scale above zero")
    rotation = linear / size
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _TOLERANCE:
        lengths = " x ".join(f"{value:.4g}" for value in np.linalg.norm(linear, axis=0))
        raise ViewtimeError(
            f"{name}: its scale {lengths} is not uniform; splats need the same scale on all axes"
        )
    if np.linalg.det(rotation) < 0:
        raise ViewtimeError(f"{name}: its scale is negative (a mirror); splats need it positive")
    sh = gaussians.sh
    if sh.shape[1] > 1 and np.abs(rotation - np.eye(3)).max() > 1e-9:
        sh = rotate_sh(sh, rotation)
    return Gaussians(
        means=(gaussians.means @ linear.T + offset).astype(np.float32),
        scales=(gaussians.scales * size).astype(np.float32),
        rotations=_turned(rotation_wxyz(rotation), gaussians.rotations).astype(np.float32),
        opacities=gaussians.opacities,
        sh=sh,
    )


def rotation_wxyz(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion (4,) of a rotation matrix (3, 3), by the largest of its four squares."""
    r = rotation
    squares = np.array(
        [
            1 + r[0, 0] + r[1, 1] + r[2, 2],
            1 + r[0, 0] - r[1, 1] - r[2, 2],
            1 - r[0, 0] + r[1, 1] - r[2, 2],
            1 - r[0, 0] - r[1, 1] + r[2, 2],
        ]
    )
    rows = np.array(
        [
            [squares[0], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], squares[1], r[1, 0] + r[0, 1], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[1, 0] + r[0, 1], squares[2], r[2, 1] + r[1, 2]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[2, 1] + r[1, 2], squares[3]],
        ]
    )
    row = rows[int(squares.argmax())]
    return row / np.linalg.norm(row)


def _turned(first: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Hamilton product first * rotations, (4,) and (N, 4) wxyz, normalised."""
    w, x, y, z = first
    by = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    product = rotations.astype(np.float64) @ by.T
    return product / np.linalg.norm(product, axis=1, keepdims=True)
