# SPDX-License-Identifier: Apache-2.0
"""A scene's folder as a FrameGrid and a Rig, whatever its layout. It never guesses a camera."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from viewtime.data.readers import layouts
from viewtime.data.readers.pictures import PICTURES, VIDEOS, View, files, folders, read_frames
from viewtime.grid import MAX_GRID_BYTES, FrameGrid
from viewtime_formats.errors import CaptureError
from viewtime_formats.rig import Rig

_READERS: dict[str, Callable[[Path], list[View]]] = {
    "nvidia": layouts.nvidia,
    "n3dv": layouts.n3dv,
    "transforms": layouts.transforms,
    "kubric": layouts.kubric,
    "llff": layouts.llff,
    "colmap": layouts.colmap_scene,
    "realestate10k": layouts.estate,
    "cameras": layouts.cameras,
}
LAYOUTS = tuple(_READERS)
"""The layouts' names: NVIDIA Dynamic Scene, Neural 3D Video, Objaverse-style renders, Kubric,
LLFF, COLMAP (Tanks & Temples, DL3DV), RealEstate10K, plain multi-camera folders."""


def detect_layout(folder: str | os.PathLike[str]) -> str:
    """Which of LAYOUTS a scene's folder has (for RealEstate10K its text file, or its folder with
    one). Raises CaptureError, which says what was looked for, when it has none."""
    layout = layout_of(Path(folder))
    if layout is None:
        if not Path(folder).exists():
            raise CaptureError(f"{folder}: there is no such folder")
        raise CaptureError(
            f"{folder}: has no layout that is known: mv_images/ or multiview_GT/ (nvidia), cam*.mp4"
            " and poses_bounds.npy (n3dv), transforms.json, metadata.json and rgba_*.png (kubric), "
            "images/ and poses_bounds.npy (llff), sparse/0 (colmap), a camera text file with frames"
            " (realestate10k), or a video or a folder of pictures per camera (cameras)"
        )
    return layout


def layout_of(folder: Path) -> str | None:
    """The layout of a scene's folder, None if it has none (it may hold scenes)."""
    if folder.is_file():
        return "realestate10k" if is_estate_file(folder) else None
    if not folder.is_dir():
        return None
    bounds = (folder / "poses_bounds.npy").is_file()
    if any((folder / room).is_dir() for room in ("mv_images", "dense/mv_images", "multiview_GT")):
        return "nvidia"
    videos = files(folder, VIDEOS)
    if bounds and any(video.stem.startswith("cam") for video in videos):
        return "n3dv"
    if any(path.is_file() for path in layouts.transforms_files(folder)):
        return "transforms"
    if layouts.kubric_files(folder):
        return "kubric"
    if bounds:
        return "llff"
    if layouts.colmap_model(folder):
        return "colmap"
    texts = estate_files(folder)
    if texts:
        return "realestate10k" if len(texts) == 1 else None
    if videos or any(files(room, PICTURES) for room in folders(folder)):
        return "cameras"
    return None


def is_estate_file(path: Path) -> bool:
    """Whether a text file's second line begins like a RealEstate10K camera: a timestamp and about
    19 numbers. A line that is not quite one is refused when it is read, not passed over here."""
    if path.suffix != ".txt":
        return False
    with open(path, "rb") as file:
        words = b"".join(file.read(4096).splitlines(keepends=True)[1:2]).split()
    return len(words) > 12 and words[0].isdigit()


def estate_files(folder: Path) -> list[Path]:
    """The RealEstate10K camera files in a folder."""
    return [path for path in files(folder, (".txt",)) if is_estate_file(path)]


def read_views(folder: str | os.PathLike[str]) -> list[View]:
    """What a scene's folder holds, undecoded. Raises CaptureError."""
    folder = Path(folder)
    layout = detect_layout(folder)
    if layout == "realestate10k" and folder.is_dir():
        folder = estate_files(folder)[0]
    views = _READERS[layout](folder)
    if not views:
        raise CaptureError(f"{folder}: holds no view")
    return views


def read_scene(
    folder: str | os.PathLike[str],
    *,
    views: int | Sequence[int] | None = None,
    times: int | Sequence[int] | None = None,
    height: int,
    width: int,
) -> tuple[FrameGrid, Rig | None]:
    """A scene as V x T frames of width x height pixels and, where its cameras are known, its Rig.

    views, times: None for all, a number for that many spread evenly from the first to the last, or
    the indices themselves, in the order of the dataset. The shortest view says how many times
    there are; a still scene (one picture per view) is repeated in time.
    Each frame is cut about its middle to the aspect of width x height, then each new pixel is the
    mean of what it covers; transparency is laid over white. The rig is that of these pictures:
    OpenCV axes, camera-from-world in the dataset's own unit, intrinsics in pixels of the size
    read with pixel centres at +0.5. Depth is there when every frame has one.
    Raises CaptureError, RigError.
    """
    found = read_views(folder)
    chosen = _indices(folder, "views", views, len(found))
    picked = [found[v] for v in chosen]
    length = min(view.length() for view in picked)
    if length == 1 and all(view.video is None for view in picked):
        count = times if isinstance(times, int) else 1 if times is None else len(times)
        moments = [0] * max(count, 0)
        if not moments:
            raise CaptureError(f"{folder}: times is {times}; at least one is needed")
    else:
        moments = _indices(folder, "times", times, length)
    return read_cells(picked, moments, width, height, dataset=str(folder))


def read_cells(
    views: Sequence[View], times: Sequence[int], width: int, height: int, dataset: str
) -> tuple[FrameGrid, Rig | None]:
    """The frames of `views` at `times`, as read_scene says."""
    if width < 1 or height < 1:
        raise CaptureError(f"{dataset}: {width} x {height} pixels are asked for; 1 x 1 at least")
    cells = len(views) * len(times)
    if cells * width * height * 16 > MAX_GRID_BYTES:
        raise CaptureError(
            f"{dataset}: {len(views)} views x {len(times)} times of {width} x {height} pixels are "
            f"over {MAX_GRID_BYTES >> 30} GiB; ask for less"
        )
    still = len(set(times)) == 1
    frames = np.empty((len(views), len(times), 3, height, width), np.float32)
    depths, cameras = [], []
    for v, view in enumerate(views):
        picture, depth, camera = read_frames(view, times[:1] if still else times, width, height)
        frames[v] = picture
        depths.append(depth)
        cameras.append(camera)
    known = np.ones(frames.shape[:2], bool)
    depth = None
    if all(d is not None for d in depths):
        depth = np.stack([np.broadcast_to(d, (len(times), height, width)) for d in depths])  # type: ignore[arg-type]
    rig = None
    if all(camera is not None for camera in cameras):
        rig = Rig(tuple(camera for camera in cameras if camera is not None), world="dataset")
    return FrameGrid(frames, known, depth), rig


def _indices(folder: object, what: str, wanted: int | Sequence[int] | None, have: int) -> list[int]:
    if wanted is None:
        return list(range(have))
    if isinstance(wanted, int):
        if not 1 <= wanted <= have:
            raise CaptureError(f"{folder}: {what} is {wanted}; the scene has 1 to {have}")
        return [int(i) for i in np.linspace(0, have - 1, wanted).round()]
    chosen = [int(i) for i in wanted]
    wrong = [i for i in chosen if not 0 <= i < have]
    if wrong or not chosen:
        asked = wrong[0] if wrong else "nothing"
        raise CaptureError(f"{folder}: {what} asks for {asked}; 0 to {have - 1} are there")
    return chosen
