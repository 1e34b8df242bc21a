# SPDX-License-Identifier: GPL-3.0-or-later
"""Float32 depth out of the multilayer EXR that Blender writes, and into an EXR of one channel "Y".
It reads uncompressed scanline files alone, which is what render.py asks Blender for."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from viewtime_formats.errors import CaptureError

MAGIC = 20000630
MULTIPART, TILED_OR_DEEP = 0x1000, 0x0A00
PIXEL_TYPES = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}
NO_COMPRESSION, ZIP = 0, 3
ZIP_LINES = 16


def read_depth_pass(path: Path) -> np.ndarray:
    """(H, W) float32: the pass "Depth" of an uncompressed multilayer EXR, one or several parts.

    Raises CaptureError when the file holds no such pass or is no such file.
    """
    data = path.read_bytes()
    try:
        return _read_depth_pass(data, path)
    except (struct.error, IndexError, ValueError) as error:
        raise CaptureError(f"{path}: not the EXR that Blender was asked for ({error})") from None


def _read_depth_pass(data: bytes, path: Path) -> np.ndarray:
    magic, version = struct.unpack_from("<iI", data)
    if magic != MAGIC or version & TILED_OR_DEEP:
        raise ValueError("no scanline EXR")
    multipart = bool(version & MULTIPART)
    headers, at = [], 8
    while not (multipart and headers and data[at] == 0):
        header, at = _read_header(data, at)
        headers.append(header)
        if not multipart:
            break
    at += multipart  # the empty header that ends the list
    for part, header in enumerate(headers):
        x0, y0, x1, y1 = struct.unpack("<4i", header["dataWindow"])
        width, height = x1 - x0 + 1, y1 - y0 + 1
        channels = _channels(header["channels"])
        # "ViewLayer.Depth.Z", with "V" for the last letter where Blender calls it a value.
        wanted = [name for name in channels if name.split(".")[-2:-1] == ["Depth"]]
        if not wanted and header.get("name", b"").rstrip(b"\0").endswith(b".Depth"):
            wanted = list(channels)[:1]
        if not wanted:
            at += 8 * height
            continue
        if header["compression"][0] != NO_COMPRESSION:
            raise ValueError("it is compressed")
        skip, kind = channels[wanted[0]]
        depth = np.empty((height, width), np.float32)
        for offset in struct.unpack_from(f"<{height}Q", data, at):
            if multipart:
                if struct.unpack_from("<i", data, offset)[0] != part:
                    raise ValueError("its parts are mixed up")
                offset += 4
            y = struct.unpack_from("<i", data, offset)[0]
            depth[y - y0] = np.frombuffer(data, kind, width, offset + 8 + skip * width)
        return depth
    raise CaptureError(f"{path}: the renderer wrote no depth pass; use Cycles or EEVEE")


def _read_header(data: bytes, at: int) -> tuple[dict[str, bytes], int]:
    """Attributes by name, raw, and where the next header begins."""
    header: dict[str, bytes] = {}
    while data[at]:
        end = data.index(b"\0", at)
        name = data[at:end].decode("utf-8", "replace")
        at = data.index(b"\0", end + 1) + 1
        size = struct.unpack_from("<i", data, at)[0]
        header[name] = data[at + 4 : at + 4 + size]
        at += 4 + size
    return header, at + 1


def _channels(raw: bytes) -> dict[str, tuple[int, np.dtype]]:
    """Per channel: bytes of one pixel that lie before it in a line, and its type."""
    channels: dict[str, tuple[int, np.dtype]] = {}
    at = skip = 0
    while raw[at]:
        end = raw.index(b"\0", at)
        kind = PIXEL_TYPES[struct.unpack_from("<i", raw, end + 1)[0]]
        channels[raw[at:end].decode("utf-8", "replace")] = skip, kind
        skip += kind.itemsize
        at = end + 17
    return channels


def write_depth_exr(path: Path, depth: np.ndarray) -> None:
    """Write (H, W) float32 as a ZIP-compressed scanline EXR with the single channel "Y".

    "Y" and not "Z", because Blender opens a file that has nothing but a "Z" as noise.
    """
    height, width = depth.shape
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channels = b"Y\0" + struct.pack("<iB3xii", 2, 0, 1, 1) + b"\0"
    header = b"".join(
        name + b"\0" + kind + b"\0" + struct.pack("<i", len(value)) + value
        for name, kind, value in (
            (b"channels", b"chlist", channels),
            (b"compression", b"compression", bytes([ZIP])),
            (b"dataWindow", b"box2i", window),
            (b"displayWindow", b"box2i", window),
            (b"lineOrder", b"lineOrder", b"\0"),
            (b"pixelAspectRatio", b"float", struct.pack("<f", 1.0)),
            (b"screenWindowCenter", b"v2f", struct.pack("<2f", 0.0, 0.0)),
            (b"screenWindowWidth", b"float", struct.pack("<f", 1.0)),
        )
    )
    start = struct.pack("<iI", MAGIC, 2) + header + b"\0"
    rows = np.ascontiguousarray(depth, "<f4")
    blocks = []
    for y in range(0, height, ZIP_LINES):
        plain = rows[y : y + ZIP_LINES].tobytes()
        packed = zlib.compress(_predicted(plain), 4)
        # A block that does not shrink is stored as it is; readers tell by its size.
        body = packed if len(packed) < len(plain) else plain
        blocks.append(struct.pack("<ii", y, len(body)) + body)
    offsets = len(start) + 8 * len(blocks) + np.cumsum([0] + [len(b) for b in blocks[:-1]])
    path.write_bytes(start + offsets.astype("<u8").tobytes() + b"".join(blocks))


def _predicted(plain: bytes) -> bytes:
    """OpenEXR's shuffle before zlib: even bytes, odd bytes, then each as its difference + 128."""
    raw = np.frombuffer(plain, np.uint8)
    split = np.concatenate([raw[0::2], raw[1::2]])
    out = split.copy()
    out[1:] = split[1:] - split[:-1] + np.uint8(128)
    return out.tobytes()
