# SPDX-License-Identifier: GPL-3.0-or-later
"""Renders cells (a camera at a frame) through the scene's own engine into a Capture folder.
It leaves every setting of the scene as it was and nothing half-written on disk, come what may."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy
import numpy as np

from viewtime_formats.capture import Capture, Cell, read_capture, write_capture
from viewtime_formats.errors import CaptureError
from viewtime_formats.rig import Camera, Rig

from ..conventions import camera_from_blender
from .exr import read_depth_pass, write_depth_exr
from .rig import rig_cameras

SKY = 1e9  # planar z from which on a renderer means "nothing there"
OURS = {"frames", "depth", "capture.json", "rig.json", "layers.exr"}
Progress = tuple[int, int, str]


@dataclass(frozen=True)
class CaptureSettings:
    """What to capture. folder: absolute. what: FIXED and / or FREEZE, or GRID; and DEPTH.

    times: 1 + 4k moments, evenly over frame_start..frame_end. size: pixels of the longer side.
    """

    folder: Path
    what: frozenset[str]
    frame_start: int
    frame_end: int
    times: int = 9
    freeze_time: int = 0
    size: int = 256
    prompt: str = ""


# ---- pure: which frames, which cells, what size ----


def capture_frames(frame_start: int, frame_end: int, times: int) -> list[int]:
    """The frames of `times` moments, evenly spaced by a whole step, both ends included.

    Raises CaptureError, naming what would do, when there are none.
    """
    if times < 1 or times % 4 != 1:
        below = max(1, (times - 1) // 4 * 4 + 1)
        choices = str(below) if times < 1 else f"{below} or {below + 4}"
        raise CaptureError(f"{times} times; the generator takes 1 + 4k: choose {choices}")
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


def capture_places(
    what: frozenset[str], views: int, times: int, fixed_view: int, freeze_time: int
) -> list[tuple[int, int]]:
    """(view, time) of every cell to render, by time and then by view. Raises CaptureError."""
    if not what & {"FIXED", "FREEZE", "GRID"}:
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


# ---- the scene, lent ----


@contextmanager
def borrowed(scene: bpy.types.Scene) -> Iterator[Callable]:
    """Lend the scene's settings: yields set(owner, name, value); all are put back on leaving.

    The frame, the camera and the cameras bound to timeline markers are put back as well.
    """
    taken: list[tuple[Any, str, Any]] = []

    def lend(owner: Any, name: str, value: Any) -> None:
        # Versions differ in what they have: a setting that is not there needs no change.
        if hasattr(owner, name):
            taken.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)

    frame, subframe = scene.frame_current, scene.frame_subframe
    images = scene.render.image_settings
    # These depend on one another: remembered before, and put back in this order.
    names = (
        "media_type",
        "file_format",
        "color_mode",
        "color_depth",
        "exr_codec",
        "compression",
        "color_management",
    )
    image_state = [(name, getattr(images, name)) for name in names if hasattr(images, name)]
    try:
        lend(scene, "camera", scene.camera)
        for marker in scene.timeline_markers:
            if marker.camera is not None:  # else the marker would change the camera back
                lend(marker, "camera", None)
        yield lend
    finally:
        for owner, name, value in reversed(taken):
            setattr(owner, name, value)
        for name, value in image_state:
            if getattr(images, name) != value:
                setattr(images, name, value)
        scene.frame_set(frame, subframe=subframe)


def _prepare(
    scene: bpy.types.Scene,
    cameras: Sequence[bpy.types.Object],
    layer: bpy.types.ViewLayer,
    width: int,
    height: int,
    depth: bool,
    lend: Callable,
) -> None:
    """One sharp, whole, uncomposited picture per cell: depth and colour meet pixel by pixel."""
    render = scene.render
    for name, value in (
        ("resolution_x", width),
        ("resolution_y", height),
        ("resolution_percentage", 100),
        ("use_border", False),
        ("use_crop_to_border", False),
        ("use_multiview", False),
        ("use_motion_blur", False),
        ("use_compositing", False),
        ("use_sequencer", False),
        ("use_single_layer", False),
        ("use_stamp", False),
        ("film_transparent", False),
        ("dither_intensity", 0.0),
    ):
        lend(render, name, value)
    for other in scene.view_layers:
        lend(other, "use", other == layer)
    if depth:
        lend(layer, "use_pass_z", True)
    for data in {camera.data for camera in cameras}:
        lend(data.dof, "use_dof", False)


def _image_format(scene: bpy.types.Scene, file_format: str) -> None:
    """PNG as displayed, or the multilayer EXR that exr.py reads."""
    settings = scene.render.image_settings
    png = file_format == "PNG"
    if hasattr(settings, "media_type"):  # Blender 5
        settings.media_type = "IMAGE" if png else "MULTI_LAYER_IMAGE"
    settings.file_format = file_format
    settings.color_mode = "RGB" if png else "RGBA"
    settings.color_depth = "8" if png else "32"
    settings.color_management = "FOLLOW_SCENE"
    if png:
        settings.compression = 15
    else:
        settings.exr_codec = "NONE"


def _render_cell(
    scene: bpy.types.Scene, camera: bpy.types.Object, image: Path, layers: Path | None
) -> np.ndarray | None:
    """Render the current frame into `image`; (H, W) float32 depth when `layers` names a file."""
    scene.camera = camera
    try:
        answer = bpy.ops.render.render(scene=scene.name)
        if "FINISHED" not in answer:
            raise CaptureError("The render was cancelled")
        result = bpy.data.images["Render Result"]
        _image_format(scene, "PNG")
        result.save_render(str(image), scene=scene)
        if layers is None:
            return None
        _image_format(scene, "OPEN_EXR_MULTILAYER")
        result.save_render(str(layers), scene=scene)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0].removeprefix("Error: ")
        raise CaptureError(f"Blender could not render: {reason}") from None
    depth = read_depth_pass(layers)
    layers.unlink()
    return depth


def _sky_colour(image: Path, depth: np.ndarray) -> np.ndarray | None:
    """(3,) display sRGB of the sky in one picture; None where it shows none to speak of."""
    sky = ~(depth < SKY)
    if sky.mean() < 0.002:
        return None
    loaded = bpy.data.images.load(str(image), check_existing=False)
    try:
        pixels = np.empty(len(loaded.pixels), np.float32)
        loaded.pixels.foreach_get(pixels)
    finally:
        bpy.data.images.remove(loaded)
    # Blender counts rows from the bottom.
    colours = pixels.reshape(*depth.shape, -1)[::-1, :, :3]
    return np.median(colours[sky], axis=0)


def _still_cameras(
    scene: bpy.types.Scene,
    cameras: Sequence[bpy.types.Object],
    frames: Sequence[int],
    width: int,
    height: int,
) -> Rig:
    """The rig at these frames. Raises CaptureError when a camera moves between them."""
    found: list[Camera] = []
    for frame in frames:
        scene.frame_set(frame)
        graph = bpy.context.evaluated_depsgraph_get() if scene == bpy.context.scene else None
        for view, ob in enumerate(cameras):
            seen = camera_from_blender(
                ob.evaluated_get(graph) if graph else ob, scene, width, height
            )
            if frame == frames[0]:
                found.append(seen)
                continue
            first = found[view]
            moved = np.abs(seen.center - first.center).max()
            turned = np.abs(seen.rotation - first.rotation).max()
            zoomed = np.abs(seen.intrinsics - first.intrinsics).max()
            scale = 1.0 + np.abs(first.center).max()
            if moved > 1e-4 * scale or turned > 1e-4 or zoomed > 1e-3 * width:
                raise CaptureError(
                    f"Camera '{ob.name}' moves between frames {frames[0]} and {frame}; "
                    "the cameras of a rig stand still"
                )
    return Rig(tuple(found))


# ---- a whole folder ----


def render_steps(
    scene: bpy.types.Scene,
    cameras: Sequence[bpy.types.Object],
    frames: Sequence[int],
    folder: Path,
    *,
    size: int,
    places: Sequence[tuple[int, int]] | None = None,
    depth: bool = True,
    fixed_view: int | None = None,
    freeze_time: int | None = None,
    prompt: str = "",
) -> Iterator[Progress]:
    """Render `places` (view, time) (all of them by default) into a new Capture folder.

    Yields (cells done, cells in all, message) before each cell and at the end. Closing the
    generator early cancels: the scene is as before and no folder is left.
    frames: evenly spaced. Raises CaptureError, RigError.
    """
    if not cameras:
        raise CaptureError("No camera to render from")
    steps = set(np.diff(frames).tolist()) or {1}
    if not frames or len(steps) != 1 or min(steps) < 1:
        raise CaptureError(f"Frames {list(frames)} are not evenly spaced")
    if places is None:
        places = [(v, t) for t in range(len(frames)) for v in range(len(cameras))]
    width, height = capture_resolution(scene, size)
    layer = bpy.context.view_layer if scene == bpy.context.scene else scene.view_layers[0]
    part = _begin(folder, depth)
    cells: list[Cell] = []
    skies: dict[int, np.ndarray] = {}
    try:
        with borrowed(scene) as lend:
            _prepare(scene, cameras, layer, width, height, depth, lend)
            rig = _still_cameras(scene, cameras, frames, width, height)
            for view, time in places:
                message = f"Rendering view {view}, frame {frames[time]}"
                yield len(cells), len(places), message
                # The panel may have let others at the scene in between.
                if scene.frame_current != frames[time] or scene.frame_subframe:
                    scene.frame_set(frames[time])
                name = f"v{view:03d}.t{time:04d}"
                image = f"frames/{name}.png"
                z = _render_cell(
                    scene, cameras[view], part / image, part / "layers.exr" if depth else None
                )
                if z is not None:
                    write_depth_exr(part / "depth" / f"{name}.exr", z)
                    if view not in skies and (sky := _sky_colour(part / image, z)) is not None:
                        skies[view] = sky
                cells.append(Cell(view, time, image, f"depth/{name}.exr" if depth else None))
            write_capture(
                part,
                views=len(cameras),
                times=len(frames),
                width=width,
                height=height,
                cells=cells,
                fps=scene.render.fps / scene.render.fps_base,
                frame_start=frames[0],
                frame_step=steps.pop(),
                prompt=prompt,
                fixed_view=fixed_view,
                freeze_time=freeze_time,
                background=np.median(list(skies.values()), axis=0) if skies else None,
                rig=rig,
            )
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        raise CaptureError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        # After the rename there is nothing left to remove.
        shutil.rmtree(part, ignore_errors=True)
    yield len(places), len(places), f"Captured {len(places)} frames"


def _begin(folder: Path, depth: bool) -> Path:
    """The folder beside `folder` in which the work grows. Raises CaptureError."""
    part = folder.with_name(folder.name + ".part")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CaptureError(f"{folder} is not empty; choose another capture folder or empty it")
        if part.exists():
            if {item.name for item in part.iterdir()} - OURS:
                raise CaptureError(f"{part} holds something else; move it away")
            shutil.rmtree(part)  # left by a Blender that was killed
        (part / "frames").mkdir(parents=True)
        if depth:
            (part / "depth").mkdir()
    except OSError as error:
        raise CaptureError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return part


def render_cells(
    scene: bpy.types.Scene,
    cameras: Sequence[bpy.types.Object],
    frames: Sequence[int],
    folder: Path | str,
    *,
    depth: bool = True,
    size: int | None = None,
) -> Capture:
    """Every camera at every frame, now, into a new Capture folder; they need not be in the rig."""
    for _ in render_steps(
        scene, cameras, frames, Path(folder), depth=depth, size=size or scene.viewtime.capture_size
    ):
        pass
    return read_capture(folder)


def capture_steps(context: bpy.types.Context, settings: CaptureSettings) -> Iterator[Progress]:
    """Capture the scene's rig as `settings` say; yields (done, total, message) as render_steps.

    Raises ViewtimeError (RigError, CaptureError) with one line for the person.
    """
    scene = context.scene
    cameras = rig_cameras(scene)
    frames = capture_frames(settings.frame_start, settings.frame_end, settings.times)
    fixed_view = fixed_view_of(scene, cameras)
    places = capture_places(
        settings.what, len(cameras), len(frames), fixed_view, settings.freeze_time
    )
    grid = "GRID" in settings.what
    try:
        yield from render_steps(
            scene,
            cameras,
            frames,
            settings.folder,
            size=settings.size,
            places=places,
            depth="DEPTH" in settings.what,
            fixed_view=fixed_view if grid or "FIXED" in settings.what else None,
            freeze_time=settings.freeze_time if "FREEZE" in settings.what else None,
            prompt=settings.prompt,
        )
    except MemoryError as error:
        raise CaptureError("Out of memory while rendering; capture at a smaller size") from error


def fixed_view_of(scene: bpy.types.Scene, cameras: Sequence[bpy.types.Object]) -> int:
    """View of the active camera; where it is not of the rig, the view that stands nearest to it."""
    if scene.camera is None:
        return 0
    if scene.camera in cameras:
        return list(cameras).index(scene.camera)
    place = scene.camera.matrix_world.translation
    return int(np.argmin([(c.matrix_world.translation - place).length for c in cameras]))
