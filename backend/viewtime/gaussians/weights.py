# SPDX-License-Identifier: Apache-2.0
"""How much of each pixel each Gaussian shows, kept: pictures are linear in the colours, so that
many rounds in other colours cost no blending. Never looks at a colour itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Camera

from . import tiles
from .parallel import in_parallel
from .raster_cpu import DILATION, NEAR, PIECES, Projected, project_gaussians
from .tiles import AREA, TILE

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Weights:
    """Alpha times transmittance of every Gaussian at every pixel where it counts, of one camera.

    Entries lie tile by tile and there pair by pair: pair n of the tiles' lists has length[n] of
    them from begin[n] on, each a place in its tile (uint8, y * 16 + x) and a weight. through (H, W)
    is what is left for the background.
    """

    view: Projected
    begin: NDArray[np.int64]
    length: NDArray[np.int32]
    places: NDArray[np.uint8]
    weights: Float32
    through: Float32

    def show(self, colours: ArrayLike) -> Float32:
        """(H, W, 3): the sum over Gaussians of weight x colours (N, 3), without background."""
        view, shades = self.view, _rows(colours, (self.view.count, 3), "show: colours")
        out = np.empty((view.height, view.width, 3), np.float32)
        in_parallel(
            lambda start, stop: _show(
                start, stop, view.tiles_x, view.per_tile, view.listed, view.drawn, self.begin,
                self.length, self.places, self.weights, shades, out,
            ),
            len(view.per_tile) - 1,
            PIECES,
        )  # fmt: skip
        return out

    def gather(self, picture: ArrayLike) -> tuple[Float32, Float32]:
        """The adjoint of `show`: sums (N, 3) of weight x picture (H, W, 3), and of weight (N,)."""
        view = self.view
        pixels = _rows(picture, (view.height, view.width, 3), "gather: picture")
        # Every pair of splat and tile sums up apart, and then in one order, so that the sum is the
        # same to the last bit for any number of threads.
        pairs = np.empty((len(view.listed), 4), np.float32)
        in_parallel(
            lambda start, stop: _gather(
                start, stop, view.tiles_x, view.per_tile, view.listed, view.drawn, view.first,
                view.boxes, self.begin, self.length, self.places, self.weights, pixels, pairs,
            ),
            len(view.per_tile) - 1,
            PIECES,
        )  # fmt: skip
        total = np.empty((view.count, 4), np.float32)
        in_parallel(
            lambda start, stop: tiles.sum_pairs(start, stop, view.first, pairs, total), view.count
        )
        return total[:, :3], total[:, 3]


def weigh(view: Projected) -> Weights:
    """The weights of all Gaussians in a camera's pixels. About 5 bytes for each pixel that a
    Gaussian's box covers: some 10 MB at 256 x 256 for a splat to the pixel."""
    tile_count = len(view.per_tile) - 1
    room = np.zeros(tile_count + 1, np.int64)
    _room(view.boxes, view.tiles_x, view.per_tile, view.listed, room)
    begin, length = np.zeros(len(view.listed), np.int64), np.zeros(len(view.listed), np.int32)
    places, weights = np.empty(room[-1], np.uint8), np.empty(room[-1], np.float32)
    through = np.empty((view.height, view.width), np.float32)
    in_parallel(
        lambda start, stop: _weigh(
            start, stop, view.tiles_x, view.per_tile, view.listed, view.splats, view.boxes, room,
            begin, length, places, weights, through,
        ),
        tile_count,
        PIECES,
    )  # fmt: skip
    return Weights(view, begin, length, places, weights, through)


def gather_colour(
    gaussians: Gaussians,
    camera: Camera,
    picture: ArrayLike,
    *,
    dilation: float = DILATION,
    near: float = NEAR,
) -> tuple[Float32, Float32]:
    """The adjoint of `render` in its colours: what a picture says to each Gaussian.

    A pixel of `render` is the sum over Gaussians of weight x colour, where the weight is alpha
    times transmittance; this is the sum over pixels of the same weight x picture.

    Args:
        gaussians, camera, dilation, near: as for render.
        picture: (H, W, 3), a residual or a gradient with respect to the colour.

    Returns:
        sums (N, 3) and the weights' own sums (N,), both 0 for Gaussians that the camera misses.

    Raises:
        ValueError: as render, and when the picture is not of the camera's size.
    """
    return weigh(project_gaussians(gaussians, camera, dilation=dilation, near=near)).gather(picture)


