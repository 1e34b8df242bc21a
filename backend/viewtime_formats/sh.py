# SPDX-License-Identifier: Apache-2.0
"""Real spherical harmonics to degree 3, with the signs and the order of 3DGS files, and their turn.
Never approximates: within a degree a rotation is an exact linear map."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_DEGREE = 3
DIRECTIONS = 64  # more than the 16 unknowns of degree 3, spread evenly


def sh_basis(directions: ArrayLike, degree: int) -> NDArray[np.float64]:
    """The (degree + 1)^2 functions at unit directions: (M, 3) -> (M, K) float64.

    Polynomials in x, y, z, orthonormal over the sphere; the odd orders carry the sign that 3DGS
    gives them (Condon-Shortley). Raises ValueError for a degree over 3.
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"SH degree is {degree}; 0 to {MAX_DEGREE} is needed")
    x, y, z = np.asarray(directions, np.float64).reshape(-1, 3).T
    pi = math.pi
    columns = [np.full_like(x, math.sqrt(1 / (4 * pi)))]
    if degree >= 1:
        one = math.sqrt(3 / (4 * pi))
        columns += [-one * y, one * z, -one * x]
    if degree >= 2:
        two = math.sqrt(15 / (4 * pi))
        columns += [
            two * x * y,
            -two * y * z,
            math.sqrt(5 / (16 * pi)) * (2 * z * z - x * x - y * y),
            -two * x * z,
            two / 2 * (x * x - y * y),
        ]
    if degree >= 3:
        outer, inner = math.sqrt(35 / (32 * pi)), math.sqrt(21 / (32 * pi))
        middle = math.sqrt(105 / (4 * pi))
        columns += [
            -outer * y * (3 * x * x - y * y),
            middle * x * y * z,
            -inner * y * (4 * z * z - x * x - y * y),
            math.sqrt(7 / (16 * pi)) * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -inner * x * (4 * z * z - x * x - y * y),
            middle / 2 * z * (x * x - y * y),
            -outer * x * (x * x - 3 * y * y),
        ]
    return np.stack(columns, axis=1)


def sh_rotation(rotation: ArrayLike, degree: int) -> list[NDArray[np.float64]]:
    """One orthogonal matrix (2l + 1, 2l + 1) for each degree l: coefficients turned = matrix @ old.

    rotation: (3, 3), takes old directions to new ones. What a turned splat shows in direction d is
    what it showed before in the direction that d came from.
    """
    turn = np.asarray(rotation, np.float64)
    directions = _spread(DIRECTIONS)
    new, old = sh_basis(directions, degree), sh_basis(directions @ turn, degree)
    matrices: list[NDArray[np.float64]] = []
    for band in range(degree + 1):
        columns = slice(band * band, (band + 1) ** 2)
        found = np.linalg.lstsq(new[:, columns], old[:, columns], rcond=None)[0]
        matrices.append(found.astype(np.float64))
    return matrices


def rotate_sh(sh: NDArray[np.floating], rotation: ArrayLike) -> NDArray[np.float32]:
    """Coefficients (N, K, 3) of splats that are turned by rotation (3, 3); float32.

    Raises ValueError when K is not 1, 4, 9 or 16.
    """
    degree = math.isqrt(sh.shape[1]) - 1
    if (degree + 1) ** 2 != sh.shape[1] or not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"{sh.shape[1]} SH coefficients; 1, 4, 9 or 16 are needed")
    turned = np.array(sh, np.float32)
    for band, matrix in enumerate(sh_rotation(rotation, degree)):
        columns = slice(band * band, (band + 1) ** 2)
        if band:  # the mean colour is the same from everywhere
            turned[:, columns] = np.einsum("ij,njc->nic", matrix, sh[:, columns])
    return turned


def _spread(count: int) -> NDArray[np.float64]:
    """Unit directions (count, 3) on a golden spiral."""
    at = np.arange(count) + 0.5
    z = 1 - 2 * at / count
    around = at * math.pi * (1 + math.sqrt(5))
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(around), radius * np.sin(around), z], axis=1)
