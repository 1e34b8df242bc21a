# SPDX-License-Identifier: Apache-2.0
"""Gaussians: the splats of one timestep as five float32 arrays.

Linear scales, opacities in [0, 1], rotations as unit quaternions wxyz; never logits or log scales,
which exist only inside PLY files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SequenceError, ViewtimeError

SH_C0 = 0.28209479177387814
"""The constant of the first spherical harmonic, 1 / (2 sqrt(pi))."""

MAX_SH_DEGREE = 4
Float32 = NDArray[np.float32]


@dataclass(eq=False)
class Gaussians:
    """N Gaussians of one timestep, in the world frame and scene units.

    means (N, 3), scales (N, 3) linear standard deviations, rotations (N, 4) unit wxyz,
    opacities (N,) in [0, 1], sh (N, K, 3) spherical harmonics with K = (degree + 1)^2; all float32.
    Colour at degree 0 is display sRGB: 0.5 + SH_C0 * sh[:, 0].
    """

    means: Float32
    scales: Float32
    rotations: Float32
    opacities: Float32
    sh: Float32

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """0 for one coefficient per channel, 1 for 4, 2 for 9, 3 for 16, 4 for 25."""
        return math.isqrt(self.sh.shape[1]) - 1

    def bounds(self) -> Float32:
        """(2, 3): smallest and largest centre. Without Gaussians (+inf, -inf), the empty union."""
        if not len(self):
            return np.array([[np.inf] * 3, [-np.inf] * 3], np.float32)
        return np.stack([self.means.min(axis=0), self.means.max(axis=0)])

    def check_shapes(self, where: str, error: type[ViewtimeError] = SequenceError) -> None:
        """Raise `error` unless the five arrays are float32 with shapes that fit each other."""
        count = len(self.means) if getattr(self.means, "ndim", 0) else 0
        coefficients = self.sh.shape[1] if getattr(self.sh, "ndim", 0) == 3 else 1
        shapes = {
            "means": (count, 3),
            "scales": (count, 3),
            "rotations": (count, 4),
            "opacities": (count,),
            "sh": (count, coefficients, 3),
        }
        for name, shape in shapes.items():
            array: Any = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                kind = getattr(array, "dtype", type(array).__name__)
                raise error(f"{where}: {name} is {kind}; a float32 array is needed")
            if array.shape != shape:
                raise error(f"{where}: {name} has shape {array.shape}; {shape} is needed")
        degree = math.isqrt(coefficients) - 1
        if (degree + 1) ** 2 != coefficients or not 0 <= degree <= MAX_SH_DEGREE:
            raise error(f"{where}: sh has {coefficients} coefficients; 1, 4, 9, 16 or 25 is needed")

    def validate(self, where: str, error: type[ViewtimeError] = SequenceError) -> None:
        """Raise `error`, beginning with `where`, for shapes, types or values no viewer could draw.

        Values: everything finite, scales not negative, opacities in [0, 1], rotations of length 1
        within 1e-3.
        """
        self.check_shapes(where, error)
        if not len(self):
            return
        for name in ("means", "scales", "rotations", "opacities", "sh"):
            array = getattr(self, name)
            if not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array))[0][0])
                raise error(f"{where}: {name}[{row}] is not finite; finite numbers are needed")
        if self.scales.min() < 0:
            smallest = float(self.scales.min())
            raise error(
                f"{where}: the smallest scale is {smallest:g}; 0 or more is needed (linear)"
            )
        low, high = float(self.opacities.min()), float(self.opacities.max())
        if low < 0 or high > 1:
            raise error(
                f"{where}: opacities span {low:g} to {high:g}; 0 to 1 is needed (no logits)"
            )
        length = np.einsum("nk,nk->n", self.rotations, self.rotations)
        if np.abs(length - 1).max() > 2e-3:
            row = int(np.abs(length - 1).argmax())
            raise error(
                f"{where}: rotations[{row}] has length {math.sqrt(length[row]):g}; 1 is needed"
            )


def rgb_to_sh0(rgb: NDArray[Any]) -> Float32:
    """Display sRGB (..., 3) in [0, 1] to the coefficient of degree 0 (..., 3)."""
    return ((np.asarray(rgb, np.float32) - np.float32(0.5)) / np.float32(SH_C0)).astype(np.float32)


def sh0_to_rgb(sh0: NDArray[Any]) -> Float32:
    """The coefficient of degree 0 (..., 3) to display sRGB (..., 3), not clamped."""
    return (np.asarray(sh0, np.float32) * np.float32(SH_C0) + np.float32(0.5)).astype(np.float32)
