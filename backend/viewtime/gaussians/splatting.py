# SPDX-License-Identifier: Apache-2.0
"""Gaussians to screen-space splats (EWA) and the way back of their gradients, in compiled loops.

Never blends; colours are display sRGB, and nothing here knows torch.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .harmonics import basis

MIN_ALPHA = 1.0 / 255.0
"""A splat contributes to a pixel from this alpha on; it bounds the splat's pixel box as well."""
MARGIN = 0.15
"""As in 3DGS, the affine approximation is taken no further out than this share of the picture's
width and height beyond each border."""

U, V, A, B, C, OPACITY, Z, REACH = 0, 1, 2, 3, 4, 5, 6, 7
"""Columns of a splat: centre, conic (inverse screen covariance), opacity, depth, and the exponent
ln(opacity / MIN_ALPHA) up to which it counts."""
SPLAT_SIZE = 8
GRAD_SIZE = 10
"""Columns of a splat's gradient: U, V, A, B, C, OPACITY, Z as above, then red, green, blue."""


@njit(cache=True, nogil=True)
def first_bad(means, scales, rotations, opacities, colours):
    """(field, row) of the first value that cannot be drawn, (-1, -1) where all can. Fields: 0 to 4
    not finite in the order of the arguments, 5 negative scale, 6 zero rotation, 7 opacity outside
    [0, 1]."""
    for i in range(means.shape[0]):
        total, scale, colour = 0.0, 0.0, 0.0
        smallest = 0.0
        for k in range(3):
            total += means[i, k]
            scale += scales[i, k]
            smallest = min(smallest, scales[i, k])
        q = 0.0
        for k in range(4):
            q += rotations[i, k] * rotations[i, k]
        for k in range(colours.shape[1]):
            for c in range(3):
                colour += colours[i, k, c]
        if not np.isfinite(total):
            return 0, i
        if not np.isfinite(scale):
            return 1, i
        if not np.isfinite(q):
            return 2, i
        if not np.isfinite(opacities[i]):
            return 3, i
        if not np.isfinite(colour):
            return 4, i
        if smallest < 0:
            return 5, i
        if q < 1e-24:
            return 6, i
        if opacities[i] < -1e-6 or opacities[i] > 1 + 1e-6:
            return 7, i
    return -1, -1


@njit(cache=True, nogil=True, error_model="numpy")
def _frame(q0, q1, q2, q3, pose, out):
    """Fill out (4, 3): the Gaussian's axes in camera axes as columns of rows 0..2, and out[3, 0]
    the quaternion's length."""
    length = math.sqrt(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3)
    w, x, y, z = q0 / length, q1 / length, q2 / length, q3 / length
    r00, r01, r02 = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    r10, r11, r12 = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    r20, r21, r22 = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    for r in range(3):
        p0, p1, p2 = pose[r, 0], pose[r, 1], pose[r, 2]
        out[r, 0] = p0 * r00 + p1 * r10 + p2 * r20
        out[r, 1] = p0 * r01 + p1 * r11 + p2 * r21
        out[r, 2] = p0 * r02 + p1 * r12 + p2 * r22
    out[3, 0] = length


