# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures as numpy arrays: crop, resample, write as PNG. Display sRGB in and out, no colour
management anywhere; it knows nothing of Blender."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from viewtime_formats.errors import CaptureError

Box = tuple[int, int, int, int]
SAME_SHAPE = 0.01  # how much two aspect ratios may differ and still count as one


def write_png(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) float display sRGB in [0, 1] as an 8-bit RGB PNG."""
    height, width = image.shape[:2]
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).reshape(height, -1)
    # Each line as the difference from the one above: filter 2, which packs well and quickly.
    lines = np.empty((height, 1 + pixels.shape[1]), np.uint8)
    lines[:, 0] = 2
    lines[0, 1:] = pixels[0]
    lines[1:, 1:] = pixels[1:] - pixels[:-1]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 4))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Scene-linear values as display sRGB, clipped to [0, 1]; NaN becomes 0."""
    x = np.clip(np.nan_to_num(linear, nan=0.0, posinf=1.0), 0, 1)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055).astype(np.float32)


def resampled(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W, 3) to (height, width, 3): the mean over each new pixel, linear when enlarging."""
    if image.shape[:2] == (height, width):
        return image
    rows = _weights(image.shape[0], height)
    columns = _weights(image.shape[1], width)
    return np.einsum("yh,hwc->ywc", rows, np.einsum("xw,hwc->hxc", columns, image, optimize=True),
                     optimize=True)  # fmt: skip


def _weights(old: int, new: int) -> np.ndarray:
    """(new, old) float32: how much each old pixel gives to each new one; rows sum to 1."""
    if new <= old:
        edges = np.arange(new + 1) * (old / new)
        low, high = edges[:-1, None], edges[1:, None]
        pixel = np.arange(old)
        weights = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    else:
        centres = (np.arange(new) + 0.5) * (old / new) - 0.5
        weights = np.clip(
            1 - np.abs(np.clip(centres, 0, old - 1)[:, None] - np.arange(old)), 0, None
        )
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


class ShapeError(CaptureError):
    """Pictures have another aspect ratio than the render, and cropping is off."""


def fitted(name: str, size: tuple[int, int], render: tuple[int, int], crop: bool) -> Box:
    """(x, y, width, height) of what is taken of a picture of `size` for a camera whose render has
    the size `render`: all of it, or with `crop` its middle in the render's shape.

    Raises ShapeError naming both sizes when the shapes differ and `crop` is off.
    """
    width, height = size
    wanted, given = render[0] / render[1], width / height
    if abs(given / wanted - 1) <= SAME_SHAPE:
        return 0, 0, width, height
    if not crop:
        raise ShapeError(
            f"{name} is {width} x {height} pixels, the render {render[0]} x {render[1]}: another "
            "shape. Give the render the shape of the pictures, or turn on Crop to Render"
        )
    new = (
        max(1, min(width, round(height * wanted))),
        max(1, min(height, round(width / wanted))),
    )
    return (width - new[0]) // 2, (height - new[1]) // 2, *new


def fit_in_words(size: tuple[int, int], box: Box, target: tuple[int, int]) -> str:
    """ "1920 x 1080, cropped to 1080 x 1080, shrunk to 256 x 256"."""
    words = f"{size[0]} x {size[1]}"
    if box[2:] != size:
        words += f", cropped to {box[2]} x {box[3]}"
    if box[2:] != target:
        change = "shrunk" if box[2] * box[3] > target[0] * target[1] else "enlarged"
        words += f", {change} to {target[0]} x {target[1]}"
    return words


def cut(image: np.ndarray, box: Box, width: int, height: int) -> np.ndarray:
    """The box (x, y, width, height) of an image (H, W, 3), resampled to width x height."""
    x, y, across, down = box
    return resampled(image[y : y + down, x : x + across], width, height)
