# SPDX-License-Identifier: GPL-3.0-or-later
"""Which frames, which cells and what size a capture has, from plain numbers and scene settings.
It reads and computes; it never changes a scene and never touches a file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import bpy

from viewtime_formats.errors import CaptureError

VALID_TIMES = "1, 5, 9, 13, ..."
LONGEST = 100_000


@dataclass(frozen=True)
class Plan:
    """`times` moments of the scene: frame start + i * step."""

    start: int
    step: int
    times: int

    @property
    def end(self) -> int:
        return self.start + (self.times - 1) * self.step

    @property
    def frames(self) -> list[int]:
        return [self.start + i * self.step for i in range(self.times)]

    def __str__(self) -> str:
        if self.times == 1:
            return f"1 time: frame {self.start}"
        every = f", every {self.step}" if self.step > 1 else ""
        return f"{self.times} times from frames {self.start} to {self.end}{every}"

    def nearest_time(self, frame: float) -> int:
        """Which of the times is nearest to a frame of the scene, counted from 0."""
        return min(max(round((frame - self.start) / self.step), 0), self.times - 1)


def check_times(times: int) -> None:
    """Raise CaptureError unless the video model can make this many times: 1 + 4k."""
    if times < 1 or times % 4 != 1:
        below = max(1, (times - 1) // 4 * 4 + 1)
        choices = str(below) if times < 1 else f"{below} or {below + 4}"
        raise CaptureError(f"{times} times; the generator takes {VALID_TIMES}: choose {choices}")


def nearest_times(times: int, most: int) -> int:
    """The valid number of times nearest to `times` (the smaller of two), at most `most`."""
    below = max(1, (times - 1) // 4 * 4 + 1)
    nearest = below if times - below <= 2 else below + 4
    return max(1, min(nearest, (most - 1) // 4 * 4 + 1))


def even_plan(start: int, end: int, times: int, step: int = 0) -> Plan:
    """`times` moments from `start`, within `end`; step 0 is the longest whole step that fits.

    Raises CaptureError, naming what would do, when they do not fit.
    """
    check_times(times)
    if end < start:
        raise CaptureError(f"The frame range {start}-{end} ends before it starts")
    count, gaps = end - start + 1, times - 1
    if gaps == 0:
        return Plan(start, max(1, step), 1)
    if step <= 0:
        step = (end - start) // gaps
        if step == 0:
            most = nearest_times(times, count)
            raise CaptureError(
                f"Frames {start} to {end} are only {count}; {times} times do not fit: choose "
                f"{most}, or a longer range"
            )
    plan = Plan(start, step, times)
    if plan.end > end:
        most = nearest_times(times, (end - start) // step + 1)
        raise CaptureError(
            f"{times} times, every {step} frames from {start}, end at {plan.end}; the range ends "
            f"at {end}: choose {most} times, or a smaller step"
        )
    return plan


def capture_frames(frame_start: int, frame_end: int, times: int) -> list[int]:
    """The frames of `times` moments, evenly spaced by a whole step, both ends included.

    Raises CaptureError, naming what would do, when there are none.
    """
    check_times(times)
    length = frame_end - frame_start
    if length < 0:
        raise CaptureError(f"The frame range {frame_start}-{frame_end} ends before it starts")
    gaps = times - 1
    if gaps == 0:
        if length:
            raise CaptureError(
                f"One time cannot span frames {frame_start}-{frame_end}: end at {frame_start}"
            )
        return [frame_start]
    if length % gaps or length == 0:
        step = length // gaps
        ends = [frame_start + gaps * s for s in (step, step + 1) if s > 0]
        raise CaptureError(
            f"Frames {frame_start}-{frame_end} do not divide into {times} even times: "
            f"end at {' or '.join(map(str, ends))}"
        )
    return list(range(frame_start, frame_end + 1, length // gaps))


def scene_range(scene: bpy.types.Scene) -> tuple[int, int, int]:
    """(first, last, step) that the scene's settings say; step 0 is "spread evenly"."""
    settings = scene.viewtime
    if settings.use_own_range:
        return settings.range_start, settings.range_end, settings.range_step
    return scene.frame_start, scene.frame_end, 0


def scene_plan(scene: bpy.types.Scene) -> Plan:
    """The moments that the scene's settings say. Raises CaptureError."""
    start, end, step = scene_range(scene)
    return even_plan(start, end, scene.viewtime.times, step)


def most_times(scene: bpy.types.Scene) -> int:
    """How many times the scene's range could hold, valid or not; at least 1."""
    start, end, step = scene_range(scene)
    return max(1, (end - start) // max(1, step) + 1)


def capture_places(
    what: Collection[str], views: int, times: int, fixed_view: int, freeze_time: int
) -> list[tuple[int, int]]:
    """(view, time) of every cell to capture, by time and then by view. Raises CaptureError."""
    if not {"FIXED", "FREEZE", "GRID"} & set(what):
        raise CaptureError("Nothing to capture: choose clip, freeze-time frames or grid")
    if "FREEZE" in what and not 0 <= freeze_time < times:
        raise CaptureError(f"Freeze time {freeze_time}; with {times} times, 0 to {times - 1} exist")
    return [
        (view, time)
        for time in range(times)
        for view in range(views)
        if "GRID" in what
        or ("FIXED" in what and view == fixed_view)
        or ("FREEZE" in what and time == freeze_time)
    ]


def capture_resolution(scene: bpy.types.Scene, size: int) -> tuple[int, int]:
    """(width, height): the scene's aspect, longer side `size`, the other a multiple of 16."""
    x, y = scene.render.resolution_x, scene.render.resolution_y
    other = max(16, round(size * min(x, y) / max(x, y) / 16) * 16)
    if x == y:
        return size, size
    return (size, other) if x > y else (other, size)
