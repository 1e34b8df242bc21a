# SPDX-License-Identifier: Apache-2.0
"""Depth-sorted splats blended into tiles of 16 x 16 pixels, and the gradients of that.

Each tile is one flat array of planes, so that the compiler turns the inner loops into vector code.
Front to back as gsplat does: a splat counts from alpha 1/255 on, alpha is at most 0.999, and a
pixel is finished before the splat that would leave it a transmittance of 1e-4 or less.
"""

from __future__ import annotations

import numpy as np
from numba import njit

TILE = 16
AREA = TILE * TILE
MAX_ALPHA = np.float32(0.999)
OPAQUE = np.float32(1e-4)
"""A pixel takes no more splats once the next one would leave this much transmittance or less."""

_F = np.float32
_ZERO, _ONE, _HALF = _F(0), _F(1), _F(0.5)
# exp(-p) for p in 0..ln 255 is (exp(-p / 16))^16; a polynomial of degree 5 fitted to 0..0.36 is
# within 4e-9 of it. Written out because a call to exp would keep the loops from being vectorised.
_CAP, _PART = _F(5.7), _F(1 / 16)
_E1, _E2, _E3 = _F(-0.99999968), _F(0.49999092), _F(-0.16656469)
_E4, _E5 = _F(0.04112661), _F(-0.00696927)
# Planes of a tile. X and Y hold the pixels' places; the others differ between the loops.
_N = np.uint64(AREA)
_P1, _P2, _P3, _P4, _P5, _P6 = (np.uint64(k * AREA) for k in range(1, 7))
_X, _Y = np.uint64(7 * AREA), np.uint64(8 * AREA)
_PLANES = 9


@njit(inline="always", fastmath=True)
def _fade(p):
    q = min(p, _CAP) * _PART
    e = _ONE + q * (_E1 + q * (_E2 + q * (_E3 + q * (_E4 + q * _E5))))
    e = e * e
    e = e * e
    e = e * e
    return e * e


@njit(cache=True, nogil=True)
def count_pairs(boxes, tiles_x, first, per_tile):
    """Tiles that each Gaussian touches, as running sums: first (N + 1) over Gaussians, per_tile
    (tiles + 1) over tiles. Empty boxes touch none."""
    first[0] = 0
    per_tile[:] = 0
    for i in range(boxes.shape[0]):
        first[i + 1] = first[i]
        if boxes[i, 1] <= boxes[i, 0] or boxes[i, 3] <= boxes[i, 2]:
            continue
        x0, x1 = boxes[i, 0] // TILE, (boxes[i, 1] - 1) // TILE
        y0, y1 = boxes[i, 2] // TILE, (boxes[i, 3] - 1) // TILE
        first[i + 1] += (x1 - x0 + 1) * (y1 - y0 + 1)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                per_tile[y * tiles_x + x + 1] += 1
    for tile in range(per_tile.shape[0] - 1):
        per_tile[tile + 1] += per_tile[tile]


