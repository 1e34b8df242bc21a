# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scene's settings ask of a capture, as values for it and as words for the person.
It opens no movie and no picture, so that a panel can ask at every redraw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bpy

from viewtime_formats.errors import CaptureError

from . import estimate
from .frames import Plan, capture_places, capture_resolution, scene_plan
from .media import Media
from .pixels import fit_in_words
from .render import CaptureSettings
from .rig import fixed_view_of, rig_cameras
from .sources import ClipSource, check_freeze_count, media_box

ENGINE_WORDS = {
    "CYCLES": "Cycles",
    "BLENDER_EEVEE": "EEVEE",
    "BLENDER_EEVEE_NEXT": "EEVEE",
    "BLENDER_WORKBENCH": "Workbench",
}


@dataclass(frozen=True)
class Outlook:
    """What one press of Capture will make. seconds: None where nothing was measured yet."""

    plan: Plan
    views: int
    size: tuple[int, int]
    rendered: int
    read: int
    seconds: float | None
    disk_bytes: float
    lines: tuple[str, ...]

    @property
    def frames(self) -> int:
        return self.rendered + self.read


def absolute(path: str, what: str) -> Path:
    """The file or folder that a property means. Raises CaptureError when it means none."""
    if path.startswith("//") and not bpy.data.filepath:
        raise CaptureError(f"Save the .blend first, or give {what} an absolute path")
    found = Path(bpy.path.abspath(path))
    if not found.is_absolute():
        raise CaptureError(f"Give {what} an absolute path, or one that begins with //")
    return found


def what_of(scene: bpy.types.Scene) -> frozenset[str]:
    """What viewtime.capture is asked for: FIXED, FREEZE, GRID; DEPTH."""
    settings = scene.viewtime
    frames = {
        "REFERENCES": {"FIXED", "FREEZE"},
        "CLIP": {"FIXED"},
        "FREEZE": {"FREEZE"},
        "GRID": {"GRID"},
    }[settings.capture_kind]
    # The viewport has none to give.
    depth = settings.capture_depth and settings.capture_engine != "VIEWPORT"
    return frozenset(frames | ({"DEPTH"} if depth else set()))


def clip_of(scene: bpy.types.Scene) -> ClipSource:
    """Where the scene's settings take the clip from. Raises CaptureError."""
    settings = scene.viewtime
    kind = settings.clip_source
    if kind == "RENDER":
        return ClipSource()
    if kind == "STRIP":
        return ClipSource(kind, scene=settings.clip_scene or scene, strip=settings.clip_strip)
    path = absolute(settings.clip_path, "the clip") if settings.clip_path else None
    return ClipSource(kind, path, settings.clip_start)


def freeze_files_of(scene: bpy.types.Scene) -> tuple[Path, ...]:
    """The files of the frozen moment; () when it is rendered. Raises CaptureError."""
    settings = scene.viewtime
    if settings.freeze_source == "RENDER":
        return ()
    files = tuple(absolute(item.path, "the pictures") for item in settings.freeze_files)
    check_freeze_count(len(files), len(settings.rig))
    return files


def settings_of(scene: bpy.types.Scene, folder: Path) -> CaptureSettings:
    """What a capture into `folder` does, as the scene's settings say. Raises CaptureError."""
    settings, what = scene.viewtime, what_of(scene)
    plan = scene_plan(scene)
    return CaptureSettings(
        folder=folder,
        what=what,
        frame_start=plan.start,
        frame_end=plan.end,
        times=plan.times,
        # As the panel shows it, when there were more times once.
        freeze_time=min(settings.freeze_time, plan.times - 1),
        size=settings.capture_size,
        prompt=settings.prompt,
        clip=clip_of(scene) if "FIXED" in what else ClipSource(),
        freeze_files=freeze_files_of(scene) if "FREEZE" in what else (),
        engine=settings.capture_engine,
        samples=settings.capture_samples,
        crop=settings.capture_crop,
    )


def remembered_clip(scene: bpy.types.Scene, clip: ClipSource) -> Media:
    """What the clip is, as looked up when it was chosen. Raises CaptureError."""
    settings = scene.viewtime
    if clip.kind == "STRIP" or clip.path is None:
        return clip.probe()
    if settings.clip_problem:
        raise CaptureError(settings.clip_problem)
    if not settings.clip_frames:
        raise CaptureError(f"{clip.path} was not looked at yet: press Look Again beside it")
    size = settings.clip_width, settings.clip_height
    return Media(clip.path.name, *size, settings.clip_frames, settings.clip_fps or None)


