# SPDX-License-Identifier: Apache-2.0
"""FrameGrid: V x T frames in memory and as a folder, between the capture and the reconstruction.

Never guesses: a place without a frame is black, marked unknown and without depth.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewtime.media import (
    open_video,
    read_depth,
    read_image,
    resize_depth,
    resize_image,
    write_depth,
    write_png,
)
from viewtime_formats.atomic import write_json, writing_failed
from viewtime_formats.capture import MAX_CELLS, Capture
from viewtime_formats.errors import CaptureError
from viewtime_formats.fields import read_json
from viewtime_formats.rig import MAX_SIDE, MAX_VIEWS

FORMAT = "viewtime.grid"
MAX_GRID_BYTES = 32 << 30
_STEP = 16  # pixels; the models' patches divide it


@dataclass(eq=False)
class FrameGrid:
    """V views x T times of frames.

    frames: (V, T, 3, H, W) float32 display sRGB in [0, 1]; zeros where unknown.
    known: (V, T) bool. depth: (V, T, H, W) float32 planar z in scene units, +inf sky, NaN unknown;
    or None when no frame has depth. Raises CaptureError when the shapes do not fit.
    """

    frames: NDArray[np.float32]
    known: NDArray[np.bool_]
    depth: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        self.frames = np.asarray(self.frames, np.float32)
        self.known = np.asarray(self.known, bool)
        if self.frames.ndim != 5 or self.frames.shape[2] != 3 or not self.frames.size:
            raise CaptureError(f"frames have shape {self.frames.shape}; (V, T, 3, H, W) is needed")
        views, times, _, height, width = self.frames.shape
        if self.known.shape != (views, times):
            raise CaptureError(f"known has shape {self.known.shape}; {(views, times)} is needed")
        if self.depth is not None:
            self.depth = np.asarray(self.depth, np.float32)
            if self.depth.shape != (views, times, height, width):
                need = (views, times, height, width)
                raise CaptureError(f"depth has shape {self.depth.shape}; {need} is needed")

    @property
    def views(self) -> int:
        return self.frames.shape[0]

    @property
    def times(self) -> int:
        return self.frames.shape[1]

    @property
    def height(self) -> int:
        return self.frames.shape[3]

    @property
    def width(self) -> int:
        return self.frames.shape[4]


def grid_from_capture(
    capture: Capture, size: int | None = None, columns: int | None = None
) -> FrameGrid:
    """Decode a capture's frames and depth at `size` pixels of height (None: as they are).

    The width follows the aspect; with a size divisible by 16 it is rounded to a multiple of 16, as
    the models need it, and always to one of `columns`, which a generator may need beside. That is
    what `Rig.resized(grid.width, grid.height)` takes into account exactly.
    Raises CaptureError for frames that cannot be decoded and for a grid over 32 GiB.
    """
    width, height = working_size(capture.width, capture.height, size, columns)
    views, times = capture.views, capture.times
    with_depth = any(cell.depth is not None for cell in capture.cells)
    bytes_needed = views * times * height * width * 4 * (4 if with_depth else 3)
    if bytes_needed > MAX_GRID_BYTES:
        raise CaptureError(
            f"{capture.folder}: {views} views x {times} times of {width} x {height} pixels need "
            f"{bytes_needed >> 30} GiB of memory; choose a smaller size or fewer times"
        )
    frames = np.zeros((views, times, 3, height, width), np.float32)
    depth = np.full((views, times, height, width), np.nan, np.float32) if with_depth else None
    for cell in capture.cells:
        path = capture.path(cell.image)
        image = read_image(path)
        _check_size(path, image.shape[:2], capture)
        frames[cell.view, cell.time] = resize_image(image, width, height).transpose(2, 0, 1)
        if cell.depth is not None and depth is not None:
            path = capture.path(cell.depth)
            values = read_depth(path)
            _check_size(path, values.shape, capture)
            depth[cell.view, cell.time] = resize_depth(values, width, height)
    if capture.video is not None:
        _read_clip(capture, frames[capture.video.view], width, height)
    return FrameGrid(frames, capture.known, depth)


def working_size(
    width: int, height: int, size: int | None, columns: int | None = None
) -> tuple[int, int]:
    """(width, height) to work at, for frames of a given size and a wished height.

    columns: what the width must be a multiple of, None for nothing beside the models' patches.
    """
    if size in (None, height) and width % (columns or 1) == 0:
        return width, height
    size = height if size is None else size
    step = math.lcm(columns or 1, _STEP if size % _STEP == 0 else 1)
    return max(step, round(width * size / height / step) * step), size


def write_grid(folder: str | os.PathLike[str], grid: FrameGrid) -> None:
    """Write a folder of PNGs (and NPY depth) with grid.json, which comes last.

    The PNGs have 8 bits: what read_grid gives differs by up to 1/510. Raises ViewtimeError when
    the disk refuses.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "grid.json").unlink(missing_ok=True)
    except OSError as error:
        raise writing_failed(folder, error) from error
    for v in range(grid.views):
        for t in range(grid.times):
            image, depth = _files(folder, v, t)
            write_png(image, grid.frames[v, t].transpose(1, 2, 0))
            if grid.depth is not None:
                write_depth(depth, grid.depth[v, t])
    write_json(
        folder / "grid.json",
        {
            "format": FORMAT,
            "version": 1,
            "views": grid.views,
            "times": grid.times,
            "width": grid.width,
            "height": grid.height,
            "depth": grid.depth is not None,
            "known": grid.known.astype(int).tolist(),
        },
    )


