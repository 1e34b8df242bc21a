# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a point cloud's splats into numpy and packs them for textures.
It never keeps a cloud, and never knows what draws the arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import bpy
import numpy as np

from .settings import BASE

REST = "radiance:sh_"
MAX_REST = 15  # coefficients beyond degree 0 that are drawn: up to degree 3
WIDTH = 8192  # texels in a row of every texture
_FIELDS = {"FLOAT_VECTOR": "vector", "QUATERNION": "value", "FLOAT4": "vector"}

# Arrays to pack into, by name: fresh pages of memory cost more than the copy into them.
Staging = dict[str, np.ndarray]


@dataclass(frozen=True)
class Splats:
    """One step: position (N, 3), scale (N, 3) linear, rotation (N, 4) wxyz, base (N, 4) raw SH DC
    and opacity, rest: K - 1 arrays of (N, 3), K in 1, 4, 9, 16; float32, in the object's space."""

    position: np.ndarray
    scale: np.ndarray
    rotation: np.ndarray
    base: np.ndarray
    rest: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.position)

    def take(self, indices: np.ndarray) -> Splats:
        """The splats at `indices`, in their order."""
        return Splats(
            self.position.take(indices, axis=0),
            self.scale.take(indices, axis=0),
            self.rotation.take(indices, axis=0),
            self.base.take(indices, axis=0),
            tuple(array.take(indices, axis=0) for array in self.rest),
        )


def read(cloud: bpy.types.PointCloud, view_dependent: bool = True) -> Splats:
    """The cloud's splats. Missing scale is a small ball, missing rotation none."""
    count = cloud.attributes.domain_size("POINT")

    def values(name: str, width: int, missing: tuple[float, ...]) -> np.ndarray:
        attribute = cloud.attributes.get(name)
        if attribute is None or attribute.domain != "POINT":
            return np.tile(np.array(missing, np.float32), (count, 1))
        array = np.empty((count, width), np.float32)
        attribute.data.foreach_get(_FIELDS.get(attribute.data_type, "color"), array.reshape(-1))
        return array

    found = 0
    while view_dependent and found < MAX_REST and f"{REST}{found}" in cloud.attributes:
        found += 1
    # A whole degree or nothing of it.
    found = max(k for k in (0, 3, 8, 15) if k <= found)
    return Splats(
        values("position", 3, (0.0, 0.0, 0.0)),
        values("scale", 3, (0.01, 0.01, 0.01)),
        values("rotation", 4, (1.0, 0.0, 0.0, 0.0)),
        values(BASE, 4, (0.0, 0.0, 0.0, 1.0)),
        tuple(values(f"{REST}{k}", 3, (0.0, 0.0, 0.0)) for k in range(found)),
    )


def stable_subset(count: int, density: float) -> np.ndarray:
    """Ascending indices of about density * count splats: a smaller density keeps a part of those
    that a larger one keeps, and the choice for an index never depends on `count`."""
    # Knuth's multiplicative hash: the same order on every machine.
    index = np.arange(count, dtype=np.uint32)
    index = (index ^ (index >> np.uint32(15))) * np.uint32(2654435761)
    index = (index ^ (index >> np.uint32(13))) * np.uint32(2246822519)
    return np.flatnonzero(index < np.uint32(min(density, 1.0) * (2**32 - 1)))


def pack(splats: Splats, staging: Staging | None = None) -> dict[str, np.ndarray]:
    """Float32 arrays for textures, by name: (rows, WIDTH, 4), or (rows, WIDTH) of single numbers.

    Arrays go in one after the other as they are, so that packing is copying: three numbers of a
    position lie in three texels. "rest" holds coefficient after coefficient of all splats.
    """
    return {
        "position": _filled("position", [splats.position], 1, staging),
        "scale": _filled("scale", [splats.scale], 1, staging),
        "rotation": _filled("rotation", [splats.rotation], 4, staging),
        "base": _filled("base", [splats.base], 4, staging),
        "rest": _filled("rest", splats.rest, 1, staging),
    }


def pack_order(order: np.ndarray) -> np.ndarray:
    """(rows, WIDTH) float32 of indices, which floats hold exactly up to 16.7 million."""
    return _filled("order", [order], 1, None)


def _filled(
    name: str, parts: Sequence[np.ndarray], channels: int, staging: Staging | None
) -> np.ndarray:
    rows = max(1, -(-sum(part.size for part in parts) // (WIDTH * channels)))
    shape = (rows, WIDTH) if channels == 1 else (rows, WIDTH, channels)
    out = None if staging is None else staging.get(name)
    if out is None or out.shape != shape:
        out = np.zeros(shape, np.float32)
        if staging is not None:
            staging[name] = out
    flat, start = out.reshape(-1), 0
    for part in parts:
        flat[start : start + part.size] = part.reshape(-1)
        start += part.size
    return out
