# SPDX-License-Identifier: Apache-2.0
"""Training clips drawn from folders of scenes. Everything follows from the generator that is given.

It decides which views and times are shown; it never decides what a model is told of them.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from viewtime.data.homography import random_homographies, warp_video
from viewtime.data.readers.captions import read_caption
from viewtime.data.readers.pictures import VIDEOS, View, folders
from viewtime.data.readers.scene import estate_files, layout_of, read_cells, read_views
from viewtime_formats.errors import CaptureError

KINDS = ("objects", "physics", "homography", "static")
_DEPTH = 3  # how far below a dataset's folder its scenes are looked for
_TRIES = 16  # scenes that are tried before a dataset is said to have none that is large enough
_MOST_SKIPPED = 3  # the widest step between the frames of a clip


@lru_cache(maxsize=64)
def scenes_in(folder: str) -> tuple[str, ...]:
    """The scenes of a dataset's folder, or of a scene's: folders with a known layout, up to three
    levels down, camera text files of RealEstate10K, and videos that lie alone. Remembered: scenes
    added later are not seen. Raises CaptureError when there is none."""
    found = tuple(str(path) for path in _scenes(Path(folder), _DEPTH))
    if not found:
        raise CaptureError(f"{folder}: holds no scene of a known layout, nor a video")
    return found


def _scenes(folder: Path, depth: int) -> list[Path]:
    if not folder.is_dir():
        return [folder] if folder.suffix.lower() in VIDEOS or layout_of(folder) else []
    layout = layout_of(folder)
    deeper = [room for room in folders(folder) if depth]
    if layout == "cameras" and any(layout_of(room) not in (None, "cameras") for room in deeper):
        layout = None  # a folder of scenes, one of which happens to hold loose pictures
    if layout is not None:
        return [folder]
    return estate_files(folder) or [scene for room in deeper for scene in _scenes(room, depth - 1)]


def training_clip(
    folder: str,
    rng: np.random.Generator,
    views: int,
    times: int,
    height: int,
    width: int,
    kind: str,
) -> np.ndarray:
    """A grid (V,T,3,H,W) float32 display sRGB in [0, 1] of a random scene below `folder`.

    objects, physics: views and times of a dynamic scene, each a run with a random start and step,
    so that neighbours stay neighbours. static: such views at one time, repeated; with one view, a
    clip along the views instead (a camera path through a still scene). homography: one camera's
    clip, under a random homography per view. Cut and scaled as read_scene does. The same rng state
    and files give the same grid.
    A video is decoded from its beginning up to the clip: cut long ones into pictures for training.
    Raises CaptureError when no scene is large enough.
    """
    return captioned_clip(folder, rng, views, times, height, width, kind)[0]


def captioned_clip(
    folder: str,
    rng: np.random.Generator,
    views: int,
    times: int,
    height: int,
    width: int,
    kind: str,
) -> tuple[np.ndarray, str]:
    """`training_clip`, and what its scene shows as `read_caption` has it."""
    if kind not in KINDS:
        raise CaptureError(f"kind is {kind!r}; one of {', '.join(KINDS)} is needed")
    scenes = scenes_in(folder)
    need = {"homography": (1, times), "static": (views if views > 1 else times, 1)}
    need_views, need_times = need.get(kind, (views, times))
    largest = (0, 0)
    for number in rng.permutation(len(scenes))[:_TRIES]:
        scene = scenes[number]
        found = _views(scene)
        if kind == "homography":
            found = [found[int(rng.integers(len(found)))]]
        length = min((view.length() for view in found), default=0)
        if len(found) >= need_views and length >= need_times:
            chosen = [found[v] for v in _run(rng, len(found), need_views, len(found))]
            moments = _run(rng, length, need_times, _MOST_SKIPPED)
            grid, _ = read_cells(chosen, moments, width, height, scene)
            return _arranged(grid.frames, rng, views, times, kind), read_caption(scene)
        largest = max(largest, (len(found), length))
    raise CaptureError(
        f"{folder}: no scene of {min(len(scenes), _TRIES)} tried has {need_views} views x "
        f"{need_times} times, which a {kind} clip needs; one has {largest[0]} x {largest[1]}"
    )


def _views(scene: str) -> list[View]:
    path = Path(scene)
    if path.suffix.lower() in VIDEOS and path.is_file():
        return [View(path.stem, video=path)]
    return read_views(path)


def _run(rng: np.random.Generator, have: int, need: int, most: int) -> list[int]:
    """`need` numbers below `have`, evenly spaced by at most `most`."""
    step = 1 if need < 2 else int(rng.integers(1, min(most, (have - 1) // (need - 1)) + 1))
    first = int(rng.integers(have - step * (need - 1)))
    return [first + step * n for n in range(need)]


def _arranged(
    frames: np.ndarray, rng: np.random.Generator, views: int, times: int, kind: str
) -> np.ndarray:
    """The frames read (need_views, need_times, 3, H, W) as the (V, T, 3, H, W) of a kind."""
    if kind == "homography":
        *_, height, width = frames.shape
        matrices = random_homographies(int(rng.integers(1 << 31)), views, width, height)
        return warp_video(np.ascontiguousarray(frames[0].transpose(0, 2, 3, 1)), matrices)
    if kind == "static":
        if views == 1:
            return np.ascontiguousarray(frames.swapaxes(0, 1))
        return np.repeat(frames, times, axis=1)
    return frames