@njit(cache=True, nogil=True, error_model="numpy")
def project(
    start, stop, means, scales, rotations, opacities, colours, plain, pose, center, lens, size,
    dilation, near, splats, shades, boxes,
):  # fmt: skip
    """Fill splats[start:stop] (8 columns, see U..REACH), shades (r, g, b) and boxes (x0, x1, y0,
    y1).

    colours (N, K, 3): spherical harmonics, or with `plain` (K = 1) the colours themselves. A box
    with x1 <= x0 marks a Gaussian that is not drawn. Ellipses are bounded exactly, at the alpha
    that still counts.
    """
    fx, fy, cx, cy = lens[0], lens[1], lens[2], lens[3]
    width, height = size[0], size[1]
    low_u, high_u = -cx / fx - MARGIN * width / fx, (width - cx) / fx + MARGIN * width / fx
    low_v, high_v = -cy / fy - MARGIN * height / fy, (height - cy) / fy + MARGIN * height / fy
    axes, harmonics = np.empty((4, 3)), np.empty((16, 4))
    count = colours.shape[1]
    for i in range(start, stop):
        boxes[i, 0] = boxes[i, 1] = boxes[i, 2] = boxes[i, 3] = 0
        mx, my, mz = means[i, 0], means[i, 1], means[i, 2]
        z = pose[2, 0] * mx + pose[2, 1] * my + pose[2, 2] * mz + pose[2, 3]
        splats[i, Z] = z
        opacity = min(opacities[i], np.float32(1))
        if not z > near or not opacity > np.float32(MIN_ALPHA):
            continue
        x = pose[0, 0] * mx + pose[0, 1] * my + pose[0, 2] * mz + pose[0, 3]
        y = pose[1, 0] * mx + pose[1, 1] * my + pose[1, 2] * mz + pose[1, 3]
        u, v = fx * x / z + cx, fy * y / z + cy
        tu, tv = min(max(x / z, low_u), high_u), min(max(y / z, low_v), high_v)
        _frame(rotations[i, 0], rotations[i, 1], rotations[i, 2], rotations[i, 3], pose, axes)
        # Screen-space half axes (x, y) of the ellipsoid; the covariance sums their squares.
        x0 = scales[i, 0] * fx * (axes[0, 0] - tu * axes[2, 0]) / z
        y0 = scales[i, 0] * fy * (axes[1, 0] - tv * axes[2, 0]) / z
        x1 = scales[i, 1] * fx * (axes[0, 1] - tu * axes[2, 1]) / z
        y1 = scales[i, 1] * fy * (axes[1, 1] - tv * axes[2, 1]) / z
        x2 = scales[i, 2] * fx * (axes[0, 2] - tu * axes[2, 2]) / z
        y2 = scales[i, 2] * fy * (axes[1, 2] - tv * axes[2, 2]) / z
        xx, yy = x0 * x0 + x1 * x1 + x2 * x2, y0 * y0 + y1 * y1 + y2 * y2
        xy = x0 * y0 + x1 * y1 + x2 * y2
        # The determinant from cross products, which thin ellipses do not cancel away.
        c01, c02, c12 = x0 * y1 - x1 * y0, x0 * y2 - x2 * y0, x1 * y2 - x2 * y1
        determinant = c01 * c01 + c02 * c02 + c12 * c12 + dilation * (xx + yy + dilation)
        xx, yy = xx + dilation, yy + dilation
        if not determinant > 0:
            continue
        reach = math.log(opacity / MIN_ALPHA)
        rx, ry = math.sqrt(2 * reach * xx), math.sqrt(2 * reach * yy)
        if not (u + rx > 0 and u - rx < width and v + ry > 0 and v - ry < height):
            continue
        boxes[i, 0] = max(0, int(math.ceil(max(u - rx - 0.5, 0.0))))
        boxes[i, 1] = int(min(math.floor(u + rx - 0.5) + 1, width))
        boxes[i, 2] = max(0, int(math.ceil(max(v - ry - 0.5, 0.0))))
        boxes[i, 3] = int(min(math.floor(v + ry - 0.5) + 1, height))
        splats[i, U], splats[i, V] = u, v
        splats[i, A], splats[i, B], splats[i, C] = (
            yy / determinant,
            -xy / determinant,
            xx / determinant,
        )
        splats[i, OPACITY], splats[i, REACH] = opacity, reach
        if plain:
            for c in range(3):
                shades[i, c] = colours[i, 0, c]
            continue
        dx, dy, dz = mx - center[0], my - center[1], mz - center[2]
        length = math.sqrt(dx * dx + dy * dy + dz * dz)
        basis(dx / length, dy / length, dz / length, count, harmonics)
        for c in range(3):
            value = 0.5
            for k in range(count):
                value += harmonics[k, 0] * colours[i, k, c]
            shades[i, c] = max(value, 0.0)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def project_backward(
    start, stop, first, pairs, means, scales, rotations, colours, plain, pose,
    center, lens, size, dilation, d_means, d_scales, d_rotations, d_opacities, d_colours,
):  # fmt: skip
    """Add the gradients of splats to those of their Gaussians start..stop.

    pairs[first[i]:first[i + 1]] (10 columns, see GRAD_SIZE) are those of Gaussian i's splat from
    the tiles it touches. Everything else is computed again as in `project`.
    """
    fx, fy, cx, cy = lens[0], lens[1], lens[2], lens[3]
    width, height = size[0], size[1]
    low_u, high_u = -cx / fx - MARGIN * width / fx, (width - cx) / fx + MARGIN * width / fx
    low_v, high_v = -cy / fy - MARGIN * height / fy, (height - cy) / fy + MARGIN * height / fy
    axes, harmonics, g = np.empty((4, 3)), np.empty((16, 4)), np.empty(GRAD_SIZE)
    tx, ty, d_axes, r = np.empty(3), np.empty(3), np.empty((3, 3)), np.empty((3, 3))
    count = colours.shape[1]
    for i in range(start, stop):
        if first[i] == first[i + 1]:
            continue
        seen = False
        for k in range(GRAD_SIZE):
            g[k] = 0.0
        for p in range(first[i], first[i + 1]):
            for k in range(GRAD_SIZE):
                g[k] += pairs[p, k]
        for k in range(GRAD_SIZE):
            seen = seen or g[k] != 0.0
        if not seen:
            continue
        mx, my, mz = means[i, 0], means[i, 1], means[i, 2]
        x = pose[0, 0] * mx + pose[0, 1] * my + pose[0, 2] * mz + pose[0, 3]
        y = pose[1, 0] * mx + pose[1, 1] * my + pose[1, 2] * mz + pose[1, 3]
        z = pose[2, 0] * mx + pose[2, 1] * my + pose[2, 2] * mz + pose[2, 3]
        near, kx, ky = 1 / z, fx / z, fy / z
        slope_u, slope_v = x * near, y * near
        tu, tv = min(max(slope_u, low_u), high_u), min(max(slope_v, low_v), high_v)
        _frame(rotations[i, 0], rotations[i, 1], rotations[i, 2], rotations[i, 3], pose, axes)
        for k in range(3):
            tx[k] = kx * (axes[0, k] - tu * axes[2, k])
            ty[k] = ky * (axes[1, k] - tv * axes[2, k])
        xx, yy, xy = dilation, dilation, 0.0
        determinant = dilation * dilation
        for k in range(3):
            sk = scales[i, k]
            xx, yy, xy = (
                xx + (sk * tx[k]) ** 2,
                yy + (sk * ty[k]) ** 2,
                xy + sk * sk * tx[k] * ty[k],
            )
            determinant += dilation * sk * sk * (tx[k] * tx[k] + ty[k] * ty[k])
            for other in range(k):
                cross = tx[other] * ty[k] - tx[k] * ty[other]
                determinant += (sk * scales[i, other] * cross) ** 2
        scale = 1 / determinant
        a, b, c = yy * scale, -xy * scale, xx * scale
        # d inverse: minus conic times gradient times conic, all symmetric.
        ga, gb, gc = g[A], 0.5 * g[B], g[C]
        h00, h01 = ga * a + gb * b, ga * b + gb * c
        h10, h11 = gb * a + gc * b, gb * b + gc * c
        s00, s11 = -(a * h00 + b * h10), -(b * h01 + c * h11)
        s01 = -(a * h01 + b * h11)
        # Through the half axes s t_k to scales, axes and the slopes of the projection.
        d_tu = d_tv = 0.0
        dz = g[Z] - (g[U] * kx * slope_u + g[V] * ky * slope_v)
        for k in range(3):
            sk = scales[i, k]
            wx, wy = 2 * (s00 * tx[k] + s01 * ty[k]), 2 * (s01 * tx[k] + s11 * ty[k])
            d_scales[i, k] += sk * (wx * tx[k] + wy * ty[k])
            wx, wy = wx * sk * sk, wy * sk * sk
            d_axes[0, k], d_axes[1, k] = wx * kx, wy * ky
            d_axes[2, k] = -(wx * kx * tu + wy * ky * tv)
            d_tu -= wx * kx * axes[2, k]
            d_tv -= wy * ky * axes[2, k]
            dz -= (wx * tx[k] + wy * ty[k]) * near
        dx, dy = g[U] * kx, g[V] * ky
        if low_u < slope_u < high_u:
            dx, dz = dx + d_tu * near, dz - d_tu * slope_u * near
        if low_v < slope_v < high_v:
            dy, dz = dy + d_tv * near, dz - d_tv * slope_v * near
        gx = pose[0, 0] * dx + pose[1, 0] * dy + pose[2, 0] * dz
        gy = pose[0, 1] * dx + pose[1, 1] * dy + pose[2, 1] * dz
        gz = pose[0, 2] * dx + pose[1, 2] * dy + pose[2, 2] * dz
        if plain:
            for ch in range(3):
                d_colours[i, 0, ch] += g[7 + ch]
        else:
            vx, vy, vz = mx - center[0], my - center[1], mz - center[2]
            length = math.sqrt(vx * vx + vy * vy + vz * vz)
            vx, vy, vz = vx / length, vy / length, vz / length
            basis(vx, vy, vz, count, harmonics)
            sx = sy = sz = 0.0
            for ch in range(3):
                value = 0.5
                for k in range(count):
                    value += harmonics[k, 0] * colours[i, k, ch]
                if value <= 0:  # clamped
                    continue
                for k in range(count):
                    d_colours[i, k, ch] += g[7 + ch] * harmonics[k, 0]
                    weight = g[7 + ch] * colours[i, k, ch]
                    sx += weight * harmonics[k, 1]
                    sy += weight * harmonics[k, 2]
                    sz += weight * harmonics[k, 3]
            along = sx * vx + sy * vy + sz * vz
            gx += (sx - along * vx) / length
            gy += (sy - along * vy) / length
            gz += (sz - along * vz) / length
        d_means[i, 0] += gx
        d_means[i, 1] += gy
        d_means[i, 2] += gz
        d_opacities[i] += g[OPACITY]
        _turn_backward(i, rotations, axes[3, 0], pose, d_axes, r, d_rotations)


