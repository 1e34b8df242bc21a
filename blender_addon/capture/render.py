# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a Capture folder: rendered cells, and pictures from a clip or from files, in one order.
It leaves every setting of the scene as it was and nothing half-written on disk, come what may."""

from __future__ import annotations

import shutil
import time as clock
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bpy
import numpy as np

from viewtime_formats.capture import Capture, Cell, read_capture, write_capture
from viewtime_formats.errors import CaptureError

from .cells import prepare, prepare_view, render_cell, sky_colour, still_cameras
from .exr import write_depth_exr
from .frames import Plan, capture_frames, capture_places, capture_resolution
from .lend import borrowed
from .media import Media, Reader, open_pictures, read_picture
from .pixels import Box, cut, write_png
from .rig import fixed_view_of, rig_cameras
from .sources import ClipSource, freeze_media, media_box

OURS = {"frames", "depth", "capture.json", "rig.json", "layers.exr"}
Progress = tuple[int, int, str]

__all__ = ["CaptureSettings", "capture_frames", "capture_resolution", "capture_steps"]


@dataclass(frozen=True)
class CaptureSettings:
    """What to capture. folder: absolute. what: FIXED and / or FREEZE, or GRID; and DEPTH.

    times: 1 + 4k moments, evenly over frame_start..frame_end. size: pixels of the longer side.
    clip: where the fixed view's pictures come from. freeze_files: absolute, one for each view in
    view order; without them the freeze-time frames are rendered. engine, samples: see cells.prepare
    crop: whether pictures of another shape than the render's are cropped to it.
    """

    folder: Path
    what: frozenset[str]
    frame_start: int
    frame_end: int
    times: int = 9
    freeze_time: int = 0
    size: int = 256
    prompt: str = ""
    clip: ClipSource = ClipSource()
    freeze_files: tuple[Path, ...] = ()
    engine: str = "SCENE"
    samples: int = 0
    crop: bool = False


@dataclass
class Measured:
    """What a capture took, for the next estimate: seconds of each cell, and bytes on disk."""

    rendered: list[float] = field(default_factory=list)
    decoded: list[float] = field(default_factory=list)
    image_bytes: int = 0
    depth_bytes: int = 0
    pixels: int = 0


@dataclass(frozen=True)
class Pictures:
    """An open clip or row of files: what it is, what is taken of it, and how to read it."""

    media: Media
    box: Box
    read: Reader


# ---- a whole folder ----


def render_steps(
    context: bpy.types.Context,
    scene: bpy.types.Scene,
    cameras: Sequence[bpy.types.Object],
    frames: Sequence[int],
    settings: CaptureSettings,
    *,
    places: Sequence[tuple[int, int]] | None = None,
    fixed_view: int | None = None,
    freeze_time: int | None = None,
    measured: Measured | None = None,
) -> Iterator[Progress]:
    """Bring `places` (view, time) (all of them by default) into the new folder of the settings.

    Yields (cells done, cells in all, message) before each cell and at the end. Closing the
    generator early cancels: the scene is as before and no folder is left.
    frames: evenly spaced. Raises CaptureError, RigError.
    """
    if not cameras:
        raise CaptureError("No camera to render from")
    steps = set(np.diff(frames).tolist()) or {1}
    if not frames or len(steps) != 1 or min(steps) < 1:
        raise CaptureError(f"Frames {list(frames)} are not evenly spaced")
    plan = Plan(frames[0], steps.pop(), len(frames))
    if places is None:
        places = [(v, t) for t in range(len(frames)) for v in range(len(cameras))]
    measured = measured or Measured()
    size = capture_resolution(scene, settings.size)
    layer = bpy.context.view_layer if scene == bpy.context.scene else scene.view_layers[0]
    depth, viewport = "DEPTH" in settings.what, settings.engine == "VIEWPORT"
    if depth and viewport:
        raise CaptureError("A viewport render gives no depth: turn Depth off, or choose an engine")
    part = _begin(settings.folder, depth)
    cells: list[Cell] = []
    skies: dict[int, np.ndarray] = {}
    try:
        # The scene is put back before the clip's own scene goes: last in, first out.
        with ExitStack() as stack:
            sources = _open_sources(stack, scene, settings, plan, len(cameras), fixed_view)
            rendered = {view for view, _ in places} - set(sources)
            lend = stack.enter_context(borrowed(scene))
            prepare(
                scene, cameras, layer, size, lend,
                depth=depth, engine=settings.engine, samples=settings.samples,
            )  # fmt: skip
            view_3d = prepare_view(context, lend) if viewport and rendered else None
            rig = still_cameras(
                scene,
                cameras,
                frames,
                [sources[v].box[2:] if v in sources else size for v in range(len(cameras))],
                size,
            )
            # From the end of one cell to that of the next: what a window does in between counts.
            ended = None
            for view, time in places:
                verb = "Reading" if view in sources else "Rendering"
                yield len(cells), len(places), f"{verb} view {view}, frame {frames[time]}"
                started = ended or clock.perf_counter()
                name = f"v{view:03d}.t{time:04d}"
                image = f"frames/{name}.png"
                if view in sources:
                    source = sources[view]
                    write_png(part / image, cut(source.read(frames[time]), source.box, *size))
                    cells.append(Cell(view, time, image))
                    ended = clock.perf_counter()
                    measured.decoded.append(ended - started)
                    continue
                # The panel may have let others at the scene in between.
                if scene.frame_current != frames[time] or scene.frame_subframe:
                    scene.frame_set(frames[time])
                z = render_cell(
                    scene,
                    cameras[view],
                    part / image,
                    part / "layers.exr" if depth else None,
                    view_3d,
                )
                if z is not None:
                    write_depth_exr(part / "depth" / f"{name}.exr", z)
                    if view not in skies:
                        sky = sky_colour(read_picture(part / image), z)
                        skies |= {} if sky is None else {view: sky}
                cells.append(Cell(view, time, image, f"depth/{name}.exr" if depth else None))
                ended = clock.perf_counter()
                measured.rendered.append(ended - started)
            write_capture(
                part,
                views=len(cameras),
                times=len(frames),
                width=size[0],
                height=size[1],
                cells=cells,
                fps=scene.render.fps / scene.render.fps_base,
                frame_start=plan.start,
                frame_step=plan.step,
                prompt=settings.prompt,
                fixed_view=fixed_view,
                freeze_time=freeze_time,
                background=np.median(list(skies.values()), axis=0) if skies else None,
                rig=rig,
            )
        measured.pixels = size[0] * size[1]
        measured.image_bytes = sum((part / cell.image).stat().st_size for cell in cells)
        measured.depth_bytes = sum((part / c.depth).stat().st_size for c in cells if c.depth)
        if settings.folder.exists():
            settings.folder.rmdir()
        part.rename(settings.folder)
    except OSError as error:
        raise _unwritable(settings.folder, error) from error
    finally:
        # After the rename there is nothing left to remove.
        shutil.rmtree(part, ignore_errors=True)
    yield len(places), len(places), f"Captured {len(places)} frames"


def _open_sources(
    stack: ExitStack,
    scene: bpy.types.Scene,
    settings: CaptureSettings,
    plan: Plan,
    views: int,
    fixed_view: int | None,
) -> dict[int, Pictures]:
    """What each view that is not rendered is read from, once per frame of the scene."""
    sources: dict[int, Pictures] = {}
    if "GRID" in settings.what:
        return sources
    if "FREEZE" in settings.what and settings.freeze_files:
        media = freeze_media(settings.freeze_files, views)
        box = media_box(scene, media, settings.crop)
        read = stack.enter_context(open_pictures(settings.freeze_files))
        for view in range(views):
            sources[view] = Pictures(media, box, lambda _frame, v=view: read(v + 1))
    if "FIXED" in settings.what and fixed_view is not None:
        # The fixed view is one thing: its freeze-time frame is that of the clip.
        sources.pop(fixed_view, None)
        if settings.clip.kind != "RENDER":
            media = settings.clip.probe()
            settings.clip.check(media, plan)
            box = media_box(scene, media, settings.crop)
            read_clip = stack.enter_context(settings.clip.open(media, plan))
            sources[fixed_view] = Pictures(media, box, read_clip)
    return sources


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
        raise _unwritable(folder, error) from error
    return part


def _unwritable(folder: Path, error: OSError) -> CaptureError:
    return CaptureError(f"{folder}: cannot be written ({error.strerror or error})")


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
    what = frozenset({"GRID", "DEPTH"} if depth else {"GRID"})
    settings = CaptureSettings(
        Path(folder), what, frames[0], frames[-1], size=size or scene.viewtime.capture_size
    )
    for _ in render_steps(bpy.context, scene, cameras, frames, settings):
        pass
    return read_capture(folder)


def capture_steps(
    context: bpy.types.Context, settings: CaptureSettings, measured: Measured | None = None
) -> Iterator[Progress]:
    """Capture the scene's rig as `settings` say; yields (done, total, message) as render_steps.

    Raises ViewtimeError (RigError, CaptureError) with one line for the person.
    """
    scene = context.scene
    cameras = rig_cameras(scene)
    frames = capture_frames(settings.frame_start, settings.frame_end, settings.times)
    fixed_view = fixed_view_of(scene, cameras)
    what = settings.what
    places = capture_places(what, len(cameras), len(frames), fixed_view, settings.freeze_time)
    known: dict[str, Any] = {
        "fixed_view": fixed_view if what & {"GRID", "FIXED"} else None,
        "freeze_time": settings.freeze_time if "FREEZE" in what else None,
    }
    try:
        yield from render_steps(
            context, scene, cameras, frames, settings, places=places, measured=measured, **known
        )
    except MemoryError as error:
        raise CaptureError("Out of memory while rendering; capture at a smaller size") from error


def probe_steps(context: bpy.types.Context, settings: CaptureSettings) -> Measured:
    """Render one frame of the fixed view into a folder that is thrown away, to time it twice.

    The second frame counts: the first may compile shaders. Raises ViewtimeError.
    """
    scene = context.scene
    cameras = rig_cameras(scene)
    camera = cameras[fixed_view_of(scene, cameras)]
    measured = Measured()
    for _ in range(2):
        once = replace(settings, what=settings.what & {"DEPTH"} | {"GRID"})
        steps = render_steps(
            context, scene, [camera], [scene.frame_current], once, measured=measured
        )
        for _ in steps:
            pass
        shutil.rmtree(settings.folder)
    return measured
