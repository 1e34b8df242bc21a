# SPDX-License-Identifier: Apache-2.0
"""Operations on Gaussians: join, pick, move by a similarity. Never changes its input in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from viewtime_formats.gaussians import Gaussians


def empty(sh_degree: int = 0) -> Gaussians:
    """No Gaussians at all, with room for spherical harmonics of the given degree."""
    shapes = ((0, 3), (0, 3), (0, 4), (0,), (0, (sh_degree + 1) ** 2, 3))
    return Gaussians(*(np.zeros(shape, np.float32) for shape in shapes))


def concatenate(parts: Iterable[Gaussians]) -> Gaussians:
    """All Gaussians of several sets, in order; lower spherical-harmonics degrees get zeros."""
    sets = list(parts)
    if not sets:
        return empty()
    coefficients = max(part.sh.shape[1] for part in sets)
    sh = [np.pad(part.sh, ((0, 0), (0, coefficients - part.sh.shape[1]), (0, 0))) for part in sets]
    return Gaussians(
        np.concatenate([part.means for part in sets]),
        np.concatenate([part.scales for part in sets]),
        np.concatenate([part.rotations for part in sets]),
        np.concatenate([part.opacities for part in sets]),
        np.concatenate(sh),
    )


def select(gaussians: Gaussians, which: NDArray[Any] | slice) -> Gaussians:
    """The Gaussians that a mask (N,) bool, indices (M,) or a slice picks."""
    return Gaussians(
        gaussians.means[which],
        gaussians.scales[which],
        gaussians.rotations[which],
        gaussians.opacities[which],
        gaussians.sh[which],
    )


def quaternion_from_matrix(rotation: ArrayLike) -> NDArray[np.float64]:
    """Rotation matrices (..., 3, 3) to unit quaternions (..., 4) wxyz with w >= 0.

    The component of the largest magnitude is found first, so that no angle is ill-conditioned.
    """
    m = np.asarray(rotation, np.float64)
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squares = np.stack([1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz], -1)
    zy, xz, yx = m[..., 2, 1], m[..., 0, 2], m[..., 1, 0]
    yz, zx, xy = m[..., 1, 2], m[..., 2, 0], m[..., 0, 1]
    # Rows are 4 q_k q: each row, normalised, is the quaternion; the row of the largest is used.
    rows = np.stack(
        [
            np.stack([squares[..., 0], zy - yz, xz - zx, yx - xy], -1),
            np.stack([zy - yz, squares[..., 1], yx + xy, xz + zx], -1),
            np.stack([xz - zx, yx + xy, squares[..., 2], zy + yz], -1),
            np.stack([yx - xy, xz + zx, zy + yz, squares[..., 3]], -1),
        ],
        -2,
    )
    best = squares.argmax(-1)[..., None, None]
    q = np.take_along_axis(rows, best, -2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[..., :1] < 0, -q, q)


def quaternion_product(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Hamilton product of quaternions (..., 4) wxyz: first turn by b, then by a."""
    aw, ax, ay, az = np.moveaxis(np.asarray(a, np.float64), -1, 0)
    bw, bx, by, bz = np.moveaxis(np.asarray(b, np.float64), -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def transform(gaussians: Gaussians, similarity: ArrayLike) -> Gaussians:
    """Gaussians moved by a similarity.

    Args:
        gaussians: of spherical-harmonics degree 0, whose colour no turn changes.
        similarity: (4, 4) or (3, 4), scale times rotation, and translation: x' = s R x + t.

    Raises:
        ValueError: when the matrix is no similarity (it shears, mirrors or flattens), or when the
            colours depend on the direction.
    """
    matrix = np.asarray(similarity, np.float64)
    linear, shift = matrix[:3, :3], matrix[:3, 3]
    determinant = float(np.linalg.det(linear))
    if not determinant > 0:
        raise ValueError(f"transform: determinant {determinant:g}; a similarity has one above 0")
    scale = determinant ** (1 / 3)
    rotation = linear / scale
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-4:
        raise ValueError("transform: the matrix shears; scale times rotation is needed")
    if gaussians.sh.shape[1] > 1 and np.abs(rotation - np.eye(3)).max() > 1e-6:
        raise ValueError(
            f"transform: sh of degree {gaussians.sh_degree} cannot be turned; degree 0 is needed"
        )
    turned = quaternion_product(quaternion_from_matrix(rotation), gaussians.rotations)
    return Gaussians(
        (gaussians.means @ linear.T + shift).astype(np.float32),
        (gaussians.scales * scale).astype(np.float32),
        turned.astype(np.float32),
        gaussians.opacities.copy(),
        gaussians.sh.copy(),
    )
