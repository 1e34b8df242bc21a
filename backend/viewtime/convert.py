# SPDX-License-Identifier: Apache-2.0
"""Capture folders from real input: calibrated photos with depth, or one video as fixed-view clip.

Never touches the input, never overwrites a folder, and leaves nothing behind when it fails.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from viewtime.grid import working_size
from viewtime.media import (
    MAX_VIDEO_FRAMES,
    open_video,
    read_image,
    resize_image,
    write_depth,
    write_png,
)
from viewtime_formats.atomic import writing_failed
from viewtime_formats.capture import Capture, Cell, read_capture, write_capture
from viewtime_formats.errors import CaptureError, RigError
from viewtime_formats.rig import Camera, Rig

DEFAULT_TIMES = 49
"""How many frames of a longer video are taken unless the caller says otherwise."""
_CONDITION = "condition.npz"
_AGREEMENT = 0.25  # of the overlapping pixels; wrong conventions reach 0.04, real photos 0.95
_LAYOUT = (
    f"photos named 0.png, 1.png, ... and a {_CONDITION} with intrinsics (V,3,3), poses (V,4,4) "
    "and depths (V,H,W) are needed"
)


def photos_to_capture(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> Capture:
    """Make a Capture (V views, one time, full grid with depth) of calibrated photos.

    folder: N.png in view order and condition.npz with intrinsics (V, 3, 3) in pixels, poses
    (V, 4, 4) camera-to-world with OpenCV axes, depths (V, H, W) planar z; zero is unknown.
    The poses are tested by reprojecting every view's depth into the others; the same test tells
    whether the intrinsics count from pixel corners or from pixel centres (ours: corners).
    Raises CaptureError, ViewtimeError when the disk refuses.
    """
    folder = Path(folder)
    paths = _photos(folder)
    intrinsics, poses, depths = _condition(folder / _CONDITION, len(paths))
    images = [read_image(path) for path in paths]
    height, width = images[0].shape[:2]
    for path, image in zip(paths, images):
        if image.shape != images[0].shape:
            raise CaptureError(
                f"frames of two sizes: {paths[0]} has {width} x {height} and {path} has "
                f"{image.shape[1]} x {image.shape[0]} pixels; all photos need one size"
            )
    if depths.shape[1:] != (height, width):
        raise CaptureError(
            f"{folder / _CONDITION}: depths are {depths.shape[2]} x {depths.shape[1]} pixels, the "
            f"photos {width} x {height}; one size is needed"
        )
    rig = _measured_rig(paths, intrinsics, poses, depths)
    with _new_folder(Path(out)) as part:
        cells = []
        for v, image in enumerate(images):
            cell = Cell(v, 0, f"frames/v{v:03d}.t0000.png", f"depth/v{v:03d}.t0000.npy")
            write_png(part / cell.image, image)
            write_depth(part / str(cell.depth), depths[v])
            cells.append(cell)
        write_capture(
            part, views=len(images), times=1, width=width, height=height, cells=cells, rig=rig,
            fixed_view=0, freeze_time=0,
        )  # fmt: skip
    return read_capture(out)


def video_to_capture(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    times: int | None = None,
    size: int | None = None,
    prompt: str = "",
) -> Capture:
    """Make a Capture (one view, T times, no rig, no depth) of a video as the fixed-view clip.

    times: how many frames, 1 + 4k, spread evenly from the first to the last. None takes as many
    as there are, at most 49, in equal steps from the first (the rest of the clip is left out).
    size: height in pixels (None: the video's own). The capture's fps is that of the frames taken.
    `what_happens` says in words what a job will do with it. Raises CaptureError, ViewtimeError
    when the disk refuses.
    """
    if times is not None:
        check_times(times)
    file = Path(file)
    with open_video(file) as (frames, fps):
        count = 0
        for _ in frames:
            count += 1
            if count > MAX_VIDEO_FRAMES:
                raise CaptureError(f"{file}: has over {MAX_VIDEO_FRAMES} frames; cut it shorter")
    wanted = _chosen(file, count, times)
    step = (wanted[-1] - wanted[0]) / max(len(wanted) - 1, 1) or 1
    with _new_folder(Path(out)) as part, open_video(file) as (frames, _fps):
        cells: list[Cell] = []
        width = height = 0
        for index, frame in enumerate(frames):
            if index != wanted[len(cells)]:
                continue
            width, height = working_size(frame.shape[1], frame.shape[0], size)
            cell = Cell(0, len(cells), f"frames/v000.t{len(cells):04d}.png")
            write_png(part / cell.image, resize_image(_unit(frame), width, height))
            cells.append(cell)
            if len(cells) == len(wanted):
                break
        write_capture(
            part, views=1, times=len(cells), width=width, height=height, cells=cells,
            fps=fps / step, prompt=prompt, fixed_view=0,
        )  # fmt: skip
    return read_capture(out)


def what_happens(capture: Capture) -> str:
    """One sentence for people: what a job will do about the views that a capture does not give."""
    known = int(capture.known.sum())
    size = f"{capture.views} views x {capture.times} times"
    if capture.is_full_grid and capture.has_depth and capture.rig is not None:
        return f"{size}, all given with depth and cameras: splats are fused from them exactly"
    if capture.views == 1:
        return (
            f"1 view x {capture.times} times without a rig or freeze-time frames: no other view "
            "will be generated; the clip itself is lifted to splats with predicted geometry. To "
            "see it from elsewhere, add a rig and one freeze-time frame per camera"
            if capture.rig is None
            else f"1 view x {capture.times} times: no other view will be generated; the clip "
            "itself is lifted to splats with predicted geometry"
        )
    if capture.is_full_grid:
        return f"{size}, all given: they are lifted to splats with predicted geometry"
    missing = capture.views * capture.times - known
    return f"{size}, {known} given: the other {missing} are generated, then lifted to splats"


def check_times(times: int) -> None:
    """Raise CaptureError, naming the nearest valid lengths, unless `times` is 1 + 4k."""
    if times < 1 or times % 4 != 1:
        below = max(1, (times - 1) // 4 * 4 + 1)
        near = f"{below} or {below + 4}" if times > 1 else "1"
        raise CaptureError(
            f"times is {times}; the video model takes 1 + 4k frames (1, 5, 9, ...), nearest: {near}"
        )


def _chosen(file: Path, count: int, times: int | None) -> list[int]:
    """Which of `count` frames are taken."""
    if times is None:
        length = (min(count, DEFAULT_TIMES) - 1) // 4 * 4 + 1
        step = (count - 1) // max(length - 1, 1) or 1
        return [step * t for t in range(length)]
    if times > count:
        most = (count - 1) // 4 * 4 + 1
        raise CaptureError(f"{file}: has {count} frames, times is {times}; at most {most} will do")
    return [int(i) for i in np.linspace(0, count - 1, times).round()]


def _unit(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.divide(frame, np.float32(255), dtype=np.float32)


# ---- calibrated photos -------------------------------------------------------------------------


def _photos(folder: Path) -> list[Path]:
    """N.png in the order of N, which must run from 0 without a gap."""
    if not folder.is_dir():
        raise CaptureError(f"{folder}: there is no such folder; {_LAYOUT}")
    found = {int(p.stem): p for p in folder.glob("*.png") if p.stem.isascii() and p.stem.isdigit()}
    if not found:
        raise CaptureError(f"{folder}: holds no photo; {_LAYOUT}")
    missing = [n for n in range(len(found)) if n not in found]
    if missing:
        raise CaptureError(f"{folder}: {missing[0]}.png is missing among {len(found)} photos")
    return [found[n] for n in range(len(found))]


def _condition(path: Path, views: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """intrinsics, poses (float64) and depths (float32, unknown as NaN) for `views` views."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for name in ("intrinsics", "poses", "depths"):
                info = archive.getinfo(f"{name}.npy")
                with archive.open(info) as file:
                    arrays[name] = _npy(file, info.file_size)
    except FileNotFoundError:
        raise CaptureError(f"{path}: there is no such file; {_LAYOUT}") from None
    except Exception as problem:  # zipfile, zlib and numpy raise whatever the bytes provoke
        reason = " ".join(str(problem).split())[:120]
        raise CaptureError(f"{path}: cannot be read ({reason}); {_LAYOUT}") from None
    for name, rest in (("intrinsics", (3, 3)), ("poses", (4, 4)), ("depths", (None, None))):
        shape = arrays[name].shape
        if len(shape) != 3 or any(b not in (None, a) for a, b in zip(shape[1:], rest)):
            raise CaptureError(f"{path}: {name} has shape {shape}; {_LAYOUT}")
        if shape[0] != views:
            raise CaptureError(f"{path}: {name} has {shape[0]} views, there are {views} photos")
    with np.errstate(over="ignore"):
        depths = arrays["depths"].astype(np.float32)
    depths[~(depths > 0)] = np.nan
    return arrays["intrinsics"].astype(float), arrays["poses"].astype(float), depths


def _npy(file: IO[bytes], size: int) -> NDArray[Any]:
    """One array of an npz, allocated only when the archive really says that it has those bytes."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
    shape, fortran, dtype = (read or np.lib.format.read_array_header_2_0)(file)
    count = int(np.prod([int(n) for n in shape], dtype=object)) if shape else 1
    if dtype.kind not in "fiu" or count * dtype.itemsize != size - file.tell():
        raise ValueError(f"an array of {shape} {dtype} in {size} bytes")
    data = file.read(count * dtype.itemsize)
    flat = np.frombuffer(data, dtype, count)
    return flat.reshape(shape, order="F" if fortran else "C")


def _measured_rig(
    paths: list[Path],
    intrinsics: NDArray[np.float64],
    poses: NDArray[np.float64],
    depths: NDArray[np.float32],
) -> Rig:
    """The rig whose reprojections agree best; CaptureError when none agrees."""
    height, width = depths.shape[1:]
    best: tuple[float, float, Rig] | None = None
    for shift in (0.0, 0.5):  # intrinsics that count from pixel corners, from pixel centres
        cameras = []
        for v, path in enumerate(paths):
            matrix = intrinsics[v].copy()
            matrix[:2, 2] += shift
            try:
                camera_from_world = np.linalg.inv(poses[v])[:3]
                camera = Camera(path.stem, width, height, matrix, camera_from_world)
            except (RigError, np.linalg.LinAlgError) as problem:
                raise CaptureError(f"{path.parent / _CONDITION}: view {v}: {problem}") from None
            cameras.append(camera)
        rig = Rig(tuple(cameras), world="capture")
        agreeing, error = reprojection_agreement(rig, depths)
        if best is None or error < best[1]:
            best = agreeing, error, rig
    assert best is not None
    if best[0] < _AGREEMENT:
        raise CaptureError(
            f"{paths[0].parent / _CONDITION}: only {best[0]:.0%} of the depth agrees between the "
            "views; poses must be camera-to-world with OpenCV axes (x right, y down, z forward) "
            "and depths planar z in the same unit"
        )
    return best[2]


def reprojection_agreement(
    rig: Rig, depths: NDArray[np.float32], stride: int = 4
) -> tuple[float, float]:
    """How well depth maps (V, H, W) agree when every view is projected into every other.

    Returns the fraction of overlapping pixels within 3% of the other view's depth, and the median
    relative difference of those; (1, 0) when no two views overlap, for nothing contradicts them.
    """
    views, height, width = depths.shape
    y, x = np.mgrid[0:height:stride, 0:width:stride].reshape(2, -1)
    pixels = np.stack([x + 0.5, y + 0.5, np.ones(len(x))])
    differences = []
    for i, source in enumerate(rig.cameras):
        z = depths[i, y, x]
        solid = np.isfinite(z)
        rays = np.linalg.solve(source.intrinsics, pixels[:, solid])
        points = source.rotation.T @ (rays * z[solid] - source.translation[:, None])
        for j, target in enumerate(rig.cameras):
            if i == j:
                continue
            seen = target.rotation @ points + target.translation[:, None]
            seen = seen[:, seen[2] > 1e-6]
            u, v, w = target.intrinsics @ seen
            with np.errstate(over="ignore"):
                column, row = np.floor(u / w), np.floor(v / w)
            within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            there = depths[j, row[within].astype(int), column[within].astype(int)]
            expected = seen[2, within]
            both = np.isfinite(there)
            differences.append(np.abs(there[both] - expected[both]) / expected[both])
    every = np.concatenate(differences) if differences else np.zeros(0)
    if not len(every):
        return 1.0, 0.0
    return float((every < 0.03).mean()), float(np.median(every))


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` with frames/ and depth/; it becomes `out` at the end."""
    if out.exists() or out.is_symlink():
        raise CaptureError(f"{out}: exists already and is not overwritten; choose another folder")
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    made = False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        made = True
        (part / "frames").mkdir()
        (part / "depth").mkdir()
        yield part
        if not any((part / "depth").iterdir()):
            (part / "depth").rmdir()
        os.rename(part, out)
        made = False
    except OSError as problem:
        raise writing_failed(out, problem) from problem
    finally:
        if made:
            shutil.rmtree(part, ignore_errors=True)
