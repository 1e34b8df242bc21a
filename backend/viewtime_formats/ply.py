# SPDX-License-Identifier: Apache-2.0
"""3DGS PLY files in INRIA's layout: the interchange format of Gaussian splats.

Reads and writes in pieces that stay in the processor's cache; never believes a count before the
file's size has confirmed it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .atomic import atomic_path
from .errors import PlyError
from .gaussians import MAX_SH_DEGREE, Float32, Gaussians

MAX_HEADER_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
_MIN_OPACITY = np.float32(1e-6)  # keeps the logit finite
_MIN_SCALE = np.float32(1e-10)  # keeps the logarithm finite
_XYZ = ("x", "y", "z")
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALE = ("scale_0", "scale_1", "scale_2")
_ROT = ("rot_0", "rot_1", "rot_2", "rot_3")
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4",
    "float": "<f4", "double": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2",
    "int32": "<i4", "uint32": "<u4", "float32": "<f4", "float64": "<f8",
}  # fmt: skip


def property_names(coefficients: int) -> list[str]:
    """INRIA's property order for `coefficients` spherical harmonics per channel."""
    rest = [f"f_rest_{i}" for i in range(3 * (coefficients - 1))]
    return [*_XYZ, "nx", "ny", "nz", *_DC, *rest, "opacity", *_SCALE, *_ROT]


def write_ply(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write one timestep as a binary little-endian 3DGS PLY, atomically.

    Normals are zeros, f_rest is channel-major, opacity a logit (clamped to [1e-6, 1 - 1e-6]),
    scales logarithms (of at least 1e-10), rot wxyz. Raises PlyError for Gaussians with wrong
    shapes or values that are not finite, ViewtimeError when the disk refuses.
    """
    gaussians.check_shapes(str(path), PlyError)
    count, coefficients = gaussians.sh.shape[:2]
    names = property_names(coefficients)
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    head += [f"property float {name}" for name in names] + ["end_header", ""]
    rows = max(1, _CHUNK_BYTES // (4 * len(names)))
    table = np.zeros((min(rows, count), len(names)), "<f4")
    with atomic_path(path, durable=False) as part, open(part, "wb") as file:
        file.write("\n".join(head).encode("ascii"))
        for start in range(0, count, rows):
            chunk = table[: min(rows, count - start)]
            _fill(chunk, gaussians, start, coefficients)
            if not np.isfinite(chunk).all():
                row = start + int(np.argwhere(~np.isfinite(chunk))[0][0])
                raise PlyError(f"{path}: Gaussian {row} has a value that is not finite")
            file.write(chunk.data)


def read_ply(path: str | os.PathLike[str]) -> Gaussians:
    """Read a 3DGS PLY: any property order, float or double, further properties ignored.

    Rotations come back normalised (a zero one as the identity), opacities and scales linear.
    Raises PlyError for a file that is missing, truncated, in another PLY encoding, or not of
    Gaussians.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _read_header(file, path)
            stride = header.dtype.itemsize
            need = header.start + header.count * stride
            if need > size or (header.last and need != size):
                raise PlyError(
                    f"{path}: {header.count} vertices of {stride} bytes need {need} bytes; the "
                    f"file has {size}, it is truncated or its header is wrong"
                )
            return _read_body(file, header, path)
    except OSError as problem:
        raise PlyError(f"{path}: cannot be read ({problem.strerror or problem})") from None


def _fill(chunk: NDArray[Any], gaussians: Gaussians, start: int, coefficients: int) -> None:
    """Set the columns of INRIA's table for the Gaussians from `start` on."""
    at = slice(start, start + len(chunk))
    end = 9 + 3 * (coefficients - 1)
    _put(chunk, 0, gaussians.means[at])
    _put(chunk, 6, gaussians.sh[at, 0])
    if coefficients > 1:
        rest = gaussians.sh[at, 1:].transpose(0, 2, 1)
        chunk[:, 9:end] = rest.reshape(len(chunk), -1)
    opacity = np.clip(gaussians.opacities[at], _MIN_OPACITY, 1 - _MIN_OPACITY)
    chunk[:, end] = np.log(opacity / (1 - opacity))
    _put(chunk, end + 1, np.log(np.maximum(gaussians.scales[at], _MIN_SCALE)))
    _put(chunk, end + 4, gaussians.rotations[at])


def _put(chunk: NDArray[Any], first: int, values: Float32) -> None:
    """Set columns one by one, which numpy does faster than a block of three or four."""
    for k in range(values.shape[1]):
        chunk[:, first + k] = values[:, k]


@dataclass(frozen=True)
class _Header:
    start: int  # of the vertices, in bytes
    count: int
    dtype: np.dtype[Any]
    last: bool  # nothing may follow the vertices


def _read_header(file: BinaryIO, path: Path) -> _Header:
    raw = file.read(MAX_HEADER_BYTES)
    if not raw.startswith((b"ply\n", b"ply\r\n")):
        raise PlyError(f"{path}: does not begin with 'ply'; it is no PLY file")
    end = raw.find(b"\nend_header")
    line_end = raw.find(b"\n", end + 1)
    if end < 0 or line_end < 0:
        raise PlyError(f"{path}: has no end_header in its first {len(raw)} bytes")
    try:
        lines = raw[:end].decode("ascii").splitlines()[1:]
    except UnicodeDecodeError:
        raise PlyError(f"{path}: its header is not ASCII text") from None
    encoding = ""
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in lines:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) == 3:
            encoding = words[1]
        elif words[0] == "element" and len(words) == 3 and _is_count(words[2]):
            elements.append((words[1], int(words[2]), []))
        elif words[0] == "property" and elements and len(words) == 3 and words[1] in _TYPES:
            elements[-1][2].append((words[2], _TYPES[words[1]]))
        elif words[0] == "property" and elements and words[1:2] == ["list"]:
            elements[-1][2].append(("", "list"))
        else:
            raise PlyError(f"{path}: its header has a line that is no PLY: {line[:60]!r}")
    if encoding != "binary_little_endian":
        raise PlyError(f"{path}: is encoded as {encoding[:40]!r}; binary_little_endian is needed")
    start = line_end + 1
    for index, (name, count, properties) in enumerate(elements):
        names = [key for key, _ in properties]
        if len(set(names)) != len(names) or "list" in [kind for _, kind in properties]:
            raise PlyError(f"{path}: element {name[:40]!r} has lists or twin properties; no 3DGS")
        dtype = np.dtype(properties)
        if name == "vertex":
            return _Header(start, count, dtype, last=index == len(elements) - 1)
        start += count * dtype.itemsize
    raise PlyError(f"{path}: has no element 'vertex'; it holds no Gaussians")


