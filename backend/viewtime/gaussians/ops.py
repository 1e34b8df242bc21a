# SPDX-License-Identifier: Apache-2.0
"""Operations on Gaussians: join, pick, move, crop, prune, merge. Never changes its input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from viewtime_formats.gaussians import Gaussians
from viewtime_formats.sh import MAX_DEGREE, rotate_sh


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


def similarity_parts(matrix: ArrayLike) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Scale, rotation (3, 3) and translation (3,) of a similarity (4, 4) or (3, 4).

    Raises:
        ValueError: for another shape, values that are not finite, a last row other than
            (0, 0, 0, 1), or a matrix that shears, mirrors or flattens.
    """
    m = np.asarray(matrix, np.float64)
    if m.shape not in ((4, 4), (3, 4)):
        raise ValueError(f"transform: a similarity of shape {m.shape}; (4, 4) or (3, 4) is needed")
    if not np.isfinite(m).all():
        raise ValueError("transform: the similarity is not finite; finite numbers are needed")
    if m.shape == (4, 4) and not np.allclose(m[3], (0, 0, 0, 1)):
        raise ValueError(f"transform: the last row is {m[3]}; (0, 0, 0, 1) is needed")
    linear = m[:3, :3]
    determinant = float(np.linalg.det(linear))
    if not determinant > 0:
        raise ValueError(f"transform: determinant {determinant:g}; a similarity has one above 0")
    scale = determinant ** (1 / 3)
    rotation = linear / scale
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-4:
        raise ValueError("transform: the matrix shears; scale times rotation is needed")
    return scale, rotation, m[:3, 3]


def transform(gaussians: Gaussians, similarity: ArrayLike) -> Gaussians:
    """Gaussians moved by a similarity; colours that depend on the direction turn along.

    Args:
        gaussians: of spherical-harmonics degree 0 to 3 (any, where nothing is turned).
        similarity: (4, 4) or (3, 4), scale times rotation, and translation: x' = s R x + t.

    Raises:
        ValueError: when the matrix is no similarity (see `similarity_parts`), or is one that turns
            harmonics above degree 3.
    """
    scale, rotation, shift = similarity_parts(similarity)
    sh = gaussians.sh
    if sh.shape[1] > 1 and np.abs(rotation - np.eye(3)).max() > 1e-9:
        if gaussians.sh_degree > MAX_DEGREE:
            raise ValueError(
                f"transform: sh of degree {gaussians.sh_degree} cannot be turned; "
                f"0 to {MAX_DEGREE} is needed"
            )
        sh = rotate_sh(sh, rotation)
    turned = quaternion_product(quaternion_from_matrix(rotation), gaussians.rotations)
    return Gaussians(
        (gaussians.means @ (scale * rotation).T + shift).astype(np.float32),
        (gaussians.scales * scale).astype(np.float32),
        turned.astype(np.float32),
        gaussians.opacities.copy(),
        np.array(sh, np.float32),
    )


def crop(
    gaussians: Gaussians, low: ArrayLike, high: ArrayLike, *, keep_outside: bool = False
) -> Gaussians:
    """The Gaussians whose centre lies in a box of the world's axes, borders included, or with
    `keep_outside` the others.

    Args:
        low, high: (3,) corners, scene units; infinite where there is no border.

    Raises:
        ValueError: when a corner is not three numbers, or low exceeds high.
    """
    corners = [np.asarray(corner, np.float64) for corner in (low, high)]
    for name, corner in zip(("low", "high"), corners):
        if corner.shape != (3,) or np.isnan(corner).any():
            raise ValueError(f"crop: {name} is {corner.tolist()}; three numbers are needed")
    if (corners[0] > corners[1]).any():
        raise ValueError(
            f"crop: low {corners[0].tolist()} exceeds high {corners[1].tolist()}; "
            "low <= high is needed along every axis"
        )
    inside = ((gaussians.means >= corners[0]) & (gaussians.means <= corners[1])).all(axis=1)
    return select(gaussians, np.flatnonzero(inside != keep_outside))


