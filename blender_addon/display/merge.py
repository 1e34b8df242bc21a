# SPDX-License-Identifier: GPL-3.0-or-later
"""Several objects' splats as one set in the world's space, so that one order is right for all.
It never draws; colours are those seen from one camera."""

from __future__ import annotations

import numpy as np

from .cloud_data import Splats
from .harmonics import SH_C0, colour


def kept(splats: Splats, crop: np.ndarray, min_opacity: float, max_size: float) -> np.ndarray:
    """Indices of the splats that the thresholds and the crop box (4, 4) leave."""
    boxed = splats.position @ crop[:3, :3].T + crop[:3, 3]
    return np.flatnonzero(
        (splats.base[:, 3] >= min_opacity)
        & (splats.scale.max(axis=1, initial=0.0) <= max_size)
        & (np.abs(boxed).max(axis=1, initial=0.0) <= 1.0)
    )


def in_world(splats: Splats, world_from_object: np.ndarray, eye: np.ndarray) -> Splats:
    """The splats moved to the world, with the colours seen from `eye` in place of harmonics.

    eye: (4,) in the object's space: a place (w 1) or a direction of view (w 0).
    """
    matrix = world_from_object.astype(np.float64)
    # Scaling unevenly turns and stretches every Gaussian: its new axes are those of the product.
    axes = matrix[:3, :3] @ (_turns(splats.rotation) * splats.scale[:, None, :])
    turn, lengths, _ = np.linalg.svd(axes)
    turn[:, :, 2] *= np.linalg.det(turn)[:, None]
    base = splats.base.copy()
    base[:, :3] = (seen_colour(splats, eye) - 0.5) / SH_C0
    return Splats(
        (splats.position @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32),
        lengths.astype(np.float32),
        _quaternions(turn).astype(np.float32),
        base,
        (),
    )


def seen_colour(splats: Splats, eye: np.ndarray) -> np.ndarray:
    """(N, 3) display sRGB of the splats seen from `eye` (4,)."""
    if eye[3]:
        direction = splats.position - eye[:3].astype(np.float32)
        direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-30)
    else:
        direction = np.broadcast_to(eye[:3].astype(np.float32), splats.position.shape)
    return colour(splats.base[:, :3], splats.rest, direction)


def joined(parts: list[Splats]) -> Splats:
    """One set of all parts, which must have no harmonics."""
    return Splats(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("position", "scale", "rotation", "base")
        ),
        (),
    )


def _turns(rotation: np.ndarray) -> np.ndarray:
    """(N, 3, 3) float64 of unit quaternions (N, 4) wxyz."""
    w, x, y, z = rotation.astype(np.float64).T
    return np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        axis=1,
    )


def _quaternions(turn: np.ndarray) -> np.ndarray:
    """(N, 4) wxyz of rotations (N, 3, 3): of four equal formulas, that of the largest divisor."""
    diagonal = np.einsum("nii->ni", turn)
    squares = np.stack(
        [
            1 + diagonal.sum(1),
            1 + 2 * diagonal[:, 0] - diagonal.sum(1),
            1 + 2 * diagonal[:, 1] - diagonal.sum(1),
            1 + 2 * diagonal[:, 2] - diagonal.sum(1),
        ],
        -1,
    )
    a, b, c = (
        turn[:, 2, 1] - turn[:, 1, 2],
        turn[:, 0, 2] - turn[:, 2, 0],
        turn[:, 1, 0] - turn[:, 0, 1],
    )
    d, e, f = (
        turn[:, 1, 0] + turn[:, 0, 1],
        turn[:, 0, 2] + turn[:, 2, 0],
        turn[:, 2, 1] + turn[:, 1, 2],
    )
    rows = np.stack(
        [
            np.stack([squares[:, 0], a, b, c], -1),
            np.stack([a, squares[:, 1], d, e], -1),
            np.stack([b, d, squares[:, 2], f], -1),
            np.stack([c, e, f, squares[:, 3]], -1),
        ],
        1,
    )
    best = rows[np.arange(len(turn)), squares.argmax(1)]
    return best / np.linalg.norm(best, axis=1, keepdims=True)
