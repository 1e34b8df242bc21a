# SPDX-License-Identifier: Apache-2.0
"""Camera and Rig: pinhole cameras in view order, OpenCV axes (x right, y down, z forward).

Never knows Blender's conventions: `viewtime`'s add-on translates in one module of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .atomic import write_json
from .errors import RigError
from .fields import Fields, read_json

MAX_VIEWS = 10_000
MAX_SIDE = 65_536
FORMAT = "viewtime.rig"


@dataclass(frozen=True, eq=False)
class Camera:
    """One pinhole camera.

    width, height: the image size in pixels at which `intrinsics` hold.
    intrinsics: (3, 3) float64, pixels; pixel centres lie at +0.5; no skew.
    camera_from_world: (3, 4) float64, rotation and translation, OpenCV axes, scene units.
    Raises RigError when any of these is unusable.
    """

    name: str
    width: int
    height: int
    intrinsics: NDArray[np.float64]
    camera_from_world: NDArray[np.float64]

    def __post_init__(self) -> None:
        where = f"camera {self.name!r}"
        if not isinstance(self.name, str) or not self.name:
            raise RigError(f"{where}: a name is needed")
        for side in ("width", "height"):
            value = getattr(self, side)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise RigError(f"{where}: {side} is {value!r}; a whole number is needed")
            if not 1 <= value <= MAX_SIDE:
                raise RigError(f"{where}: {side} is {value}; 1 to {MAX_SIDE} is needed")
            object.__setattr__(self, side, int(value))
        intrinsics = _matrix(self.intrinsics, (3, 3), f"{where}: intrinsics")
        pose = _matrix(self.camera_from_world, (3, 4), f"{where}: camera_from_world")
        if intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0:
            focal = f"{intrinsics[0, 0]:g}, {intrinsics[1, 1]:g}"
            raise RigError(f"{where}: focal lengths are {focal}; both must be above 0 pixels")
        if intrinsics[0, 1] or intrinsics[1, 0] or not np.array_equal(intrinsics[2], (0, 0, 1)):
            raise RigError(f"{where}: intrinsics must be [[fx,0,cx],[0,fy,cy],[0,0,1]]")
        rotation = pose[:, :3]
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
            raise RigError(
                f"{where}: camera_from_world does not begin with a rotation; "
                "orthonormal rows with determinant +1 are needed (no scale, no mirror)"
            )
        object.__setattr__(self, "intrinsics", intrinsics)
        object.__setattr__(self, "camera_from_world", pose)

    @property
    def rotation(self) -> NDArray[np.float64]:
        """(3, 3): world axes to camera axes."""
        return self.camera_from_world[:, :3]

    @property
    def translation(self) -> NDArray[np.float64]:
        """(3,): the world's origin in camera axes."""
        return self.camera_from_world[:, 3]

    @property
    def center(self) -> NDArray[np.float64]:
        """(3,): where the camera stands in the world."""
        return -self.rotation.T @ self.translation

    @property
    def world_from_camera(self) -> NDArray[np.float64]:
        """(4, 4): the camera's pose."""
        pose = np.eye(4)
        pose[:3, :3] = self.rotation.T
        pose[:3, 3] = self.center
        return pose

    def resized(self, width: int, height: int) -> Camera:
        """The same camera for the same image at another size in pixels."""
        scale = np.array([width / self.width, height / self.height, 1.0])
        intrinsics = scale[:, None] * self.intrinsics
        return Camera(self.name, width, height, intrinsics, self.camera_from_world)


@dataclass(frozen=True, eq=False)
class Rig:
    """V cameras in view order. world: whose frame the poses are in ("blender", "view0", ...)."""

    cameras: tuple[Camera, ...]
    world: str = "blender"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        if not 1 <= len(self.cameras) <= MAX_VIEWS:
            count = len(self.cameras)
            raise RigError(f"a rig of {count} cameras; 1 to {MAX_VIEWS} are needed")
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RigError(f"two cameras of the rig are named {twice!r}; names must differ")

    def __len__(self) -> int:
        return len(self.cameras)

    def resized(self, width: int, height: int) -> Rig:
        """The same rig for images of another size in pixels."""
        return Rig(tuple(camera.resized(width, height) for camera in self.cameras), self.world)


def write_rig(path: str | os.PathLike[str], rig: Rig) -> None:
    """Write rig.json atomically. Raises ViewtimeError when the disk refuses."""
    cameras = [
        {
            "name": camera.name,
            "width": camera.width,
            "height": camera.height,
            "intrinsics": camera.intrinsics.tolist(),
            "camera_from_world": camera.camera_from_world.tolist(),
        }
        for camera in rig.cameras
    ]
    write_json(path, {"format": FORMAT, "version": 1, "world": rig.world, "cameras": cameras})


def read_rig(path: str | os.PathLike[str]) -> Rig:
    """Read rig.json. Raises RigError for anything that is not a whole, usable rig."""
    fields = read_json(Path(path), RigError, format_name=FORMAT)
    cameras = []
    for index, item in enumerate(fields.sequence("cameras", MAX_VIEWS)):
        camera = Fields(item, f"{path}: cameras[{index}]", RigError)
        try:
            cameras.append(
                Camera(
                    camera.text("name", limit=1000),
                    camera.integer("width", 1, MAX_SIDE),
                    camera.integer("height", 1, MAX_SIDE),
                    camera.array("intrinsics", (3, 3)),
                    camera.array("camera_from_world", (3, 4)),
                )
            )
        except RigError as error:
            text = str(error)
            raise RigError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    try:
        return Rig(tuple(cameras), fields.text("world", "blender", limit=1000))
    except RigError as error:
        text = str(error)
        raise RigError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _matrix(value: ArrayLike, shape: tuple[int, int], where: str) -> NDArray[np.float64]:
    try:
        matrix: Any = np.array(value, np.float64)
    except (TypeError, ValueError):
        raise RigError(f"{where}: {shape[0]} x {shape[1]} numbers are needed") from None
    if matrix.shape != shape:
        raise RigError(f"{where}: has shape {matrix.shape}; {shape} is needed")
    # Above 1e15 a product of two entries leaves the range in which the rest can be checked.
    if not np.isfinite(matrix).all() or np.abs(matrix).max() > 1e15:
        raise RigError(f"{where}: holds a number that is not finite or absurdly large")
    matrix.setflags(write=False)
    return matrix