@njit(cache=True, nogil=True)
def list_pairs(boxes, tiles_x, place, listed):
    """Fill listed: the splats of each tile in order. place (tiles,) begins at each tile's start."""
    for i in range(boxes.shape[0]):
        for y in range(boxes[i, 2] // TILE, (boxes[i, 3] - 1) // TILE + 1):
            for x in range(boxes[i, 0] // TILE, (boxes[i, 1] - 1) // TILE + 1):
                tile = y * tiles_x + x
                listed[place[tile]] = i
                place[tile] += 1


@njit(cache=True, nogil=True)
def new_tile():
    """The planes of a tile; X and Y are set, the rest is 0."""
    s = np.zeros(_PLANES * AREA, np.float32)
    for k in range(AREA):
        s[7 * AREA + k] = _F(k % TILE)
        s[8 * AREA + k] = _F(k // TILE)
    return s


@njit(cache=True, nogil=True)
def open_tile(s, rows, columns):
    """Transmittance 1 inside the picture, finished outside, all sums 0."""
    s[: 6 * AREA] = 0
    for y in range(TILE):
        for x in range(TILE):
            s[y * TILE + x] = _ONE if y < rows and x < columns else -_ONE


@njit(cache=True, nogil=True)
def alive(s):
    """Whether any pixel of a tile takes more splats."""
    most = _ZERO
    for k in range(AREA):
        most = max(most, s[k])
    return most > _ZERO


@njit(cache=True, nogil=True, fastmath=True)
def blend(start, stop, tiles_x, per_tile, listed, splats, shades, boxes, out, last):
    """Blend tiles start..stop into out (H, W, 5): r, g, b, z, transmittance, and last (H, W): how
    many of the tile's list were looked at until the pixel's last contribution."""
    height, width = last.shape
    s = new_tile()  # planes: transmittance (negative once finished), r, g, b, z, last
    for tile in range(start, stop):
        top, left = tile // tiles_x * TILE, tile % tiles_x * TILE
        rows, columns = min(TILE, height - top), min(TILE, width - left)
        open_tile(s, rows, columns)
        begin = per_tile[tile]
        for n in range(begin, per_tile[tile + 1]):
            if (n - begin) % 32 == 31 and not alive(s):
                break
            i = listed[n]
            u, v = splats[i, 0] - _HALF - _F(left), splats[i, 1] - _HALF - _F(top)
            a, b, c = _HALF * splats[i, 2], splats[i, 3], _HALF * splats[i, 4]
            opacity, z, reach = splats[i, 5], splats[i, 6], splats[i, 7]
            red, green, blue = shades[i, 0], shades[i, 1], shades[i, 2]
            place = _F(n - begin + 1)
            y0, y1 = max(boxes[i, 2] - top, 0), min(boxes[i, 3] - top, TILE)
            for at in range(y0 * TILE, y1 * TILE):
                j = np.uint64(at)
                dx, dy = s[j + _X] - u, s[j + _Y] - v
                p = (a * dx + b * dy) * dx + c * dy * dy
                alpha = min(opacity * _fade(p), MAX_ALPHA)
                through = s[j]
                after = through - through * alpha
                hit = (p <= reach) & (through > _ZERO)
                counts = hit & (after > OPAQUE)
                weight = through * alpha if counts else _ZERO
                s[j] = after if counts else (-through if hit else through)
                s[j + _P1] += weight * red
                s[j + _P2] += weight * green
                s[j + _P3] += weight * blue
                s[j + _P4] += weight * z
                s[j + _P5] = place if counts else s[j + _P5]
        for y in range(rows):
            for x in range(columns):
                k = y * TILE + x
                for q in range(4):
                    out[top + y, left + x, q] = s[(q + 1) * AREA + k]
                out[top + y, left + x, 4] = abs(s[k])
                last[top + y, left + x] = int(s[5 * AREA + k])


@njit(cache=True, nogil=True)
def slot(i, tile, tiles_x, boxes, drawn, first):
    """Where the pair of splat i and a tile lies among the pairs of its Gaussian."""
    x0, x1 = boxes[i, 0] // TILE, (boxes[i, 1] - 1) // TILE
    row, column = tile // tiles_x - boxes[i, 2] // TILE, tile % tiles_x - x0
    return first[drawn[i]] + row * (x1 - x0 + 1) + column


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")  # no check of the divisor
def blend_backward(
    start, stop, tiles_x, per_tile, listed, drawn, first, splats, shades, boxes, out, last, d_out,
    pairs,
):  # fmt: skip
    """Gradients of splats from d_out (H, W, 5), the gradient of `blend`'s out, into pairs (P, 10):
    U, V, A, B, C, opacity, z, r, g, b. Walks each tile's list back to front."""
    height, width = last.shape
    s = new_tile()  # planes: transmittance, what lies behind, d r, d g, d b, d z, last
    for tile in range(start, stop):
        top, left = tile // tiles_x * TILE, tile % tiles_x * TILE
        rows, columns = min(TILE, height - top), min(TILE, width - left)
        s[: 7 * AREA] = 0
        deepest = 0
        for y in range(rows):
            for x in range(columns):
                k = y * TILE + x
                s[k] = out[top + y, left + x, 4]
                s[AREA + k] = s[k] * d_out[top + y, left + x, 4]
                for q in range(4):
                    s[(q + 2) * AREA + k] = d_out[top + y, left + x, q]
                s[6 * AREA + k] = _F(last[top + y, left + x])
                deepest = max(deepest, last[top + y, left + x])
        begin = per_tile[tile]
        for n in range(begin + deepest - 1, begin - 1, -1):
            i = listed[n]
            u, v = splats[i, 0] - _HALF - _F(left), splats[i, 1] - _HALF - _F(top)
            a, b, c = _HALF * splats[i, 2], splats[i, 3], _HALF * splats[i, 4]
            opacity, z, reach = splats[i, 5], splats[i, 6], splats[i, 7]
            red, green, blue = shades[i, 0], shades[i, 1], shades[i, 2]
            place = _F(n - begin + 1)
            d_red = d_green = d_blue = d_z = _ZERO
            m00 = m10 = m01 = m20 = m11 = m02 = _ZERO
            y0, y1 = max(boxes[i, 2] - top, 0), min(boxes[i, 3] - top, TILE)
            for at in range(y0 * TILE, y1 * TILE):
                j = np.uint64(at)
                dx, dy = s[j + _X] - u, s[j + _Y] - v
                p = (a * dx + b * dy) * dx + c * dy * dy
                raw = opacity * _fade(p)
                counts = (p <= reach) & (place <= s[j + _P6])
                alpha = min(raw, MAX_ALPHA) if counts else _ZERO
                grow = _ONE / (_ONE - alpha)
                through = s[j] * grow
                weight = through * alpha
                behind = s[j + _P1]
                gr, gg, gb, gz = s[j + _P2], s[j + _P3], s[j + _P4], s[j + _P5]
                here = red * gr + green * gg + blue * gb + z * gz
                d_alpha = through * here - behind * grow
                s[j] = through
                s[j + _P1] = behind + weight * here
                d_red += weight * gr
                d_green += weight * gg
                d_blue += weight * gb
                d_z += weight * gz
                # Gradient of the exponent; a clamped alpha passes none.
                dp = -raw * d_alpha if counts & (raw < MAX_ALPHA) else _ZERO
                m00 += dp
                m10 += dp * dx
                m01 += dp * dy
                m20 += dp * dx * dx
                m11 += dp * dx * dy
                m02 += dp * dy * dy
            k = slot(i, tile, tiles_x, boxes, drawn, first)
            pairs[k, 0] = -(_F(2) * a * m10 + b * m01)
            pairs[k, 1] = -(b * m10 + _F(2) * c * m01)
            pairs[k, 2], pairs[k, 3], pairs[k, 4] = _HALF * m20, m11, _HALF * m02
            pairs[k, 5] = -m00 / opacity
            pairs[k, 6] = d_z
            pairs[k, 7], pairs[k, 8], pairs[k, 9] = d_red, d_green, d_blue


@njit(cache=True, nogil=True, fastmath=True)
def weigh_splat(i, top, left, splats, boxes, s):
    """One splat's step of `blend` in a tile: its weights into plane 1 of s, in its box's rows."""
    u, v = splats[i, 0] - _HALF - _F(left), splats[i, 1] - _HALF - _F(top)
    a, b, c = _HALF * splats[i, 2], splats[i, 3], _HALF * splats[i, 4]
    opacity, reach = splats[i, 5], splats[i, 7]
    y0, y1 = max(boxes[i, 2] - top, 0), min(boxes[i, 3] - top, TILE)
    for at in range(y0 * TILE, y1 * TILE):
        j = np.uint64(at)
        dx, dy = s[j + _X] - u, s[j + _Y] - v
        p = (a * dx + b * dy) * dx + c * dy * dy
        alpha = min(opacity * _fade(p), MAX_ALPHA)
        through = s[j]
        after = through - through * alpha
        hit = (p <= reach) & (through > _ZERO)
        counts = hit & (after > OPAQUE)
        s[j] = after if counts else (-through if hit else through)
        s[j + _P1] = through * alpha if counts else _ZERO


@njit(cache=True, nogil=True)
def sum_pairs(start, stop, first, pairs, out):
    """Set rows start..stop of out (N, columns) to the sums of each Gaussian's pairs."""
    for i in range(start, stop):
        for k in range(pairs.shape[1]):
            out[i, k] = 0
        for p in range(first[i], first[i + 1]):
            for k in range(pairs.shape[1]):
                out[i, k] += pairs[p, k]
