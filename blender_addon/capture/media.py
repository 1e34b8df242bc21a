# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures out of files and sequencer strips, as display sRGB, by Blender's own decoders.
Pixels come as they are stored: no view transform touches them. The user's scene is never used."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np

from viewtime_formats.errors import CaptureError, ViewtimeError
from viewtime_formats.headers import image_size

from .lend import picture_format
from .pixels import linear_to_srgb

PICTURES = (".png", ".jpg", ".jpeg", ".exr", ".tif", ".tiff", ".webp", ".bmp", ".tga")
MAX_PIXELS = 1 << 27
Reader = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Media:
    """What a clip is. frames: how many; fps: None where the files do not say."""

    name: str
    width: int
    height: int
    frames: int
    fps: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


# ---- single pictures ----


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture file. Raises CaptureError when Blender cannot read it."""
    try:
        return image_size(path)
    except ViewtimeError:
        with _opened(path) as image:
            return image.size[0], image.size[1]


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) float32 display sRGB in [0, 1], top row first. Raises CaptureError.

    8-bit files come as stored; EXR and other files of scene-linear values get the sRGB curve.
    Transparency is laid over black.
    """
    with _opened(path) as image:
        width, height = image.size
        pixels = np.empty(width * height * image.channels, np.float32)
        image.pixels.foreach_get(pixels)
        linear = image.is_float
        channels = image.channels
    pixels = pixels.reshape(height, width, channels)[::-1]  # Blender counts rows from the bottom
    colours = pixels[..., :3] if channels >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    if linear:
        return linear_to_srgb(colours)  # Blender's float pixels carry their alpha already
    if channels == 4:
        colours = colours * pixels[..., 3:]
    return np.ascontiguousarray(colours)


@contextmanager
def _opened(path: Path) -> Iterator[bpy.types.Image]:
    if not path.is_file():
        raise CaptureError(f"{path}: there is no such picture")
    try:
        image = bpy.data.images.load(str(path), check_existing=False)
    except RuntimeError:
        raise CaptureError(f"{path}: is no picture that Blender can read") from None
    try:
        if not 0 < image.size[0] * image.size[1] <= MAX_PIXELS or not image.channels:
            raise CaptureError(f"{path}: is no picture that Blender can read")
        yield image
    finally:
        bpy.data.images.remove(image)


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key in which a person counts: frame 9 comes before frame 10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p]


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder in natural order. Raises CaptureError when it holds none."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    except OSError as error:
        raise CaptureError(f"{folder}: cannot be read ({error.strerror or error})") from None
    if not found:
        raise CaptureError(f"{folder}: holds no pictures (PNG, JPEG, EXR, TIFF, WebP)")
    return sorted(found, key=natural)


def sequence_paths(path: Path) -> list[Path]:
    """The pictures of an image sequence: all of a folder, or a numbered file and its like.

    Raises CaptureError for a missing file, one without a number, and a gap in the numbers.
    """
    if path.is_dir():
        return pictures_in(path)
    if not path.is_file():
        raise CaptureError(f"{path}: there is no such picture")
    match = re.fullmatch(r"(.*?)(\d+)(\D*)", path.name)
    if match is None:
        raise CaptureError(
            f"{path}: an image sequence needs numbered files, as in shot.0001.png; or give a folder"
        )
    like = re.compile(re.escape(match[1]) + r"(\d+)" + re.escape(match[3]))
    found = {}
    for other in path.parent.iterdir():
        if number := like.fullmatch(other.name):
            found[int(number[1])] = other
    first, last = min(found), max(found)
    for number in range(first, last + 1):
        if number not in found:
            raise CaptureError(
                f"{path.parent}: {match[1]}{number:0{len(match[2])}d}{match[3]} is missing between "
                f"{found[first].name} and {found[last].name}"
            )
    return [found[number] for number in range(first, last + 1)]


# ---- clips ----


def probe_clip(source: str, path: Path) -> Media:
    """What the movie file (source "MOVIE") or image sequence at `path` is. Raises CaptureError."""
    if source == "SEQUENCE":
        paths = sequence_paths(path)
        return Media(path.name, *picture_size(paths[0]), len(paths))
    if not path.is_file():
        raise CaptureError(f"{path}: there is no such movie")
    try:
        clip = bpy.data.movieclips.load(str(path), check_existing=False)
    except RuntimeError:
        raise CaptureError(f"{path}: is no movie that Blender can read") from None
    try:
        width, height = clip.size
        frames, fps, movie = clip.frame_duration, clip.fps, clip.source == "MOVIE"
    finally:
        bpy.data.movieclips.remove(clip)
    if not movie or not 0 < width * height <= MAX_PIXELS or frames < 1:
        raise CaptureError(f"{path}: is no movie that Blender can read")
    return Media(path.name, width, height, frames, fps)


@contextmanager
def open_pictures(paths: Sequence[Path]) -> Iterator[Reader]:
    """Yields read(n): picture n (from 1), which must have the size of the first."""
    size = picture_size(paths[0])

    def read(number: int) -> np.ndarray:
        picture = read_picture(paths[number - 1])
        if (picture.shape[1], picture.shape[0]) != size:
            raise CaptureError(
                f"{paths[number - 1]} is {picture.shape[1]} x {picture.shape[0]} pixels, "
                f"{paths[0].name} {size[0]} x {size[1]}; pictures of one size are needed"
            )
        return picture

    yield read


