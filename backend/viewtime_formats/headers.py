# SPDX-License-Identifier: Apache-2.0
"""Sizes of PNG, EXR and NPY images from their headers alone, for checks that need no image library.

Never decodes a pixel and never reads more than the first few kilobytes of a file.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from .errors import CaptureError

_HEAD_BYTES = 1 << 16


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of a PNG or EXR file, told by its content and not by its name.

    Raises CaptureError when the file is missing or neither.
    """
    head = _head(path)
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR" and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
        return int(width), int(height)
    if head.startswith(b"\x76\x2f\x31\x01"):
        return _exr_size(head, path)
    raise CaptureError(f"{path}: is neither a PNG nor an EXR image (or is truncated)")


def depth_size(path: Path) -> tuple[int, int]:
    """(width, height) of a depth map: EXR or a two-dimensional NPY. Raises CaptureError."""
    head = _head(path)
    if head.startswith(b"\x76\x2f\x31\x01"):
        return _exr_size(head, path)
    if not head.startswith(b"\x93NUMPY"):
        raise CaptureError(f"{path}: is neither an EXR nor an NPY depth map (or is truncated)")
    try:
        # A memory map checks the claimed shape against the file's size and allocates nothing.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as problem:  # numpy raises whatever the header provokes
        reason = " ".join(str(problem).split())[:120]
        raise CaptureError(f"{path}: is no whole NPY file ({reason})") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        shape = " x ".join(str(n) for n in array.shape)
        raise CaptureError(f"{path}: holds {shape} {array.dtype}; height x width floats are needed")
    return int(array.shape[1]), int(array.shape[0])


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise CaptureError(f"{path}: there is no such file") from None
    except OSError as problem:
        raise CaptureError(f"{path}: cannot be read ({problem.strerror})") from None


def _exr_size(head: bytes, path: Path) -> tuple[int, int]:
    """The data window of the first part: attributes are name 0 type 0 int32-size value."""
    position = 8
    while position < len(head) and head[position]:
        name_end = head.find(b"\0", position)
        type_end = head.find(b"\0", name_end + 1)
        value = type_end + 5
        if min(name_end, type_end) < 0 or value > len(head):
            break
        (size,) = struct.unpack("<i", head[type_end + 1 : value])
        if size < 0:
            break
        if head[position:name_end] == b"dataWindow" and value + 16 <= len(head):
            left, top, right, bottom = struct.unpack("<4i", head[value : value + 16])
            return right - left + 1, bottom - top + 1
        position = value + size
    raise CaptureError(f"{path}: its EXR header is truncated or names no data window")
