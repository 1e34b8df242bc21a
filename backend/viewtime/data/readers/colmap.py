# SPDX-License-Identifier: Apache-2.0
"""COLMAP's cameras and images, text or binary. It reads no points and undistorts no picture.

Our own, because pycolmap brings a whole structure-from-motion library for these two tables.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from viewtime.data.readers.poses import from_quaternion, pinhole
from viewtime_formats.errors import CaptureError
from viewtime_formats.rig import Camera

# COLMAP's numbers of the models: name, how many parameters. Those without distortion come first.
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
}
_PARAMETERS = dict(_MODELS.values())
_ALLOWED = (
    0.5  # pixels by which distortion may move a corner before the picture must be undistorted
)


def has_model(folder: Path) -> bool:
    """Whether a folder holds cameras and images."""
    return any(
        (folder / f"cameras.{end}").is_file() and (folder / f"images.{end}").is_file()
        for end in ("bin", "txt")
    )


def read_model(folder: Path) -> list[Camera]:
    """The cameras of a COLMAP model, each named by its picture, in the order of these names.

    COLMAP's poses are camera-from-world with OpenCV axes and its pixels count from the corner, as
    ours do. Raises CaptureError for a lens whose distortion moves a corner by over half a pixel.
    """
    binary = (folder / "cameras.bin").is_file()
    end = "bin" if binary else "txt"
    lenses_path, images_path = folder / f"cameras.{end}", folder / f"images.{end}"
    try:
        lenses = (_binary_lenses if binary else _text_lenses)(lenses_path)
    except (struct.error, ValueError, IndexError, KeyError) as problem:
        raise _broken(lenses_path, problem) from None
    try:
        images = (_binary_images if binary else _text_images)(images_path)
    except (struct.error, ValueError, IndexError) as problem:
        raise _broken(images_path, problem) from None
    cameras = []
    for name, lens, turn, place in sorted(images, key=lambda image: image[0]):
        where = f"{images_path}: {name}"
        if lens not in lenses:
            raise CaptureError(f"{where} has camera {lens}, which {lenses_path} does not have")
        model, width, height, parameters = lenses[lens]
        focal, middle = _straight(f"{lenses_path}: camera {lens}", model, width, height, parameters)
        pose = np.concatenate([from_quaternion(where, turn), place[:, None]], axis=1)
        cameras.append(pinhole(where, name, (width, height), focal, middle, pose))
    return cameras


def _straight(where: str, model: str, width: int, height: int, parameters: Any) -> Any:
    """((fx, fy), (cx, cy)) of a lens without distortion to speak of."""
    if model in ("PINHOLE", "OPENCV"):
        (fx, fy, cx, cy), rest = parameters[:4], parameters[4:]
    elif model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
        fx = fy = parameters[0]
        (cx, cy), rest = parameters[1:3], parameters[3:]
    else:
        raise CaptureError(f"{where} is a {model}; undistort it (colmap image_undistorter)")
    if not (fx > 0 and fy > 0):
        raise CaptureError(f"{where} ({model}) has focal lengths {fx:g}, {fy:g}; above 0 is needed")
    k1, k2, p1, p2 = (*rest, 0.0, 0.0, 0.0, 0.0)[:4]
    x, y = max(cx, width - cx) / fx, max(cy, height - cy) / fy
    r2 = x * x + y * y
    radial = k1 * r2 + k2 * r2 * r2
    dx = fx * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x))
    dy = fy * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y)
    moved = float(np.hypot(dx, dy))
    if not moved <= _ALLOWED:
        raise CaptureError(
            f"{where} ({model}) is distorted by {moved:.1f} pixels at a corner; "
            "undistort the pictures (colmap image_undistorter)"
        )
    return (fx, fy), (cx, cy)


def _text_lenses(path: Path) -> dict[int, tuple[str, int, int, list[float]]]:
    lenses = {}
    for words in _lines(path):
        model, parameters = words[1], [float(word) for word in words[4:]]
        if len(parameters) != _PARAMETERS.get(model, len(parameters)):
            raise ValueError(f"{model} with {len(parameters)} parameters")
        lenses[int(words[0])] = (model, int(words[2]), int(words[3]), parameters)
    return lenses


def _text_images(path: Path) -> list[tuple[str, int, Any, Any]]:
    """Every other line is a list of points, which may be empty."""
    images = []
    for words in _lines(path, keep_empty=True)[::2]:
        if not words:
            continue
        values = np.array(words[1:8], np.float64)
        if len(words) < 10 or len(values) != 7:
            raise ValueError(f"an image of {len(words)} words, 10 are needed")
        images.append((" ".join(words[9:]), int(words[8]), values[:4], values[4:]))
    return images


def _lines(path: Path, keep_empty: bool = False) -> list[list[str]]:
    text = path.read_bytes().decode("utf-8").splitlines()
    rows = [line.split() for line in text if not line.startswith("#")]
    return rows if keep_empty else [row for row in rows if row]


def _binary_lenses(path: Path) -> dict[int, tuple[str, int, int, list[float]]]:
    data, lenses = path.read_bytes(), {}
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        number, model, width, height = struct.unpack_from("<iiQQ", data, at)
        name, size = _MODELS[model]
        parameters = list(struct.unpack_from(f"<{size}d", data, at + 24))
        lenses[number] = (name, width, height, parameters)
        at += 24 + 8 * size
    return lenses


def _binary_images(path: Path) -> list[tuple[str, int, Any, Any]]:
    data, images = path.read_bytes(), []
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        values = struct.unpack_from("<i7di", data, at)
        at += 64
        end = data.index(b"\0", at)
        name = data[at:end].decode("utf-8")
        (points,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9 + 24 * points
        images.append((name, values[8], np.array(values[1:5]), np.array(values[5:8])))
    if at > len(data):
        raise ValueError("it ends too early")
    return images


def _broken(path: Path, problem: Exception) -> CaptureError:
    reason = " ".join(str(problem).split())[:120]
    return CaptureError(f"{path}: is no COLMAP table ({reason})")
