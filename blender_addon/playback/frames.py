# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps frames of the scene's timeline to steps of a splat sequence and back.
It never touches bpy or the disk: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Frames are sums of floats (frame + subframe): a step begins a hair before its exact frame.
EPSILON = 1e-4
# A jump of more steps than this is somebody scrubbing, not a rhythm that goes on.
_LONGEST_STRIDE = 4


@dataclass(frozen=True)
class Timing:
    """How a sequence lies on the timeline.

    Step i of `times` belongs to scene frame `frame_start + offset + i * frame_step / speed`.
    loop: what comes before the first and after the last step: "HOLD" them, "LOOP" from the first,
    "PING_PONG" back and forth, each end once. nearest: a step begins half its length earlier.
    time: the place in steps (0 is the first) when the timeline has no say, else None.
    """

    times: int
    frame_start: int
    frame_step: int
    offset: int = 0
    speed: float = 1.0
    loop: str = "HOLD"
    nearest: bool = False
    time: float | None = None

    def step_at(self, frame: float) -> int:
        """Step shown at a scene frame (subframes allowed)."""
        return self.fold(self.index_at(frame))

    def index_at(self, frame: float) -> int:
        """The step as if the sequence had no ends: below 0 before it, above times - 1 after it."""
        place = self.time
        if place is None:
            place = (frame - self.offset - self.frame_start) * self.speed / self.frame_step
        return math.floor(place + (0.5 if self.nearest else 0.0) + EPSILON)

    def fold(self, index: int) -> int:
        """The step that stands for an index beyond the ends."""
        if self.loop == "LOOP":
            return index % self.times
        if self.loop == "PING_PONG" and self.times > 1:
            place = index % (2 * (self.times - 1))
            return min(place, 2 * (self.times - 1) - place)
        return min(max(index, 0), self.times - 1)

    def frame_range(self) -> tuple[int, int]:
        """First and last scene frame of one pass of the sequence, both inclusive."""
        first = self.frame_start + self.offset
        length = (self.times - 1) * self.frame_step / self.speed
        return first, first + math.ceil(length - EPSILON)


@dataclass
class Course:
    """Where an object's playing comes from, to tell where it goes. One per object."""

    index: int | None = None
    frame: float = 0.0
    stride: int = 1

    def ahead(
        self, timing: Timing, frame: float, frame_range: tuple[int, int], depth: int
    ) -> list[int]:
        """Note that the object is at `frame`; the next `depth` different steps, nearest first.

        frame_range: first and last frame of the timeline, at whose end playing begins again.
        """
        index = timing.index_at(frame)
        first, last = frame_range
        turned = first < last and {self.frame, frame} == {float(first), float(last)}
        if self.index is not None and index != self.index and not turned:
            moved = index - self.index
            self.stride = moved if abs(moved) <= _LONGEST_STRIDE else (1 if moved > 0 else -1)
        self.index, self.frame = index, frame
        here, steps = timing.fold(index), []
        for index in self._indices(timing, frame, frame_range, depth):
            step = timing.fold(index)
            if step != here and step not in steps:
                steps.append(step)
        return steps[:depth]

    def _indices(
        self, timing: Timing, frame: float, frame_range: tuple[int, int], depth: int
    ) -> list[int]:
        """The next indices in order; past the end of the timeline they go on at its other end."""
        index = timing.index_at(frame)
        low, high = timing.index_at(frame_range[0]), timing.index_at(frame_range[1])
        on_timeline = timing.time is None and frame_range[0] <= frame <= frame_range[1]
        # Held ends and turning points repeat steps: look further than depth.
        indices = []
        for _ in range(2 * depth + 2):
            index += self.stride
            if on_timeline and not low <= index <= high:
                index = low if self.stride > 0 else high
            indices.append(index)
        return indices


def existing_step(step: int, has_step: Callable[[int], bool]) -> int | None:
    """`step` when it is written, else the last written one before it, else None.

    A job that still runs writes steps in its own order, so that a later step alone is possible;
    showing it would run time backwards, hence None.
    """
    return next((candidate for candidate in range(step, -1, -1) if has_step(candidate)), None)