def prune(
    gaussians: Gaussians,
    *,
    min_opacity: float = 0.0,
    min_size: float = 0.0,
    max_size: float = np.inf,
) -> Gaussians:
    """The Gaussians that are opaque enough and neither too small nor too large.

    Args:
        min_opacity: 0 to 1. min_size, max_size: bounds of the largest standard deviation, scene
            units.

    Raises:
        ValueError: when a bound makes no sense.
    """
    if not 0 <= min_opacity <= 1:
        raise ValueError(f"prune: min_opacity is {min_opacity}; 0 to 1 is needed")
    if not 0 <= min_size <= max_size:
        raise ValueError(f"prune: sizes {min_size} to {max_size}; 0 <= min <= max is needed")
    size = gaussians.scales.max(axis=1, initial=0)
    kept = (gaussians.opacities >= min_opacity) & (size >= min_size) & (size <= max_size)
    return select(gaussians, kept)


def voxel_merge(gaussians: Gaussians, voxel: float) -> Gaussians:
    """One Gaussian for all those whose centres share a cube of the world's grid.

    Each cube's Gaussians become the one with their mean, covariance and colour, weighted by opacity
    times disk (the product of the two largest scales). Its opacity is that of their optical depth
    spread over its own disk, which is then widened until it hides about as much as they did side
    by side. A Gaussian alone in its cube stays as it is. Order: by first member.

    Args:
        voxel: side of the cubes, scene units, above 0.

    Raises:
        ValueError: when voxel is not above 0.
    """
    if not 0 < voxel < np.inf:
        raise ValueError(f"voxel_merge: voxel is {voxel}; a size above 0 is needed")
    if not len(gaussians):
        return select(gaussians, slice(None))
    cell = np.floor(gaussians.means.astype(np.float64) / voxel).astype(np.int64)
    _, start, group, sizes = np.unique(
        cell, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    group = group.ravel()
    many = np.flatnonzero(sizes[group] > 1)
    if not len(many):
        return select(gaussians, slice(None))
    merged = _merged(select(gaussians, many), np.unique(group[many], return_inverse=True)[1])
    result = select(gaussians, np.sort(start))
    place = np.searchsorted(np.sort(start), start[sizes > 1])
    for name in ("means", "scales", "rotations", "opacities", "sh"):
        getattr(result, name)[place] = getattr(merged, name)
    return result


def _merged(gaussians: Gaussians, group: NDArray[np.int64]) -> Gaussians:
    """Moment-matched Gaussians of groups 0..G-1 (N,), each of two or more members."""
    count = int(group.max()) + 1
    sizes = np.sort(gaussians.scales.astype(np.float64), axis=1)
    disk = np.maximum(sizes[:, 2] * sizes[:, 1], 1e-30)
    opacity = np.minimum(gaussians.opacities.astype(np.float64), 0.9999)
    weight = np.maximum(opacity * disk, 1e-30)

    def total(values: NDArray[Any]) -> NDArray[Any]:
        flat = values.reshape(len(values), -1)
        sums = [np.bincount(group, column, count) for column in flat.T]
        return np.stack(sums, 1).reshape(count, *values.shape[1:])

    whole = total(weight)
    share = weight / whole[group]
    means = total(share[:, None] * gaussians.means)
    w, x, y, z = gaussians.rotations.astype(np.float64).T
    rotation = np.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        -1,
    ).reshape(-1, 3, 3)
    root = rotation * gaussians.scales[:, None].astype(np.float64)
    away = gaussians.means - means[group]
    spread = root @ root.transpose(0, 2, 1) + away[:, :, None] * away[:, None]
    squares, axes = np.linalg.eigh(total(share[:, None, None] * spread))
    axes[:, :, 0] *= np.sign(np.linalg.det(axes))[:, None]
    scales = np.sqrt(np.maximum(squares, 0))
    # Optical depth times area is what the members add up to; the merged disk spreads it again.
    blocked = total(-np.log1p(-opacity) * disk)
    area = np.maximum(scales[:, 2] * scales[:, 1], 1e-30)
    opaque = -np.expm1(-blocked / area)
    # One bell hides less than a row of opaque ones with the same spread: widen it along the disk
    # to what they hide, as if strewn over four times its own area.
    hidden = 4 * area * -np.expm1(-whole / (4 * area))
    scales[:, 1:] *= np.sqrt(np.maximum(hidden / (opaque * area), 1))[:, None]
    return Gaussians(
        means.astype(np.float32),
        scales.astype(np.float32),
        quaternion_from_matrix(axes).astype(np.float32),
        opaque.astype(np.float32),
        total(share[:, None, None] * gaussians.sh).astype(np.float32),
    )
