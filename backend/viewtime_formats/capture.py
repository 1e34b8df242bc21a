# SPDX-License-Identifier: Apache-2.0
"""Capture: what the artist gives, as a folder of frames with capture.json and rig.json.

Checks everything that can be known without decoding a pixel; never decodes one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .atomic import write_json, writing_failed
from .errors import CaptureError
from .fields import Fields, inside, read_json
from .headers import depth_size, image_size
from .rig import MAX_SIDE, MAX_VIEWS, Rig, read_rig, write_rig

FORMAT = "viewtime.capture"
SKY_DEPTH = 1e9
"""Depth values from here on, and +infinity, are sky. NaN, zero and below are unknown."""
MAX_TIMES = 100_000
MAX_CELLS = 10_000_000
MAX_FRAME = 10_000_000


@dataclass(frozen=True)
class Cell:
    """One frame of the grid; paths relative to the folder, forward slashes.

    image: sRGB PNG, or EXR (scene linear). depth: EXR or NPY of planar z in scene units, or None.
    """

    view: int
    time: int
    image: str
    depth: str | None = None


@dataclass(frozen=True)
class Video:
    """A video file that gives all T frames of one view."""

    view: int
    path: str


@dataclass(frozen=True, eq=False)
class Capture:
    """A checked Capture folder: V views x T times of width x height pixels, some cells known.

    Frame of time t: frame_start + t * frame_step, at `fps`. fixed_view: the view whose frames are
    all known, or None. freeze_time: the time at which all views are known, or None.
    background: (3,) display sRGB of the sky or None. rig: V cameras at the capture's size or None.
    """

    folder: Path
    views: int
    times: int
    width: int
    height: int
    fps: float
    frame_start: int
    frame_step: int
    prompt: str
    fixed_view: int | None
    freeze_time: int | None
    background: NDArray[np.float64] | None
    video: Video | None
    cells: tuple[Cell, ...]
    rig: Rig | None

    @cached_property
    def _by_place(self) -> dict[tuple[int, int], Cell]:
        return {(cell.view, cell.time): cell for cell in self.cells}

    def cell(self, view: int, time: int) -> Cell | None:
        """The frame file of one place in the grid; None when unknown or part of the video."""
        return self._by_place.get((view, time))

    def path(self, relative: str) -> Path:
        """The file that a cell or the video names."""
        return self.folder / relative

    @property
    def known(self) -> NDArray[np.bool_]:
        """(V, T): which frames are given, as a file or by the video."""
        known = np.zeros((self.views, self.times), bool)
        for cell in self.cells:
            known[cell.view, cell.time] = True
        if self.video is not None:
            known[self.video.view] = True
        return known

    @property
    def is_full_grid(self) -> bool:
        """Whether every view is given at every time."""
        return bool(self.known.all())

    @property
    def has_depth(self) -> bool:
        """Whether every given frame comes with depth (a video never does)."""
        return self.video is None and all(cell.depth is not None for cell in self.cells)


def read_capture(folder: str | os.PathLike[str]) -> Capture:
    """Read and check a Capture folder.

    Raises CaptureError (RigError for a broken rig.json) for: no frames, a missing or unreadable
    file, frames or depth of two sizes, a path that leaves the folder, a place given twice or
    outside the grid, a fixed view or freeze time that is not wholly given, a rig whose cameras
    differ from the frames in number or size.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CaptureError(f"{folder}: there is no such folder; a Capture folder is needed")
    fields = read_json(folder / "capture.json", CaptureError, format_name=FORMAT)
    rig_path = folder / "rig.json"
    return _checked(folder, fields, read_rig(rig_path) if rig_path.exists() else None)


def write_capture(
    folder: str | os.PathLike[str],
    *,
    views: int,
    times: int,
    width: int,
    height: int,
    cells: Iterable[Cell],
    fps: float = 24.0,
    frame_start: int = 1,
    frame_step: int = 1,
    prompt: str = "",
    fixed_view: int | None = None,
    freeze_time: int | None = None,
    background: Sequence[float] | NDArray[Any] | None = None,
    video: Video | None = None,
    rig: Rig | None = None,
) -> Capture:
    """Make a Capture of a folder that already holds its frames; rig.json and capture.json last.

    Returns the Capture as read_capture would. Raises CaptureError, before anything is written,
    for whatever read_capture would refuse; ViewtimeError when the disk refuses.
    """
    folder = Path(folder)
    obj: dict[str, Any] = {
        "format": FORMAT,
        "version": 1,
        "views": views,
        "times": times,
        "width": width,
        "height": height,
        "fps": float(fps),
        "frame_start": frame_start,
        "frame_step": frame_step,
        "prompt": prompt,
        "fixed_view": fixed_view,
        "freeze_time": freeze_time,
        "background": None if background is None else [float(c) for c in background],
        "video": None if video is None else {"view": video.view, "path": video.path},
        "cells": [
            {"view": c.view, "time": c.time, "image": c.image, "depth": c.depth} for c in cells
        ],
    }
    path = folder / "capture.json"
    capture = _checked(folder, Fields(obj, str(path), CaptureError), rig)
    if rig is not None:
        write_rig(folder / "rig.json", rig)
    else:
        try:
            (folder / "rig.json").unlink(missing_ok=True)
        except OSError as error:
            raise writing_failed(folder / "rig.json", error) from error
    write_json(path, obj)
    return capture


