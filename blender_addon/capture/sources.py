# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a capture's pictures come from: rendered, or a clip and files that somebody has.
It says what will happen to them before anything is read; it writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy

from viewtime_formats.errors import CaptureError

from .frames import Plan
from .media import (
    Media,
    Reader,
    find_strip,
    open_movie,
    open_pictures,
    open_strip,
    picture_size,
    probe_clip,
    sequence_paths,
    strip_media,
    strip_range,
)
from .pixels import Box, fitted


@dataclass(frozen=True)
class ClipSource:
    """The fixed view's clip. kind: RENDER, MOVIE, SEQUENCE or STRIP.

    path: absolute, of a movie, a picture of the sequence, or a folder. start: which frame of the
    clip (from 1) belongs to the first time. scene, strip: the strip's scene and its name, "" for
    the active one; a strip keeps its own place on the timeline.
    """

    kind: str = "RENDER"
    path: Path | None = None
    start: int = 1
    scene: Any = None
    strip: str = ""

    def probe(self) -> Media:
        """Opens the files. Raises CaptureError."""
        if self.kind == "STRIP":
            return strip_media(self.scene, self.strip)
        if self.path is None:
            what = "movie file" if self.kind == "MOVIE" else "image sequence"
            raise CaptureError(f"Choose the clip's {what}")
        return probe_clip(self.kind, self.path)

    def check(self, media: Media, plan: Plan) -> None:
        """Raise CaptureError where the clip does not hold the frames of the plan."""
        if self.kind == "STRIP":
            first, last = strip_range(find_strip(self.scene, self.strip))
            if plan.start < first or plan.end > last:
                raise CaptureError(
                    f"{media.name} lies at frames {first} to {last}, the capture takes {plan}: "
                    "fit the range to the clip, or move the strip"
                )
            return
        last = self.number(plan.end, plan)
        if self.start < 1 or last > media.frames:
            raise CaptureError(
                f"{media.name} has {media.frames} frames; {plan} takes frames {self.start} to "
                f"{last} of it: fit the range to the clip, or begin earlier in it"
            )

    def range(self, media: Media, start: int) -> tuple[int, int]:
        """First and last frame of the scene that the clip has, when it begins at `start`.

        Raises CaptureError where the clip's first frame lies after its end.
        """
        if self.kind == "STRIP":
            return strip_range(find_strip(self.scene, self.strip))
        if self.start > media.frames:
            raise CaptureError(f"{media.name} has {media.frames} frames, none from {self.start} on")
        return start, start + media.frames - self.start

    def number(self, frame: int, plan: Plan) -> int:
        """Which frame of the clip belongs to a frame of the scene: one to one from the start."""
        return frame if self.kind == "STRIP" else self.start + frame - plan.start

    @contextmanager
    def open(self, media: Media, plan: Plan) -> Iterator[Reader]:
        """Yields read(frame of the scene): the clip's picture then. Raises CaptureError."""
        if self.kind == "STRIP":
            with open_strip(self.scene, find_strip(self.scene, self.strip).name) as read:
                yield read
            return
        assert self.path is not None
        opened = (
            open_movie(self.path, media)
            if self.kind == "MOVIE"
            else open_pictures(sequence_paths(self.path))
        )
        with opened as read:
            yield lambda frame: read(self.number(frame, plan))


def freeze_media(files: Sequence[Path], views: int) -> Media:
    """What the freeze-time pictures are, one for each view in view order. Raises CaptureError."""
    check_freeze_count(len(files), views)
    return Media(files[0].name, *picture_size(files[0]), len(files))


def check_freeze_count(count: int, views: int) -> None:
    """Raise CaptureError unless there is one picture for each view."""
    if not count:
        raise CaptureError("Choose the freeze-time pictures, one for each camera in view order")
    if count != views:
        raise CaptureError(
            f"{count} freeze-time pictures for {views} cameras; one for each camera is needed, in "
            "view order"
        )


def media_box(scene: bpy.types.Scene, media: Media, crop: bool) -> Box:
    """What is taken of the media's pictures for cameras of the scene's render. CaptureError."""
    render = scene.render.resolution_x, scene.render.resolution_y
    return fitted(media.name, media.size, render, crop)