@njit(cache=True, nogil=True, error_model="numpy")
def _turn_backward(i, rotations, length, pose, d_axes, r, d_rotations):
    """Gradient of the axes in the camera (3, 3) to the quaternion, which is normalised inside.
    r (3, 3) is scratch."""
    w, x = rotations[i, 0] / length, rotations[i, 1] / length
    y, z = rotations[i, 2] / length, rotations[i, 3] / length
    for row in range(3):
        for k in range(3):
            r[row, k] = (
                pose[0, row] * d_axes[0, k]
                + pose[1, row] * d_axes[1, k]
                + pose[2, row] * d_axes[2, k]
            )
    dw = 2 * (x * (r[2, 1] - r[1, 2]) + y * (r[0, 2] - r[2, 0]) + z * (r[1, 0] - r[0, 1]))
    dx = 2 * (
        y * (r[0, 1] + r[1, 0])
        + z * (r[0, 2] + r[2, 0])
        + w * (r[2, 1] - r[1, 2])
        - 2 * x * (r[1, 1] + r[2, 2])
    )
    dy = 2 * (
        x * (r[0, 1] + r[1, 0])
        + z * (r[1, 2] + r[2, 1])
        + w * (r[0, 2] - r[2, 0])
        - 2 * y * (r[0, 0] + r[2, 2])
    )
    dz = 2 * (
        x * (r[0, 2] + r[2, 0])
        + y * (r[1, 2] + r[2, 1])
        + w * (r[1, 0] - r[0, 1])
        - 2 * z * (r[0, 0] + r[1, 1])
    )
    along = w * dw + x * dx + y * dy + z * dz
    d_rotations[i, 0] += (dw - along * w) / length
    d_rotations[i, 1] += (dx - along * x) / length
    d_rotations[i, 2] += (dy - along * y) / length
    d_rotations[i, 3] += (dz - along * z) / length
