# SPDX-License-Identifier: Apache-2.0
"""Gaussians to a picture on the CPU: EWA projection and front-to-back alpha compositing in numba.

Never touches torch; colours are display sRGB as they are stored. `tensors` adds the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Camera

from . import splatting, tiles
from .parallel import in_parallel

Float32 = NDArray[np.float32]

DILATION = 0.01
"""px^2 added to both screen variances unless the caller says otherwise."""
NEAR = 0.01
"""Gaussians whose centre lies nearer than this (scene units along z) are not drawn. As gsplat."""
PIECES = 4
"""Ranges of tiles per thread, so that a crowded corner does not keep one thread alone."""
_FIELDS = ("means", "scales", "rotations", "opacities", "sh")


@dataclass(frozen=True, eq=False)
class Rendered:
    """One picture: color (H, W, 3) display sRGB over the background, alpha (H, W) in [0, 1],
    depth (H, W) planar z, the alpha-weighted mean over the splats (inf where alpha is 0). For
    several cameras each has a leading axis, and for tensors each is one."""

    color: Any
    alpha: Any
    depth: Any


@dataclass(frozen=True, eq=False)
class Projected:
    """Gaussians as one camera sees them: projected, sorted and listed by tile.

    All that does not depend on the colours, so that many pictures, and many rounds of gathering,
    cost their blending alone. M of the N Gaussians are drawn, nearest first: drawn (M,) names them,
    splats (M, 8) and boxes (M, 4) are described in `splatting`, shades (M, 3) are their colours,
    per_tile and listed are the tiles' lists. A pair is a Gaussian and a tile that it touches, and
    Gaussian i's pairs are first[i] (N + 1) to first[i + 1].
    """

    width: int
    height: int
    count: int
    drawn: NDArray[np.int64]
    splats: Float32
    shades: Float32
    boxes: NDArray[np.int32]
    first: NDArray[np.int64]
    per_tile: NDArray[np.int64]
    listed: NDArray[np.int32]

    @property
    def tiles_x(self) -> int:
        """Tiles side by side."""
        return -(-self.width // tiles.TILE)

    def blend(self, shades: Float32 | None = None) -> tuple[Float32, NDArray[np.int32]]:
        """(H, W, 5) of r, g, b, depth, all weighted by alpha, and transmittance; and the length of
        each pixel's list (H, W). In the splats' own colours or in shades (M, 3)."""
        shades = self.shades if shades is None else shades
        out = np.empty((self.height, self.width, 5), np.float32)
        last = np.empty((self.height, self.width), np.int32)
        in_parallel(
            lambda start, stop: tiles.blend(
                start, stop, self.tiles_x, self.per_tile, self.listed, self.splats, shades,
                self.boxes, out, last,
            ),
            len(self.per_tile) - 1,
            PIECES,
        )  # fmt: skip
        return out, last

    def render(
        self, background: ArrayLike = (0, 0, 0), colours: ArrayLike | None = None
    ) -> Rendered:
        """The picture over a background (3,), in the Gaussians' own colours or in colours (N, 3),
        display sRGB as the camera sees them (below 0 counts as 0, as everywhere)."""
        shades = None
        if colours is not None:
            rgb = np.asarray(colours, np.float32)
            if rgb.shape != (self.count, 3):
                raise ValueError(f"render: colours {rgb.shape}; ({self.count}, 3) is needed")
            shades = np.maximum(rgb.take(self.drawn, axis=0), np.float32(0))
        return _finished(self.blend(shades)[0], np.asarray(background, np.float32))


def _finished(out: Float32, background: Float32) -> Rendered:
    through = out[..., 4]
    alpha = 1.0 - through
    color = out[..., :3] + through[..., None] * background
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(alpha > 0, out[..., 3] / alpha, np.float32(np.inf))
    return Rendered(color, alpha, depth.astype(np.float32))


def _nearest_first(depth: Float32) -> NDArray[np.int64]:
    """Stable order of positive depths: their bits sort as integers, and numpy sorts 16-bit integers
    by radix, five times faster than floats."""
    bits = depth.view(np.uint32)
    order = np.argsort(bits.astype(np.uint16), kind="stable")
    return order[np.argsort((bits >> 16).astype(np.uint16)[order], kind="stable")]


def check(
    arrays: list[Float32], dilation: float, near: float, fields: tuple[str, ...] = _FIELDS
) -> None:
    """Raise ValueError, naming the field and the value, for anything that cannot be drawn.

    arrays: means (N, 3), scales (N, 3), rotations (N, 4), opacities (N,), colours (N, K, 3), K of
    1, 4, 9 or 16, float32 and contiguous. fields: their names in messages.
    """
    count = len(arrays[0]) if arrays[0].ndim else 0
    wanted: list[tuple[int, ...]] = [(count, 3), (count, 3), (count, 4), (count,)]
    for name, array, shape in zip(fields, arrays, wanted):
        if array.shape != shape:
            raise ValueError(f"render: {name} has shape {array.shape}; {shape} is needed")
    colours = arrays[4]
    if colours.ndim != 3 or len(colours) != count or colours.shape[2] != 3:
        raise ValueError(
            f"render: {fields[4]} has shape {colours.shape}; ({count}, coefficients, 3) is needed"
        )
    if colours.shape[1] not in (1, 4, 9, 16):
        raise ValueError(
            f"render: {fields[4]} has {colours.shape[1]} coefficients, not 1, 4, 9 or 16"
        )
    if not 0 <= dilation < np.inf:
        raise ValueError(f"render: dilation is {dilation}; 0 or more is needed")
    if not 0 < near < np.inf:
        raise ValueError(f"render: near is {near}; a depth above 0 is needed")
    means, scales, rotations, opacities, _ = arrays
    kind, row = splatting.first_bad(means, scales, rotations, opacities, colours)
    if kind < 0:
        return
    field = (0, 1, 2, 3, 4, 1, 2, 3)[kind]
    value = np.array2string(arrays[field][row].ravel()[:12], precision=6)
    need = "finite numbers are needed"
    if kind > 4:
        need = (
            "0 or more is needed (linear, no logarithms)",
            "a quaternion wxyz other than zero is needed",
            "0 to 1 is needed (no logits)",
        )[kind - 5]
    raise ValueError(f"render: {fields[field]}[{row}] is {value}; {need}")


def project_arrays(
    arrays: list[Float32],
    plain: bool,
    pose: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    width: int,
    height: int,
    dilation: float,
    near: float,
) -> Projected:
    """`project_gaussians` on checked arrays (see `check`). pose: (3 or 4, 4) camera-from-world,
    rigid. plain: colours (N, 1, 3) are display sRGB rather than spherical harmonics."""
    count = len(arrays[0])
    splats = np.empty((count, splatting.SPLAT_SIZE), np.float32)
    shades, boxes = np.empty((count, 3), np.float32), np.empty((count, 4), np.int32)
    pose, center, lens, size = camera_arrays(pose, intrinsics, width, height)
    in_parallel(
        lambda start, stop: splatting.project(  # type: ignore[call-arg]
            start, stop, *arrays, plain, pose, center, lens, size, float(dilation), float(near),
            splats, shades, boxes,
        ),
        count,
    )  # fmt: skip
    tiles_x, tiles_y = -(-width // tiles.TILE), -(-height // tiles.TILE)
    first = np.empty(count + 1, np.int64)
    per_tile = np.empty(tiles_x * tiles_y + 1, np.int64)
    tiles.count_pairs(boxes, tiles_x, first, per_tile)
    drawn = np.flatnonzero((boxes[:, 1] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 2]))
    drawn = drawn[_nearest_first(splats[drawn, splatting.Z])]
    # take, not indexing: ten times faster for rows.
    splats, shades = splats.take(drawn, axis=0), shades.take(drawn, axis=0)
    boxes = boxes.take(drawn, axis=0)
    listed = np.empty(first[-1], np.int32)
    tiles.list_pairs(boxes, tiles_x, per_tile[:-1].copy(), listed)
    return Projected(width, height, count, drawn, splats, shades, boxes, first, per_tile, listed)


def camera_arrays(
    pose: NDArray[np.float64], intrinsics: NDArray[np.float64], width: int, height: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """What the compiled loops want of a camera: pose (3, 4), centre (3,), fx fy cx cy, and size."""
    pose = np.array(pose[:3], np.float64, order="C")
    lens = np.array([intrinsics[k] for k in ((0, 0), (1, 1), (0, 2), (1, 2))], np.float64)
    return pose, -pose[:, :3].T @ pose[:, 3], lens, np.array([width, height], np.int64)


def project_gaussians(
    gaussians: Gaussians, camera: Camera, *, dilation: float = DILATION, near: float = NEAR
) -> Projected:
    """Gaussians as a camera sees them, to be rendered and gathered many times in other colours.

    Args, errors: as for render.
    """
    # Writable, because arrays that are not are another type, which would be compiled again.
    arrays = [np.require(getattr(gaussians, name), np.float32, ["C", "W"]) for name in _FIELDS]
    check(arrays, dilation, near)
    return project_arrays(
        arrays, False, camera.camera_from_world, camera.intrinsics, camera.width, camera.height,
        dilation, near,
    )  # fmt: skip


def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: ArrayLike = (0.0, 0.0, 0.0),
    dilation: float = DILATION,
    near: float = NEAR,
) -> Rendered:
    """The picture that a camera sees of Gaussians.

    Args:
        gaussians: N of them in the camera's world frame; spherical harmonics of degree 0 to 3.
        camera: gives the picture's size; pixel centres lie at +0.5.
        background: (3,) display sRGB behind everything.
        dilation: px^2 added to both screen variances (3DGS viewers use 0.3).
        near: Gaussians whose centre lies nearer are not drawn, scene units.

    Raises:
        ValueError: naming the field and the value, for spherical harmonics above degree 3, a
            negative dilation, shapes that do not fit, values that are not finite, negative scales,
            zero quaternions and opacities outside [0, 1].
    """
    return project_gaussians(gaussians, camera, dilation=dilation, near=near).render(background)
