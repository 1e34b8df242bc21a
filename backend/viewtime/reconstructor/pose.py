# SPDX-License-Identifier: Apache-2.0
"""Cameras as the reconstructor sees them: pose encodings, and a rig as rays in its own unit.

The unit of a rig is the mean distance of its cameras from the point they look at. Numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from viewtime_formats.rig import Camera, Rig

Z_UP_WORLDS = ("blender", "view0")
"""Worlds whose Z is known to point up; datasets and captures have it anywhere."""
ROLL = 0.03
"""Standard deviation of a camera's roll in radians, where its right axis is to tell what is up."""


@dataclass(frozen=True)
class RigRays:
    """rays (V,6,H,W) float32: origin and unit direction per pixel in the rig's frame (origin at
    the focus, Z up as upward() has it, view 0 looking along +Y, unit 1); unit: its length in
    scene units."""

    rays: np.ndarray
    unit: float


def focus_of(rig: Rig) -> tuple[np.ndarray, float] | None:
    """The point (3,) nearest to all optical axes and the cameras' mean distance from it.

    None where the axes say nothing about it: one camera, parallel axes, or a point behind them.
    """
    centers = np.stack([camera.center for camera in rig.cameras])
    axes = np.stack([camera.rotation[2] for camera in rig.cameras])
    projectors = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    matrix = projectors.mean(0)
    if np.linalg.eigvalsh(matrix)[0] < 1e-3:
        return None
    point = np.linalg.solve(matrix, (projectors @ centers[:, :, None]).mean(0)[:, 0])
    along = ((point - centers) * axes).sum(-1)
    if along.min() <= 0.0:
        return None
    return point, float(np.linalg.norm(point - centers, axis=-1).mean())


def upward(rig: Rig) -> np.ndarray:
    """Unit vector (3,) that points up in the rig's world.

    Where the world does not say it is the cameras' mean upward axis, turned so far that their
    right axes lie level: the mean alone leans forward where all of them look down.
    """
    if rig.world in Z_UP_WORLDS:
        return np.array([0.0, 0.0, 1.0])
    right, down = (np.stack([c.rotation[row] for c in rig.cameras]) for row in (0, 1))
    up = np.linalg.solve(right.T @ right / len(right) + ROLL**2 * np.eye(3), -down.mean(0))
    length = np.linalg.norm(up)
    return up / length if length > 1e-6 else np.array([0.0, 0.0, 1.0])


def _heading(rig: Rig) -> np.ndarray:
    """Rotation (3,3) from the rig's world to a frame with Z up and view 0 looking along +Y."""
    up = upward(rig)
    forward = rig.cameras[0].rotation[2]
    level = forward - (forward @ up) * up
    if math.hypot(*level) < 1e-6:  # straight down: the picture's upper side stands for "forward"
        forward = -rig.cameras[0].rotation[1]
        level = forward - (forward @ up) * up
    level = level / math.hypot(*level)
    return np.stack([np.cross(level, up), level, up])


def rig_rays(rig: Rig, width: int, height: int) -> RigRays | None:
    """The rig as rays for frames of width x height; None where focus_of finds no unit."""
    found = focus_of(rig)
    if found is None:
        return None
    focus, unit = found
    turn = _heading(rig)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    pixels = np.stack([x, y, np.ones_like(x)], -1)
    rays = np.empty((len(rig.cameras), 6, height, width), np.float32)
    for v, camera in enumerate(rig.cameras):
        camera = camera.resized(width, height)
        directions = pixels @ np.linalg.inv(camera.intrinsics).T @ camera.rotation @ turn.T
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        rays[v, :3] = (turn @ (camera.center - focus) / unit)[:, None, None]
        rays[v, 3:] = directions.transpose(2, 0, 1)
    return RigRays(rays, unit)


def quaternion_from_matrix(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion xyzw (4,) with w >= 0 of a rotation (3,3)."""
    m = np.asarray(rotation, np.float64)
    # The eigenvector of the largest eigenvalue is safe for every rotation.
    k = np.array(
        [
            [m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[2, 0] + m[0, 2], m[2, 1] - m[1, 2]],
            [m[1, 0] + m[0, 1], m[1, 1] - m[0, 0] - m[2, 2], m[2, 1] + m[1, 2], m[0, 2] - m[2, 0]],
            [m[2, 0] + m[0, 2], m[2, 1] + m[1, 2], m[2, 2] - m[0, 0] - m[1, 1], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m[0, 0] + m[1, 1] + m[2, 2]],
        ]
    )
    quaternion = np.linalg.eigh(k)[1][:, -1]
    return quaternion if quaternion[3] >= 0 else -quaternion


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Rotation (3,3) of a quaternion xyzw (4,) of any length but zero."""
    x, y, z, w = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def encode_rig(rig: Rig, scale: float) -> np.ndarray:
    """(V, 9) pose encodings "absT_quaR_FoV" in view 0's frame, translations divided by scale."""
    reference = rig.cameras[0].world_from_camera
    rows = []
    for camera in rig.cameras:
        pose = camera.camera_from_world @ reference  # camera from view 0, (3, 4)
        fov = [
            2.0 * math.atan(0.5 * camera.height / camera.intrinsics[1, 1]),
            2.0 * math.atan(0.5 * camera.width / camera.intrinsics[0, 0]),
        ]
        rows.append(np.concatenate([pose[:, 3] / scale, quaternion_from_matrix(pose[:, :3]), fov]))
    return np.stack(rows).astype(np.float32)


def decode_rig(encoding: np.ndarray, width: int, height: int) -> Rig:
    """The rig of pose encodings (V, 9); world "view0", view 0 at the origin.

    Fields of view are kept within 10 to 120 degrees and every pose is taken from view 0's own.
    """
    encoding = np.asarray(encoding, np.float64)
    poses = []
    for row in encoding:
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = matrix_from_quaternion(row[3:7]), row[:3]
        poses.append(pose)
    reference = np.linalg.inv(poses[0])
    cameras = []
    for v, (row, pose) in enumerate(zip(encoding, poses)):
        fov_y, fov_x = np.clip(row[7:9], math.radians(10.0), math.radians(120.0))
        intrinsics = np.array(
            [
                [0.5 * width / math.tan(0.5 * fov_x), 0.0, 0.5 * width],
                [0.0, 0.5 * height / math.tan(0.5 * fov_y), 0.5 * height],
                [0.0, 0.0, 1.0],
            ]
        )
        local = (pose @ reference)[:3] if v else np.eye(4)[:3]
        cameras.append(Camera(f"view.{v:03d}", width, height, intrinsics, local))
    return Rig(tuple(cameras), world="view0")


def default_camera(width: int, height: int, degrees: float = 45.0) -> Camera:
    """A pinhole at the origin that sees `degrees` across the longer side."""
    focal = 0.5 * max(width, height) / math.tan(0.5 * math.radians(degrees))
    intrinsics = np.array([[focal, 0, 0.5 * width], [0, focal, 0.5 * height], [0, 0, 1.0]])
    return Camera("view.000", width, height, intrinsics, np.eye(4)[:3])
