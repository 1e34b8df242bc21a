# SPDX-License-Identifier: Apache-2.0
"""Cameras as datasets write them, made into ours: OpenCV camera-from-world, pixels from the corner.

Each function knows one convention; none reads a picture.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewtime_formats.errors import CaptureError, RigError
from viewtime_formats.fields import Fields
from viewtime_formats.rig import Camera

_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])  # of the camera's axes


def pinhole(
    where: Any, name: str, size: tuple[int, int], focal: Any, middle: Any, pose: NDArray[Any]
) -> Camera:
    """A Camera from (width, height), (fx, fy), (cx, cy) and camera-from-world (3,4).

    Raises CaptureError that begins with `where` when no renderer could use it.
    """
    (fx, fy), (cx, cy) = focal, middle
    try:
        intrinsics = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
        return Camera(name, *size, intrinsics, pose)
    except (RigError, ValueError, TypeError) as problem:
        raise CaptureError(f"{where}: {problem}") from None


def inverted(pose: NDArray[Any]) -> NDArray[np.float64]:
    """camera-from-world (3,4) of a world-from-camera (3 or 4, 4) whose axes are orthonormal."""
    rotation = pose[:3, :3].T
    return np.concatenate([rotation, -rotation @ pose[:3, 3:4]], axis=1)


def from_opengl(where: Any, pose: NDArray[Any]) -> NDArray[np.float64]:
    """camera-from-world of a camera-to-world (4,4) with the axes of OpenGL and Blender (x right,
    y up, z backward)."""
    if pose.shape not in ((3, 4), (4, 4)) or not np.isfinite(pose).all():
        raise CaptureError(f"{where}: a pose has shape {pose.shape}; 4 x 4 numbers are needed")
    turned = np.array(pose[:3], np.float64)
    turned[:, :3] = turned[:, :3] @ _OPENGL_TO_OPENCV
    return inverted(turned)


def from_quaternion(where: Any, wxyz: NDArray[Any]) -> NDArray[np.float64]:
    """(3,3) rotation of a quaternion (w, x, y, z) of any length but zero."""
    length = float(np.linalg.norm(wxyz))
    if not math.isfinite(length) or length < 1e-9:
        raise CaptureError(f"{where}: a quaternion is {list(wxyz)}; four numbers, not all zero")
    w, x, y, z = np.asarray(wxyz, np.float64) / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def llff_cameras(path: Path, names: list[str] | None = None) -> list[Camera]:
    """The cameras of a poses_bounds.npy (LLFF, N3DV), (N, 17) numbers.

    A row is a 3 x 5 matrix and two bounds of depth (not used). The matrix holds camera-to-world
    with the axes (down, right, backward), then height, width and focal length in pixels of the
    full-size picture, whose middle is the principal point.
    """
    rows = _array(path)
    if rows.ndim != 2 or rows.shape[1] != 17 or not np.isfinite(rows).all():
        raise CaptureError(f"{path}: has shape {rows.shape}; N x 17 finite numbers are needed")
    cameras = []
    for n, row in enumerate(rows[:, :15].reshape(-1, 3, 5)):
        down, right, back, place, (height, width, focal) = row.T
        if not (1 <= width <= 65536 and 1 <= height <= 65536):
            raise CaptureError(f"{path}: row {n} claims {width:g} x {height:g} pixels")
        pose = inverted(np.stack([right, down, -back, place], axis=1))
        size = round(float(width)), round(float(height))
        name = names[n] if names and n < len(names) else f"{n:03d}"
        cameras.append(
            pinhole(f"{path}: row {n}", name, size, (focal, focal), (width / 2, height / 2), pose)
        )
    return cameras


def calibrated_camera(folder: Path, name: str, size: tuple[int, int]) -> Camera:
    """A camera of NVIDIA Dynamic Scene's calibration: intrinsic.txt (3x3, pixels) and extrinsic.txt
    (4x3: the camera's centre, then the rotation camera-from-world, OpenCV axes)."""
    inner, outer = _text(folder / "intrinsic.txt", (3, 3)), _text(folder / "extrinsic.txt", (4, 3))
    rotation = outer[1:]
    pose = np.concatenate([rotation, -rotation @ outer[0][:, None]], axis=1)
    inner = inner / inner[2, 2]
    focal, middle = (inner[0, 0], inner[1, 1]), (inner[0, 2], inner[1, 2])
    return pinhole(folder, name, size, focal, middle, pose)


def kubric_cameras(path: Path, obj: Any, name: str) -> tuple[Camera, ...]:
    """One camera per frame of a Kubric metadata.json: focal length and sensor width in mm,
    positions and quaternions (wxyz) camera-to-world with Blender's axes, one per frame."""
    root = Fields(obj, str(path), CaptureError)
    camera = Fields(root.obj.get("camera"), f"{path}: camera", CaptureError)
    scene = Fields(root.obj.get("metadata"), f"{path}: metadata", CaptureError)
    width, height = (int(n) for n in scene.array("resolution", (2,)))
    pixels = camera.number("focal_length", 1e-3, 1e6) * width
    pixels /= camera.number("sensor_width", 1e-3, 1e6)
    count = len(camera.sequence("positions", 100_000))
    places, turns = camera.array("positions", (count, 3)), camera.array("quaternions", (count, 4))
    cameras = []
    for n in range(count):
        where = f"{path}: camera of frame {n}"
        pose = np.concatenate([from_quaternion(where, turns[n]), places[n][:, None]], axis=1)
        cameras.append(
            pinhole(where, name, (width, height), (pixels, pixels), (width / 2, height / 2),
                    from_opengl(where, pose))
        )  # fmt: skip
    return tuple(cameras)


def estate_cameras(path: Path) -> list[tuple[str, Camera]]:
    """(timestamp, camera) of each line of a RealEstate10K text file.

    A line has 19 numbers: timestamp, fx, fy, cx, cy as fractions of the picture, two zeros, and
    camera-from-world (3,4), OpenCV axes. The first line is the video's address. Cameras come for
    a picture of 1 x 1.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise CaptureError(f"{path}: cannot be read ({problem})") from None
    cameras = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) < 2:
            continue
        try:
            values = np.array([float(word) for word in words])
        except ValueError:
            values = np.zeros(0)
        if len(values) != 19 or not np.isfinite(values).all() or not words[0].isdecimal():
            raise CaptureError(
                f"{path}: line {number} has {len(words)} words; 19 numbers are needed: a timestamp,"
                " fx fy cx cy, two zeros and a 3 x 4 pose"
            )
        where = f"{path}: line {number}"
        pose = values[7:].reshape(3, 4)
        cameras.append((words[0], pinhole(where, words[0], (1, 1), values[1:3], values[3:5], pose)))
    return cameras


def _array(path: Path) -> NDArray[np.float64]:
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float64)
    except Exception as problem:  # numpy raises whatever the bytes provoke
        reason = " ".join(str(problem).split())[:120]
        raise CaptureError(f"{path}: cannot be read ({reason}); an NPY file is needed") from None


def _text(path: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    try:
        values = np.array(path.read_text(encoding="utf-8").split(), np.float64)
    except (OSError, ValueError) as problem:
        raise CaptureError(f"{path}: cannot be read ({problem})") from None
    if values.size != shape[0] * shape[1] or not np.isfinite(values).all():
        raise CaptureError(f"{path}: has {values.size} numbers; {shape[0]} x {shape[1]} are needed")
    return values.reshape(shape)