def read_grid(folder: str | os.PathLike[str]) -> FrameGrid:
    """Read what write_grid wrote. Raises CaptureError for a folder that is not whole."""
    folder = Path(folder)
    fields = read_json(folder / "grid.json", CaptureError, format_name=FORMAT)
    views = fields.integer("views", 1, MAX_VIEWS)
    times = fields.integer("times", 1, MAX_CELLS // views)
    width, height = fields.integer("width", 1, MAX_SIDE), fields.integer("height", 1, MAX_SIDE)
    known = fields.array("known", (views, times)) != 0
    with_depth = fields.boolean("depth")
    if views * times * width * height * (4 if with_depth else 3) * 4 > MAX_GRID_BYTES:
        fields.fail("width", f"at most {MAX_GRID_BYTES >> 30} GiB of frames are read")
    # Every file is looked at before the arrays are made: grid.json may claim what it likes.
    for v in range(views):
        for t in range(times):
            for path in _files(folder, v, t)[: 1 + with_depth]:
                if not path.is_file():
                    raise CaptureError(f"{path}: there is no such file; write the grid again")
    frames = np.empty((views, times, 3, height, width), np.float32)
    depth = np.empty((views, times, height, width), np.float32) if with_depth else None
    for v in range(views):
        for t in range(times):
            image_path, depth_path = _files(folder, v, t)
            frames[v, t] = _sized(image_path, read_image(image_path), width, height).transpose(
                2, 0, 1
            )
            if depth is not None:
                depth[v, t] = _sized(depth_path, read_depth(depth_path), width, height)
    return FrameGrid(frames, known, depth)


def _files(folder: Path, view: int, time: int) -> tuple[Path, Path]:
    name = f"v{view:03d}.t{time:04d}"
    return folder / f"{name}.png", folder / f"{name}.depth.npy"


def _read_clip(capture: Capture, row: NDArray[np.float32], width: int, height: int) -> None:
    """Fill one view's row (T, 3, H, W) from the capture's video, which must have T frames."""
    assert capture.video is not None
    path = capture.path(capture.video.path)
    count = 0
    with open_video(path) as (frames, _):
        for frame in frames:
            if not count:
                _check_size(path, frame.shape[:2], capture)
            if count < capture.times:
                image = resize_image(
                    np.divide(frame, np.float32(255), dtype=np.float32), width, height
                )
                row[count] = image.transpose(2, 0, 1)
            count += 1
            if count > capture.times:
                break
    if count != capture.times:
        has = f"more than {capture.times}" if count > capture.times else count
        raise CaptureError(
            f"{path}: has {has} frames; capture.json says {capture.times} times, cut the clip or "
            "convert it with `viewtime convert video`"
        )


def _check_size(path: Path, shape: Any, capture: Capture) -> None:
    if tuple(shape) != (capture.height, capture.width):
        raise CaptureError(
            f"{path}: has {shape[1]} x {shape[0]} pixels; the capture has "
            f"{capture.width} x {capture.height}"
        )


def _sized(path: Path, array: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    if array.shape[:2] != (height, width):
        raise CaptureError(
            f"{path}: has {array.shape[1]} x {array.shape[0]} pixels; grid.json says "
            f"{width} x {height}"
        )
    return array