def _read_body(file: BinaryIO, header: _Header, path: Path) -> Gaussians:
    names = header.dtype.names or ()
    needed = (*_XYZ, *_DC, "opacity", *_SCALE, *_ROT)
    missing = [name for name in needed if name not in names]
    if missing:
        raise PlyError(f"{path}: has no property {missing[0]!r}; it is no 3DGS point cloud")
    rest = sum(name.startswith("f_rest_") for name in names)
    rest_names = [f"f_rest_{i}" for i in range(rest)]
    degree = math.isqrt(1 + rest // 3) - 1
    if 3 * ((degree + 1) ** 2 - 1) != rest or degree > MAX_SH_DEGREE or set(rest_names) - {*names}:
        raise PlyError(f"{path}: has {rest} f_rest properties; 0, 9, 24, 45 or 72 are needed")
    count, k = header.count, (degree + 1) ** 2
    out = Gaussians(
        np.empty((count, 3), np.float32),
        np.empty((count, 3), np.float32),
        np.empty((count, 4), np.float32),
        np.empty(count, np.float32),
        np.empty((count, k, 3), np.float32),
    )
    file.seek(header.start)
    rows = max(1, _CHUNK_BYTES // header.dtype.itemsize)
    buffer = np.empty(min(rows, count), header.dtype)
    for start in range(0, count, rows):
        chunk = buffer[: min(rows, count - start)]
        if file.readinto(chunk.data.cast("B")) != chunk.nbytes:  # type: ignore[attr-defined]
            raise PlyError(f"{path}: ended at vertex {start}; it shrank while it was read")
        columns = _Columns(chunk)
        at = slice(start, start + len(chunk))
        _put(out.means[at], 0, columns(_XYZ))
        _put(out.sh[at, 0], 0, columns(_DC))
        if rest:
            block = columns(rest_names).reshape(len(chunk), 3, k - 1)
            out.sh[at, 1:] = block.transpose(0, 2, 1)
        with np.errstate(over="ignore"):  # an infinite exponential is an opacity of 0
            out.opacities[at] = 1 / (1 + np.exp(-columns(("opacity",))[:, 0]))
            _put(out.scales[at], 0, columns(_SCALE))
            np.exp(out.scales[at], out=out.scales[at])
        _put(out.rotations[at], 0, columns(_ROT))
        _normalise(out.rotations[at])
        _check_finite(out, at, path)
    return out


class _Columns:
    """Columns of a chunk of vertices as float32; one strided view where all properties are."""

    def __init__(self, chunk: NDArray[Any]) -> None:
        self.chunk = chunk
        names = chunk.dtype.names or ()
        self.index = {name: i for i, name in enumerate(names)}
        plain = all(chunk.dtype[name] == np.float32 for name in names)
        self.table = chunk.view("<f4").reshape(len(chunk), -1) if plain else None

    def __call__(self, names: Sequence[str]) -> Float32:
        if self.table is None:
            with np.errstate(over="ignore"):  # a double beyond float32: refused as not finite
                return np.stack([self.chunk[name] for name in names], 1).astype(np.float32)
        where = [self.index[name] for name in names]
        if where == list(range(where[0], where[0] + len(where))):
            return self.table[:, where[0] : where[0] + len(where)]
        return self.table[:, where]


def _normalise(rotations: Float32) -> None:
    """Make quaternions (n, 4) unit ones in place; a zero one becomes the identity."""
    with np.errstate(over="ignore", under="ignore"):
        squares = np.square(rotations[:, 0])
        for k in (1, 2, 3):
            squares += np.square(rotations[:, k])
    if not (squares.min() > 1e-30 and squares.max() < 1e30):
        # float32 squares have lost the length of some; rare, so the slow way only then
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            wide = rotations.astype(np.float64)
            length = np.sqrt(np.einsum("nk,nk->n", wide, wide))
            rotations[:] = wide / length[:, None]
        rotations[length == 0] = (1, 0, 0, 0)
        return
    rotations *= (1 / np.sqrt(squares))[:, None]


def _check_finite(out: Gaussians, at: slice, path: Path) -> None:
    for name in ("means", "scales", "rotations", "opacities", "sh"):
        part = getattr(out, name)[at]
        if not np.isfinite(part).all():
            row = at.start + int(np.argwhere(~np.isfinite(part))[0][0])
            raise PlyError(f"{path}: vertex {row} has {name} that are not finite numbers")


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 15