@contextmanager
def open_movie(path: Path, media: Media) -> Iterator[Reader]:
    """Yields read(n): frame n (from 1) of the movie, in the movie's own pixels."""
    scene = bpy.data.scenes.new("Viewtime Clip")
    try:
        # At the movie's own rate one frame of the scene is one frame of the movie.
        fps = media.fps or 24.0
        scene.render.fps = max(1, round(fps))
        scene.render.fps_base = scene.render.fps / fps
        strips = scene.sequence_editor_create().strips
        strips.new_movie("clip", str(path), channel=1, frame_start=1, fit_method="ORIGINAL")
        with _sequencer(scene, media.size) as read:
            yield read
    finally:
        bpy.data.scenes.remove(scene)


@contextmanager
def open_strip(scene: bpy.types.Scene, name: str) -> Iterator[Reader]:
    """Yields read(frame): the strip alone at a frame of its scene, effects and crop included."""
    copy = scene.copy()
    try:
        wanted = copy.sequence_editor.strips_all[name]
        kept, parents = _made_of(wanted), _parents(wanted)
        for strip in copy.sequence_editor.strips_all:
            if strip not in kept:
                strip.mute = strip not in parents
        wanted.mute = False
        with _sequencer(copy, strip_media(scene, name).size) as read:
            yield read
    finally:
        bpy.data.scenes.remove(copy)


def _made_of(strip: bpy.types.Strip) -> list[bpy.types.Strip]:
    """The strip, the inputs of an effect, and what lies in a meta."""
    inputs = [getattr(strip, name, None) for name in ("input_1", "input_2")]
    parts = [*filter(None, inputs), *getattr(strip, "strips", ())]
    return [strip, *(inner for part in parts for inner in _made_of(part))]


def _parents(strip: bpy.types.Strip) -> list[bpy.types.Strip]:
    """The metas that hold the strip."""
    parents = []
    while (strip := strip.parent_meta()) is not None:
        parents.append(strip)
    return parents


def find_strip(scene: bpy.types.Scene, name: str) -> bpy.types.Strip:
    """The strip of that name, or with "" the active one. Raises CaptureError."""
    editor = scene.sequence_editor
    if editor is None or not len(editor.strips_all):
        raise CaptureError(f"The sequencer of scene '{scene.name}' holds no strip; add one")
    strip = editor.strips_all.get(name) if name else editor.active_strip
    if strip is None:
        what = f"has no strip '{name}'" if name else "has no active strip"
        raise CaptureError(f"The sequencer of scene '{scene.name}' {what}; choose another")
    if strip.type == "SOUND":
        raise CaptureError(f"Strip '{strip.name}' is sound; choose one with pictures")
    return strip


def strip_range(strip: bpy.types.Strip) -> tuple[int, int]:
    """First and last frame of its scene at which the strip is seen."""
    if hasattr(strip, "left_handle"):  # Blender 5.2
        return int(strip.left_handle), int(strip.right_handle) - 1
    return int(strip.frame_final_start), int(strip.frame_final_end) - 1


def strip_media(scene: bpy.types.Scene, name: str) -> Media:
    """What the strip gives: pictures of the size of its scene's render. Raises CaptureError."""
    strip = find_strip(scene, name)
    first, last = strip_range(strip)
    render = scene.render
    scale = render.resolution_percentage / 100
    size = int(render.resolution_x * scale), int(render.resolution_y * scale)
    return Media(f"Strip '{strip.name}'", *size, last - first + 1, render.fps / render.fps_base)


@contextmanager
def _sequencer(scene: bpy.types.Scene, size: tuple[int, int]) -> Iterator[Reader]:
    """Yields read(frame): what the sequencer of a scene of ours shows. Pixels go straight through.

    The scene is changed for good: pass a temporary one.
    """
    render, view = scene.render, scene.view_settings
    render.resolution_x, render.resolution_y = size
    render.resolution_percentage = 100
    render.use_sequencer = True
    for name in ("use_compositing", "use_border", "use_stamp", "use_multiview"):
        setattr(render, name, False)
    render.dither_intensity = 0.0
    scene.display_settings.display_device = "sRGB"
    view.view_transform, view.look = "Standard", "None"
    view.exposure, view.gamma, view.use_curve_mapping = 0.0, 1.0, False
    if hasattr(view, "use_white_balance"):
        view.use_white_balance = False
    picture_format(scene, "PNG")
    with tempfile.TemporaryDirectory(prefix="viewtime-") as folder:
        file = Path(folder) / "frame.png"

        def read(frame: int) -> np.ndarray:
            scene.frame_set(frame)
            try:
                # The operator's own argument `scene` would render the frame of the window's scene.
                with bpy.context.temp_override(scene=scene):
                    if "FINISHED" not in bpy.ops.render.render():
                        raise CaptureError("Reading the clip was cancelled")
                bpy.data.images["Render Result"].save_render(str(file), scene=scene)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0].removeprefix("Error: ")
                raise CaptureError(f"Blender could not read frame {frame}: {reason}") from None
            return read_picture(file)

        yield read