def outlook(scene: bpy.types.Scene) -> Outlook:
    """What the scene's settings will capture. Raises ViewtimeError with what is in the way."""
    settings = scene.viewtime
    cameras = rig_cameras(scene)
    fixed = fixed_view_of(scene, cameras)
    asked = settings_of(scene, Path())
    plan = scene_plan(scene)
    what, size = asked.what, capture_resolution(scene, asked.size)
    places = capture_places(what, len(cameras), plan.times, fixed, asked.freeze_time)
    lines = []
    from_clip = "FIXED" in what and asked.clip.kind != "RENDER"
    from_files = "FREEZE" in what and bool(asked.freeze_files)
    read = 0
    if "FIXED" in what:
        by_hand = plan.times if from_clip else 0
        read += by_hand
        lines.append(
            _clip_line(scene, asked, plan, size)
            if from_clip
            else f"Clip: {_by(scene, asked.engine)} from '{cameras[fixed].name}', view {fixed}"
        )
    if "FREEZE" in what:
        others = len(cameras) - ("FIXED" in what)
        read += others if from_files else 0
        frame = plan.frames[asked.freeze_time]
        lines.append(
            _freeze_line(scene, asked, size, fixed if "FIXED" in what else None)
            if from_files
            else f"Freeze: {others} cameras at frame {frame}, {_by(scene, asked.engine)}"
        )
    if "GRID" in what:
        lines.append(f"All {len(cameras)} cameras at all times, {_by(scene, asked.engine)}")
    if scene.camera not in cameras and "FIXED" in what:
        lines.append(
            f"'{scene.camera.name}' is not in the rig: '{cameras[fixed].name}', the nearest to it, "
            "is the fixed view"
        )
    rendered = len(places) - read
    depth = "DEPTH" in what and rendered > 0
    if settings.capture_depth and rendered and not depth:
        lines.append("The viewport gives no depth")
    elif settings.capture_depth and read:
        lines.append("Frames from files have no depth")
    pixels = size[0] * size[1]
    mark = estimate.engine_mark(scene, asked.engine, asked.samples, depth)
    return Outlook(
        plan,
        len(cameras),
        size,
        rendered,
        read,
        estimate.seconds(scene, rendered, read, pixels, mark),
        estimate.disk_bytes(scene, len(places), rendered if depth else 0, pixels),
        tuple(lines),
    )


def _by(scene: bpy.types.Scene, engine: str) -> str:
    if engine == "VIEWPORT":
        return "as the viewport shows it"
    name = estimate.engine_name(scene, engine)
    return f"rendered by {ENGINE_WORDS.get(name, name)}"


def _clip_line(
    scene: bpy.types.Scene, asked: CaptureSettings, plan: Plan, size: tuple[int, int]
) -> str:
    media = remembered_clip(scene, asked.clip)
    asked.clip.check(media, plan)
    box = media_box(scene, media, asked.crop)
    first, last = (asked.clip.number(frame, plan) for frame in (plan.start, plan.end))
    words = f"Clip: {media.name}, frames {first} to {last}; {fit_in_words(media.size, box, size)}"
    fps = scene.render.fps / scene.render.fps_base
    if media.fps and abs(media.fps - fps) > 0.01:
        words += f"; {media.fps:g} frames a second, played at the scene's {fps:g}"
    return words


def _freeze_line(
    scene: bpy.types.Scene, asked: CaptureSettings, size: tuple[int, int], fixed: int | None
) -> str:
    items: Sequence = scene.viewtime.freeze_files
    names = f"{asked.freeze_files[0].name} to {asked.freeze_files[-1].name}"
    words = f"Freeze: {len(items)} image files, {names}"
    if items[0].width:
        media = Media(asked.freeze_files[0].name, items[0].width, items[0].height, len(items))
        box = media_box(scene, media, asked.crop)
        words += f"; {fit_in_words(media.size, box, size)}"
    if fixed is not None:
        words += f"; the clip stands for {asked.freeze_files[fixed].name}"
    return words
