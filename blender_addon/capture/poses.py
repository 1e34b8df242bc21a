# SPDX-License-Identifier: GPL-3.0-or-later
"""Poses of rigs as pure functions: (4, 4) float64, world-from-camera in Blender's axes.
Nothing here knows a scene."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from mathutils import Vector

from viewtime_formats.errors import RigError

MAX_CAMERAS = 256
WIDE_DEGREES = 30.0
AROUND_DEGREES = 200.0


# ---- where the cameras stand: (V, 3) ----


def arc_places(
    start: np.ndarray,
    centre: np.ndarray,
    count: int,
    degrees: float,
    *,
    radius: float = 0.0,
    height: float = 0.0,
    centred: bool = False,
) -> np.ndarray:
    """`count` places on an arc of `degrees` about the vertical through `centre`.

    The first (or with `centred` the middle) is `start`, moved along its line to the centre when
    `radius`, its distance from it, is given. The last is `height` higher than the first. Positive
    degrees turn anticlockwise seen from above.
    Raises RigError when the arc would not part the cameras.
    """
    _check_count(count)
    if abs(degrees) < 1e-3:
        raise RigError(f"An arc of {degrees:g} degrees leaves all cameras in one place")
    arm = _arm(start, centre, radius)
    # A full circle must not come back to its first camera.
    gaps = count if abs(abs(degrees) - 360) < 1e-6 else count - 1
    steps = np.arange(count) - ((count - 1) / 2 if centred else 0)
    turned = [about_z(math.radians(degrees) * step / gaps) @ arm for step in steps]
    rise = np.outer(steps / (count - 1), [0.0, 0.0, height])
    return centre + np.array(turned) + rise


def line_places(
    pose: np.ndarray, count: int, distance: float, direction: str, centred: bool = False
) -> np.ndarray:
    """`count` places on a straight line of length `distance` that begins at the pose.

    direction: SIDE (the camera's right), UP or FORWARD (its line of sight).
    """
    _check_count(count)
    if abs(distance) < 1e-9:
        raise RigError("A dolly of length 0 leaves all cameras in one place")
    axes = {"SIDE": pose[:3, 0], "UP": pose[:3, 1], "FORWARD": -pose[:3, 2]}
    steps = np.arange(count) - ((count - 1) / 2 if centred else 0)
    return pose[:3, 3] + np.outer(steps * distance / (count - 1), axes[direction])


def grid_places(
    pose: np.ndarray,
    centre: np.ndarray,
    rows: int,
    columns: int,
    spread: tuple[float, float],
    *,
    degrees: bool,
) -> np.ndarray:
    """rows x columns places with the pose in their middle, row by row, every other row backwards.

    spread: width and height of the whole grid, in metres across the camera's picture plane, or in
    degrees around `centre`. Neighbours in the order are neighbours in space.
    """
    _check_count(rows * columns)
    across, up = _offsets(columns, spread[0]), _offsets(rows, spread[1])
    start = pose[:3, 3]
    places = []
    for row in range(rows):
        # The top row first, and left to right as the camera sees it.
        order = range(columns) if row % 2 == 0 else reversed(range(columns))
        for column in order:
            if not degrees:
                step = across[column] * pose[:3, 0] - up[row] * pose[:3, 1]
                places.append(start + step)
                continue
            arm = about_z(math.radians(across[column])) @ _arm(start, centre, 0.0)
            flat = math.hypot(arm[0], arm[1])
            angle = math.atan2(arm[2], flat) - math.radians(up[row])
            if abs(angle) > math.radians(89):
                raise RigError("The grid reaches over the pole; make it less high")
            length = float(np.linalg.norm(arm))
            level = arm[:2] / flat * math.cos(angle) * length
            places.append(centre + np.array([*level, math.sin(angle) * length]))
    if len(places) > 1 and np.ptp(np.array(places), axis=0).max() < 1e-9:
        raise RigError("A grid without width and height leaves all cameras in one place")
    return np.array(places)


def path_places(line: np.ndarray, count: int, *, closed: bool = False) -> np.ndarray:
    """`count` places evenly by length along a line of points (N, 3). Raises RigError."""
    _check_count(count)
    points = np.vstack([line, line[:1]]) if closed else np.asarray(line)
    lengths = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    if len(points) < 2 or lengths[-1] < 1e-9:
        raise RigError("The curve has no length; cameras cannot be put along it")
    wanted = np.linspace(0, lengths[-1], count, endpoint=not closed)
    return np.stack([np.interp(wanted, lengths, points[:, axis]) for axis in range(3)], axis=1)


def _check_count(count: int) -> None:
    if not 2 <= count <= MAX_CAMERAS:
        raise RigError(f"A rig of {count} cameras; 2 to {MAX_CAMERAS} are needed")


def _arm(start: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    arm = np.asarray(start, np.float64) - centre
    distance = float(np.linalg.norm(arm))
    if distance < 1e-6:
        raise RigError("The active camera stands in the target; move one of them")
    if math.hypot(arm[0], arm[1]) < 0.02 * distance:
        raise RigError(
            "The active camera stands straight above or below the target, where an arc about the "
            "vertical would not move it; move the camera to the side"
        )
    return arm * (radius / distance) if radius > 0 else arm


def _offsets(count: int, spread: float) -> np.ndarray:
    return (np.arange(count) / max(count - 1, 1) - 0.5) * (spread if count > 1 else 0.0)


# ---- how they are turned ----


def aimed(pose: np.ndarray, centre: np.ndarray, place: np.ndarray, aim: str) -> np.ndarray:
    """A pose at `place`. aim: FRAMING (the centre lies where the camera of `pose` has it in its
    picture), TRACK (straight at the centre, upright) or PARALLEL (turned as `pose` is).
    """
    new = np.eye(4)
    new[:3, 3] = place
    new[:3, :3] = pose[:3, :3]
    if aim == "TRACK":
        sight = Vector((centre - place).tolist())
        if sight.length < 1e-9:
            raise RigError("A camera of the rig stands in the target; move the target")
        new[:3, :3] = np.array(sight.to_track_quat("-Z", "Y").to_matrix(), np.float64)
    elif aim == "FRAMING":
        before, after = pose[:3, 3] - centre, place - centre
        turn = math.atan2(after[1], after[0]) - math.atan2(before[1], before[0])
        turned = about_z(turn)
        # What is left is height: it tilts the camera as much as its direction to the centre.
        new[:3, :3] = _turn_between(turned @ before, after) @ turned @ pose[:3, :3]
    return new


def about_z(radians: float) -> np.ndarray:
    """(3, 3): the rotation about the vertical."""
    c, s = math.cos(radians), math.sin(radians)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _turn_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(3, 3): the shortest rotation from direction a to direction b."""
    quaternion = Vector(a.tolist()).rotation_difference(Vector(b.tolist()))
    return np.array(quaternion.to_matrix(), np.float64)


# ---- what they look at, in what order, and whether they will do ----


def common_target(poses: Sequence[np.ndarray]) -> np.ndarray:
    """(3,): the point nearest to all lines of sight; for parallel ones, ahead of their middle."""
    centres = np.array([pose[:3, 3] for pose in poses])
    directions = np.array([-pose[:3, 2] for pose in poses])
    # Sum of the projections onto the planes across each line of sight.
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    normal, right = across.sum(0), (across @ centres[:, :, None]).sum(0)[:, 0]
    if np.linalg.cond(normal) < 1e4:
        point = np.linalg.solve(normal, right)
        if np.median(((point - centres) * directions).sum(1)) > 0:
            return point
    return centres.mean(0) + directions.mean(0) * max(1.0, float(np.ptp(centres, axis=0).max()))


def order_along_arc(centres: np.ndarray, target: np.ndarray, first_near: np.ndarray) -> list[int]:
    """View order of camera centres (V, 3): by angle about the vertical through the target.

    The order begins at the end of the arc (either side of its widest gap) that is nearer to
    `first_near`, the place of the active camera.
    """
    arms = centres - target
    angles = np.arctan2(arms[:, 1], arms[:, 0])
    order = np.argsort(angles, kind="stable")
    gaps = np.diff(np.append(angles[order], angles[order[0]] + 2 * math.pi))
    order = np.roll(order, -(int(np.argmax(gaps)) + 1))
    ends = np.linalg.norm(centres[order[[0, -1]]] - first_near, axis=1)
    return [int(i) for i in (order if ends[0] <= ends[1] else order[::-1])]


def rig_warnings(names: Sequence[str], centres: np.ndarray, target: np.ndarray) -> list[str]:
    """What is doubtful about a rig with these camera centres (V, 3), in words; [] when nothing.

    Cameras in one place, all on one straight line, neighbours that see the target from directions
    more than WIDE_DEGREES apart, and rigs that go all around it.
    """
    warnings = []
    arms = centres - target
    distance = max(float(np.linalg.norm(arms, axis=1).mean()), 1e-9)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    for i, j in np.argwhere(apart < 1e-3 * distance):
        if i < j:
            warnings.append(f"Cameras '{names[i]}' and '{names[j]}' stand in one place")
    spread = np.linalg.svd(centres - centres.mean(0), compute_uv=False)
    if len(centres) >= 3 and spread[0] > 1e-3 * distance and spread[1] < 1e-3 * spread[0]:
        warnings.append(
            "All cameras stand on one straight line; predicted cameras cannot be "
            "aligned to it, so move one off the line"
        )
    directions = arms / np.maximum(np.linalg.norm(arms, axis=1, keepdims=True), 1e-12)
    angles = np.degrees(np.arccos(np.clip((directions[1:] * directions[:-1]).sum(1), -1, 1)))
    if len(angles) and angles.max() > WIDE_DEGREES:
        widest = int(angles.argmax())
        warnings.append(
            f"Views {widest} and {widest + 1} are {angles[widest]:.0f} degrees apart; above "
            f"{WIDE_DEGREES:.0f} little of one is seen in the other: add cameras or narrow the rig"
        )
    flat = np.hypot(arms[:, 0], arms[:, 1]) > 0.1 * distance
    turns = np.sort(np.degrees(np.arctan2(arms[flat, 1], arms[flat, 0])))
    if len(turns) > 2:
        covered = 360 - np.diff(np.append(turns, turns[0] + 360)).max()
        if covered > AROUND_DEGREES:
            warnings.append(
                f"The rig goes {covered:.0f} degrees around the subject; the generator is not made "
                "for that, so capture the full grid with depth"
            )
    return warnings
