# SPDX-License-Identifier: Apache-2.0
"""How far predicted cameras are from true ones, and cameras of one world in another. Numpy only.

Errors of one rig are free of world and scale: they are aligned here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from viewtime.reconstructor.align import Alignment, align_points
from viewtime_formats.rig import Camera, Rig

Float64 = NDArray[np.float64]


def camera_errors(predicted: Rig, true: Rig) -> dict[str, float]:
    """Errors of V >= 2 predicted cameras against the true ones.

    rotation, direction: degrees, means over all pairs, of the relative rotation and of where the
    second camera is as seen from the first (VGGT's RRA and RTA judge these). ate: root mean square
    distance of the centres after the least-squares similarity (Umeyama), in rig sizes. rpe_place,
    rpe_turn: the same of the relative pose of each camera and the next, in rig sizes and degrees.
    nan where the true cameras give no scale or no direction.
    """
    a, b = ([c.camera_from_world for c in rig.cameras] for rig in (predicted, true))
    p, q = (np.stack([c.center for c in rig.cameras]) for rig in (predicted, true))
    turns, directions = [], []
    for i in range(len(a)):
        for j in range(i + 1, len(a)):
            turns.append(_angle(a[i][:, :3] @ a[j][:, :3].T, b[i][:, :3] @ b[j][:, :3].T))
            towards = [x[i][:, :3] @ (c[j] - c[i]) for x, c in ((a, p), (b, q))]
            lengths = [float(np.linalg.norm(t)) for t in towards]
            if lengths[1] > 1e-9:
                cosine = towards[0] @ towards[1] / max(lengths[0] * lengths[1], 1e-12)
                directions.append(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
    size = float(np.sqrt(np.square(q - q.mean(0)).sum(1).mean()))
    found = {"rotation": float(np.mean(turns)), "direction": float("nan")}
    if directions:
        found["direction"] = float(np.mean(directions))
    if size < 1e-9:
        return {**found, "ate": float("nan"), "rpe_place": float("nan"), "rpe_turn": float("nan")}
    scale, rotation, shift = align_points(p, q)
    moved = scale * p @ rotation.T + shift
    found["ate"] = float(np.sqrt(np.square(moved - q).sum(1).mean())) / size
    steps, angles = [], []
    for i in range(len(a) - 1):
        own = scale * a[i][:, :3] @ (p[i + 1] - p[i])
        steps.append(np.square(own - b[i][:, :3] @ (q[i + 1] - q[i])).sum())
        angles.append(_angle(a[i][:, :3] @ a[i + 1][:, :3].T, b[i][:, :3] @ b[i + 1][:, :3].T))
    found["rpe_place"] = float(np.sqrt(np.mean(steps))) / size
    found["rpe_turn"] = float(np.sqrt(np.mean(np.square(angles))))
    return found


def cameras_in_predicted_world(
    cameras: Sequence[Camera], alignment: Alignment, predicted: Rig, captured: Rig
) -> list[Camera]:
    """Captured cameras as the predicted world has them: the similarity back, and focal lengths
    changed as those of the rig's own cameras were (the median ratio)."""
    ratio = np.median(
        [
            [p.intrinsics[i, i] / c.resized(p.width, p.height).intrinsics[i, i] for i in (0, 1)]
            for p, c in zip(predicted.cameras, captured.cameras)
        ],
        axis=0,
    )
    found = []
    for camera in cameras:
        center = (camera.center - alignment.translation) @ alignment.rotation / alignment.scale
        turn = camera.rotation @ alignment.rotation
        intrinsics = camera.intrinsics.copy()
        intrinsics[[0, 1], [0, 1]] *= ratio
        pose = np.c_[turn, -turn @ center]
        found.append(Camera(camera.name, camera.width, camera.height, intrinsics, pose))
    return found


def _angle(a: Float64, b: Float64) -> float:
    """Degrees between two rotations (3,3)."""
    chord = float(np.linalg.norm(a - b)) / np.sqrt(8.0)
    return float(np.degrees(2.0 * np.arcsin(min(chord, 1.0))))
