# SPDX-License-Identifier: Apache-2.0
"""Real spherical harmonics of degree 0 to 3 with their slopes, compiled: the basis of
`viewtime_formats.sh`, which also turns them. Never touches colours."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

C0 = math.sqrt(1 / (4 * math.pi))
C1 = math.sqrt(3 / (4 * math.pi))
C2 = math.sqrt(15 / (4 * math.pi))
C2Z = math.sqrt(5 / (16 * math.pi))
C3A = math.sqrt(35 / (32 * math.pi))
C3B = math.sqrt(105 / (4 * math.pi))
C3C = math.sqrt(21 / (32 * math.pi))
C3Z = math.sqrt(7 / (16 * math.pi))


@njit(cache=True, nogil=True)
def basis(x, y, z, count, out):
    """Fill out (>= count, 4): value and slopes along x, y, z of the first `count` (1, 4, 9, 16)
    harmonics in the unit direction (x, y, z). Slopes are those of the homogeneous polynomials."""
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = C0, 0.0, 0.0, 0.0
    if count < 4:
        return
    out[1, 0], out[1, 1], out[1, 2], out[1, 3] = -C1 * y, 0.0, -C1, 0.0
    out[2, 0], out[2, 1], out[2, 2], out[2, 3] = C1 * z, 0.0, 0.0, C1
    out[3, 0], out[3, 1], out[3, 2], out[3, 3] = -C1 * x, -C1, 0.0, 0.0
    if count < 9:
        return
    out[4, 0], out[4, 1], out[4, 2], out[4, 3] = C2 * x * y, C2 * y, C2 * x, 0.0
    out[5, 0], out[5, 1], out[5, 2], out[5, 3] = -C2 * y * z, 0.0, -C2 * z, -C2 * y
    out[6, 0] = C2Z * (2 * z * z - x * x - y * y)
    out[6, 1], out[6, 2], out[6, 3] = -2 * C2Z * x, -2 * C2Z * y, 4 * C2Z * z
    out[7, 0], out[7, 1], out[7, 2], out[7, 3] = -C2 * x * z, -C2 * z, 0.0, -C2 * x
    out[8, 0] = 0.5 * C2 * (x * x - y * y)
    out[8, 1], out[8, 2], out[8, 3] = C2 * x, -C2 * y, 0.0
    if count < 16:
        return
    xx, yy, zz = x * x, y * y, z * z
    out[9, 0] = -C3A * y * (3 * xx - yy)
    out[9, 1], out[9, 2], out[9, 3] = -6 * C3A * x * y, -3 * C3A * (xx - yy), 0.0
    out[10, 0] = C3B * x * y * z
    out[10, 1], out[10, 2], out[10, 3] = C3B * y * z, C3B * x * z, C3B * x * y
    out[11, 0] = -C3C * y * (4 * zz - xx - yy)
    out[11, 1], out[11, 2] = 2 * C3C * x * y, -C3C * (4 * zz - xx - 3 * yy)
    out[11, 3] = -8 * C3C * y * z
    out[12, 0] = C3Z * z * (2 * zz - 3 * xx - 3 * yy)
    out[12, 1], out[12, 2] = -6 * C3Z * x * z, -6 * C3Z * y * z
    out[12, 3] = C3Z * (6 * zz - 3 * xx - 3 * yy)
    out[13, 0] = -C3C * x * (4 * zz - xx - yy)
    out[13, 1], out[13, 2] = -C3C * (4 * zz - 3 * xx - yy), 2 * C3C * x * y
    out[13, 3] = -8 * C3C * x * z
    out[14, 0] = 0.5 * C3B * z * (xx - yy)
    out[14, 1], out[14, 2], out[14, 3] = C3B * x * z, -C3B * y * z, 0.5 * C3B * (xx - yy)
    out[15, 0] = -C3A * x * (xx - 3 * yy)
    out[15, 1], out[15, 2], out[15, 3] = -3 * C3A * (xx - yy), 6 * C3A * x * y, 0.0


@njit(cache=True, nogil=True)
def _values(directions, out):
    row = np.empty((out.shape[1], 4))
    for i in range(directions.shape[0]):
        basis(directions[i, 0], directions[i, 1], directions[i, 2], out.shape[1], row)
        for k in range(out.shape[1]):
            out[i, k] = row[k, 0]


def values(directions: ArrayLike, degree: int) -> NDArray[np.float64]:
    """The harmonics (N, (degree + 1)^2) in unit directions (N, 3)."""
    d = np.ascontiguousarray(directions, np.float64)
    out = np.empty((len(d), (degree + 1) ** 2))
    _values(d, out)
    return out
