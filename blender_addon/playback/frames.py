# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps frames of the scene's timeline to steps of a splat sequence and back.
It never touches bpy or the disk: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Frames are sums of floats (frame + subframe): a step begins a hair before its exact frame.
_EPSILON = 1e-4


@dataclass(frozen=True)
class Timing:
    """How a sequence lies on the timeline.

    Step i of `times` belongs to scene frame `frame_start + offset + i * frame_step / speed`.
    """

    times: int
    frame_start: int
    frame_step: int
    offset: int = 0
    speed: float = 1.0

    def step_at(self, frame: float) -> int:
        """Step shown at a scene frame (subframes allowed); the first and last steps are held."""
        played = (frame - self.offset - self.frame_start) * self.speed
        step = math.floor(played / self.frame_step + _EPSILON)
        return min(max(step, 0), self.times - 1)

    def frame_range(self) -> tuple[int, int]:
        """First and last scene frame of the sequence, both inclusive."""
        first = self.frame_start + self.offset
        length = (self.times - 1) * self.frame_step / self.speed
        return first, first + math.ceil(length - _EPSILON)


def existing_step(step: int, has_step: Callable[[int], bool]) -> int | None:
    """`step` when it is written, else the last written one before it, else None.

    A job that still runs writes steps in its own order, so that a later step alone is possible;
    showing it would run time backwards, hence None.
    """
    return next((candidate for candidate in range(step, -1, -1) if has_step(candidate)), None)