def _rows(values: ArrayLike, shape: tuple[int, ...], what: str) -> Float32:
    array = np.require(values, np.float32, ["C", "W"])
    if array.shape != shape:
        raise ValueError(f"{what} has shape {array.shape}; {shape} is needed")
    return array


@njit(cache=True, nogil=True)
def _room(boxes, tiles_x, per_tile, listed, room):
    """Fill room (tiles + 1): running sums of the pixels that boxes cover, at most AREA a pair."""
    for tile in range(per_tile.shape[0] - 1):
        top, left = tile // tiles_x * TILE, tile % tiles_x * TILE
        total = 0
        for n in range(per_tile[tile], per_tile[tile + 1]):
            i = listed[n]
            x0, x1 = max(boxes[i, 0] - left, 0), min(boxes[i, 1] - left, TILE)
            y0, y1 = max(boxes[i, 2] - top, 0), min(boxes[i, 3] - top, TILE)
            total += (x1 - x0) * (y1 - y0)
        room[tile + 1] = room[tile] + total


@njit(cache=True, nogil=True, fastmath=True)
def _weigh(
    start, stop, tiles_x, per_tile, listed, splats, boxes, room, begin, length, places, weights,
    through,
):  # fmt: skip
    """Fill begin, length, places, weights and through for tiles start..stop."""
    height, width = through.shape
    s = tiles.new_tile()  # planes: transmittance (negative once finished), this splat's weights
    for tile in range(start, stop):
        top, left = tile // tiles_x * TILE, tile % tiles_x * TILE
        rows, columns = min(TILE, height - top), min(TILE, width - left)
        tiles.open_tile(s, rows, columns)
        e = room[tile]
        for n in range(per_tile[tile], per_tile[tile + 1]):
            begin[n], length[n] = e, 0
            if (n - per_tile[tile]) % 32 == 31 and not tiles.alive(s):
                for rest in range(n, per_tile[tile + 1]):
                    begin[rest], length[rest] = e, 0
                break
            i = listed[n]
            tiles.weigh_splat(i, top, left, splats, boxes, s)
            x0, x1 = max(boxes[i, 0] - left, 0), min(boxes[i, 1] - left, TILE)
            for y in range(max(boxes[i, 2] - top, 0), min(boxes[i, 3] - top, TILE)):
                for x in range(x0, x1):
                    weight = s[AREA + y * TILE + x]
                    if weight > 0:
                        places[e], weights[e] = y * TILE + x, weight
                        e += 1
            length[n] = e - begin[n]
        for y in range(rows):
            for x in range(columns):
                through[top + y, left + x] = abs(s[y * TILE + x])


@njit(cache=True, nogil=True)
def _show(
    start, stop, tiles_x, per_tile, listed, drawn, begin, length, places, weights, colours, out
):
    height, width = out.shape[:2]
    s = np.empty((AREA, 3), np.float32)
    for tile in range(start, stop):
        top, left = tile // tiles_x * TILE, tile % tiles_x * TILE
        s[:] = 0
        for n in range(per_tile[tile], per_tile[tile + 1]):
            i = drawn[listed[n]]
            red, green, blue = colours[i, 0], colours[i, 1], colours[i, 2]
            for e in range(begin[n], begin[n] + length[n]):
                k, weight = places[e], weights[e]
                s[k, 0] += weight * red
                s[k, 1] += weight * green
                s[k, 2] += weight * blue
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                for c in range(3):
                    out[top + y, left + x, c] = s[y * TILE + x, c]


@njit(cache=True, nogil=True)
def _gather(
    start, stop, tiles_x, per_tile, listed, drawn, first, boxes, begin, length, places, weights,
    picture, pairs,
):  # fmt: skip
    height, width = picture.shape[:2]
    s = np.zeros((AREA, 3), np.float32)
    for tile in range(start, stop):
        top, left = tile // tiles_x * TILE, tile % tiles_x * TILE
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                for c in range(3):
                    s[y * TILE + x, c] = picture[top + y, left + x, c]
        for n in range(per_tile[tile], per_tile[tile + 1]):
            red = green = blue = total = np.float32(0)
            for e in range(begin[n], begin[n] + length[n]):
                k, weight = places[e], weights[e]
                red += weight * s[k, 0]
                green += weight * s[k, 1]
                blue += weight * s[k, 2]
                total += weight
            at = tiles.slot(listed[n], tile, tiles_x, boxes, drawn, first)
            pairs[at, 0], pairs[at, 1], pairs[at, 2], pairs[at, 3] = red, green, blue, total
