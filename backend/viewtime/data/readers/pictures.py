# SPDX-License-Identifier: Apache-2.0
"""Views as files: their pictures or video, cut and scaled to the size that is asked for.

It opens what a layout has listed and knows no layout itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewtime.media import (
    MAX_IMAGE_PIXELS,
    count_frames,
    open_video,
    read_depth,
    read_image,
    resize_depth,
    resize_image,
)
from viewtime_formats.errors import CaptureError, RigError
from viewtime_formats.rig import Camera

Float32 = NDArray[np.float32]
PICTURES = (".png", ".jpg", ".jpeg", ".exr")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm")


@dataclass(frozen=True)
class View:
    """What one camera saw.

    pictures: its frames in the order of time; one for a still scene. video: the file instead.
    cameras: none when unknown, one when it stands still, or one per frame; each at any size of the
    same picture (1 x 1 where a dataset gives intrinsics as fractions). depths: one per picture, or
    none.
    """

    name: str
    pictures: tuple[Path, ...] = ()
    video: Path | None = None
    cameras: tuple[Camera, ...] = ()
    depths: tuple[Path, ...] = ()

    def length(self) -> int:
        """How many frames there are."""
        if self.video is None:
            return len(self.pictures)
        return _video_length(self.video, self.video.stat().st_mtime_ns)

    def camera(self, times: Sequence[int], width: int, height: int) -> Camera | None:
        """Its camera for pictures of width x height pixels; None when unknown.

        Raises CaptureError when it moves during `times` or belongs to pictures of another shape.
        """
        if not self.cameras:
            return None
        where = f"{self.video or self.pictures[0].parent}: view {self.name}"
        cameras = [self.cameras[t if len(self.cameras) > 1 else 0] for t in times]
        first = cameras[0]
        for t, other in zip(times, cameras):
            if np.abs(first.camera_from_world - other.camera_from_world).max() > 1e-3:
                raise CaptureError(
                    f"{where}: its camera has moved between frame {times[0]} and {t}; "
                    "a rig stands still, read such a scene at one time"
                )
        fraction = first.width == first.height == 1
        if not fraction and abs(first.width * height / (first.height * width) - 1) > 0.02:
            raise CaptureError(
                f"{where}: its pictures have {width} x {height} pixels, its camera is "
                f"for {first.width} x {first.height}; they must have the same shape"
            )
        return first.resized(width, height)


@lru_cache(maxsize=4096)
def _video_length(video: Path, _changed: int) -> int:
    return count_frames(video)


def files(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The files of a folder with one of these endings, by name with numbers as numbers."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.suffix.lower() in endings and p.is_file()]
    return sorted(found, key=by_number)


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, in the same order; hidden ones aside."""
    found = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return sorted(found, key=by_number)


def by_number(path: Path) -> tuple[Any, ...]:
    """A key that sorts 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((int(p), "") if p.isdecimal() else (-1, p) for p in parts)


def read_frames(
    view: View, times: Sequence[int], width: int, height: int
) -> tuple[Float32, Float32 | None, Camera | None]:
    """A view's frames (T,3,H,W) at `times`, their depth (T,H,W) if all have it, and the camera.

    Every frame is cut about its middle to the aspect of width x height, then each new pixel is the
    mean of what it covers (depth: the nearest). The camera is that of the cut and scaled picture.
    """
    frames = np.empty((len(times), 3, height, width), np.float32)
    size = (0, 0)
    for row, (where, image) in enumerate(_images(view, times)):
        if row and image.shape[:2] != size:
            raise CaptureError(
                f"{where}: has {image.shape[1]} x {image.shape[0]} pixels, the view's first frame "
                f"{size[1]} x {size[0]}; one size is needed"
            )
        size = image.shape[:2]
        frames[row] = resize_image(
            image[_middle(size[0], size[1], width, height)], width, height
        ).transpose(2, 0, 1)
    depth = None
    if view.depths:
        depth = np.empty((len(times), height, width), np.float32)
        for row, t in enumerate(times):
            values = read_depth(view.depths[t])
            if values.shape != size:
                raise CaptureError(
                    f"{view.depths[t]}: has {values.shape[1]} x {values.shape[0]} pixels, its "
                    f"picture {size[1]} x {size[0]}; one size is needed"
                )
            depth[row] = resize_depth(
                values[_middle(size[0], size[1], width, height)], width, height
            )
    camera = view.camera(times, size[1], size[0])
    return frames, depth, None if camera is None else _cut(camera, width, height)


def _images(view: View, times: Sequence[int]) -> Any:
    """(what it is called in errors, picture) for each time, in the order of `times`."""
    if view.video is None:
        for t in times:
            yield view.pictures[t], picture(view.pictures[t])
        return
    wanted = sorted(set(times))
    kept: dict[int, NDArray[np.uint8]] = {}
    with open_video(view.video) as (frames, _):
        for index, frame in enumerate(frames):
            if index == wanted[len(kept)]:
                kept[index] = frame
            if len(kept) == len(wanted):
                break
    for t in times:
        if t not in kept:
            raise CaptureError(f"{view.video}: breaks off before frame {t}; encode it again")
        yield view.video, np.divide(kept[t], np.float32(255), dtype=np.float32)


def picture(path: Path) -> Float32:
    """A PNG, JPEG or EXR as (H,W,3) float32 display sRGB in [0, 1].

    Transparency is laid over white, as renders of single objects are shown. A JPEG's orientation
    tag is ignored: cameras are calibrated on the stored pixels. Raises CaptureError.
    """
    if path.suffix.lower() == ".exr":
        return read_image(path)
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            if image.mode.startswith("I"):
                return read_image(path)  # 16-bit grey
            plain = image.convert("RGBA" if image.has_transparency_data else "RGB")
            pixels = np.asarray(plain, np.float32) / np.float32(255)
    except FileNotFoundError:
        raise CaptureError(f"{path}: there is no such picture") from None
    except Exception as problem:  # pillow raises a dozen types
        reason = " ".join(str(problem).split())[:120]
        raise CaptureError(f"{path}: cannot be read ({reason}); PNG, JPEG or EXR") from None
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:]
    return pixels[..., :3] * alpha + (1 - alpha)


def _middle(height: int, width: int, new_width: int, new_height: int) -> tuple[slice, slice]:
    """The largest middle part, in whole pixels, with the aspect of the new size."""
    w = min(width, max(1, round(height * new_width / new_height)))
    h = min(height, max(1, round(width * new_height / new_width)))
    top, left = (height - h) // 2, (width - w) // 2
    return slice(top, top + h), slice(left, left + w)


def _cut(camera: Camera, width: int, height: int) -> Camera:
    """The camera of the picture's middle part, scaled to width x height."""
    rows, columns = _middle(camera.height, camera.width, width, height)
    intrinsics = np.array(camera.intrinsics)
    intrinsics[:2, 2] -= columns.start, rows.start
    w, h = columns.stop - columns.start, rows.stop - rows.start
    try:
        part = Camera(camera.name, w, h, intrinsics, camera.camera_from_world)
    except RigError as problem:
        raise CaptureError(str(problem)) from None
    return part.resized(width, height)