def _checked(folder: Path, fields: Fields, rig: Rig | None) -> Capture:
    views = fields.integer("views", 1, MAX_VIEWS)
    times = fields.integer("times", 1, min(MAX_TIMES, MAX_CELLS // views))
    background = fields.optional_array("background", (3,))
    if background is not None and not (0 <= background.min() and background.max() <= 1):
        fields.fail("background", "three display sRGB values from 0 to 1 are needed")
    capture = Capture(
        folder=folder,
        views=views,
        times=times,
        width=fields.integer("width", 1, MAX_SIDE),
        height=fields.integer("height", 1, MAX_SIDE),
        fps=fields.number("fps", 1e-3, 1e6),
        frame_start=fields.integer("frame_start", -MAX_FRAME, MAX_FRAME),
        frame_step=fields.integer("frame_step", 1, MAX_FRAME),
        prompt=fields.text("prompt", ""),
        fixed_view=fields.optional_integer("fixed_view", 0, views - 1),
        freeze_time=fields.optional_integer("freeze_time", 0, times - 1),
        background=background,
        video=_read_video(folder, fields, views),
        cells=_read_cells(folder, fields, views, times),
        rig=rig,
    )
    if not capture.cells and capture.video is None:
        fields.fail("cells", "at least one frame or a video is needed")
    _check_places(capture, fields)
    _check_sizes(capture)
    _check_rig(capture)
    return capture


def _read_video(folder: Path, fields: Fields, views: int) -> Video | None:
    if fields.obj.get("video") is None:
        return None
    video = Fields(fields.obj["video"], f"{fields.where}: video", CaptureError)
    path = inside(folder, video.obj.get("path"), f"{video.where}.path", CaptureError)
    if not path.is_file():
        raise CaptureError(f"{video.where}: there is no file {path}")
    return Video(video.integer("view", 0, views - 1), video.text("path"))


def _read_cells(folder: Path, fields: Fields, views: int, times: int) -> tuple[Cell, ...]:
    cells = []
    for index, item in enumerate(fields.sequence("cells", views * times)):
        cell = Fields(item, f"{fields.where}: cells[{index}]", CaptureError)
        inside(folder, cell.obj.get("image"), f"{cell.where}.image", CaptureError)
        depth = cell.obj.get("depth")
        if depth is not None:
            inside(folder, depth, f"{cell.where}.depth", CaptureError)
        place = cell.integer("view", 0, views - 1), cell.integer("time", 0, times - 1)
        cells.append(Cell(*place, cell.text("image"), depth))
    return tuple(cells)


def _check_places(capture: Capture, fields: Fields) -> None:
    seen: set[tuple[int, int]] = set()
    for cell in capture.cells:
        place = cell.view, cell.time
        if place in seen or (capture.video is not None and cell.view == capture.video.view):
            other = "twice" if place in seen else "as a file and by the video"
            raise CaptureError(
                f"{fields.where}: view {cell.view}, time {cell.time} is given {other}; "
                "once is right"
            )
        seen.add(place)
    known = capture.known
    if capture.fixed_view is not None and not known[capture.fixed_view].all():
        time = int(np.argmin(known[capture.fixed_view]))
        fields.fail("fixed_view", f"all {capture.times} times of it are needed, time {time} is not")
    if capture.freeze_time is not None and not known[:, capture.freeze_time].all():
        view = int(np.argmin(known[:, capture.freeze_time]))
        fields.fail(
            "freeze_time", f"all {capture.views} views at it are needed, view {view} is not"
        )


def _check_sizes(capture: Capture) -> None:
    first: tuple[Path, tuple[int, int]] | None = None
    for cell in capture.cells:
        path = capture.path(cell.image)
        size = image_size(path)
        if first is None:
            first = path, size
        elif size != first[1]:
            raise CaptureError(
                f"frames of two sizes: {first[0]} has {_by(first[1])} and {path} has {_by(size)} "
                "pixels; all frames of a capture need one size"
            )
        if cell.depth is not None and (depth := depth_size(capture.path(cell.depth))) != size:
            raise CaptureError(
                f"{capture.path(cell.depth)}: has {_by(depth)} pixels, its frame {path} has "
                f"{_by(size)}; depth needs the frame's size"
            )
    if first is not None and first[1] != (capture.width, capture.height):
        raise CaptureError(
            f"{first[0]}: has {_by(first[1])} pixels; capture.json says "
            f"{_by((capture.width, capture.height))}"
        )


def _check_rig(capture: Capture) -> None:
    if capture.rig is None:
        return
    path = capture.folder / "rig.json"
    if len(capture.rig) != capture.views:
        raise CaptureError(
            f"{path}: has {len(capture.rig)} cameras, the frames have {capture.views} views; "
            "one camera per view is needed"
        )
    for camera in capture.rig.cameras:
        if (camera.width, camera.height) != (capture.width, capture.height):
            raise CaptureError(
                f"{path}: camera {camera.name!r} is for {_by((camera.width, camera.height))} "
                f"pixels; the frames have {_by((capture.width, capture.height))}"
            )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
