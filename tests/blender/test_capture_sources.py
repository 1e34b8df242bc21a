# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures of movies, image sequences, strips and picture files, alone and mixed with renders.
Pixels are compared with what was put into the files, settings with a dump taken before."""

from __future__ import annotations

import importlib
import struct
import zlib

import bpy
import numpy as np
import pytest
from capture_stage import awkward, everything, read_capture, refused, rig, stage

SIZE = 64


@pytest.fixture
def scene(empty_scene):
    return stage(empty_scene)


@pytest.fixture
def pixels(viewtime):
    return importlib.import_module(f"{viewtime}.capture.pixels")


@pytest.fixture
def media(viewtime):
    return importlib.import_module(f"{viewtime}.capture.media")


def picture(seed, width=SIZE, height=SIZE):
    """(H, W, 3) float of whole 8-bit steps: a ramp through all values, noise, and the seed."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    image[: height // 2] = np.linspace(0, 255, width).astype(int)[None, :, None]
    image[height // 2 : height // 2 + 4] = (seed * 37) % 256
    return image.astype(np.float32) / 255


@pytest.fixture
def shots(pixels, tmp_path):
    """folder(name, n, width, height) writes n numbered pictures and says where."""

    def folder(name, count, width=SIZE, height=SIZE, first=1):
        (tmp_path / name).mkdir()
        for i in range(count):
            image = picture(i + 1, width, height)
            pixels.write_png(tmp_path / name / f"shot.{first + i:04d}.png", image)
        return tmp_path / name

    return folder


def movie(folder, out, codec, fps=24):
    """Encode a folder of pictures by Blender itself, at the scene rate of another scene."""
    temporary = bpy.data.scenes.new("encode")
    files = sorted(folder.glob("*.png"))
    strips = temporary.sequence_editor_create().strips
    strip = strips.new_image("s", str(files[0]), 1, 1, fit_method="ORIGINAL")
    for file in files[1:]:
        strip.elements.append(file.name)
    if hasattr(strip, "duration"):
        strip.duration = len(files)
    else:
        strip.frame_final_duration = len(files)
    render = temporary.render
    render.resolution_x = render.resolution_y = SIZE
    render.fps = fps
    temporary.frame_start, temporary.frame_end = 1, len(files)
    temporary.view_settings.view_transform = "Standard"
    if hasattr(render.image_settings, "media_type"):
        render.image_settings.media_type = "VIDEO"
    render.image_settings.file_format = "FFMPEG"
    render.image_settings.color_mode = "RGB"
    render.ffmpeg.format = "MKV"
    render.ffmpeg.codec = codec
    render.ffmpeg.constant_rate_factor = "PERC_LOSSLESS" if codec == "H264" else "HIGH"
    render.use_file_extension = False
    render.filepath = str(out)
    with bpy.context.temp_override(scene=temporary):
        assert bpy.ops.render.render(animation=True) == {"FINISHED"}
    bpy.data.scenes.remove(temporary)
    return out


def pictures_of(capture, media):
    """(view, time) to (H, W, 3)."""
    return {
        (cell.view, cell.time): media.read_picture(capture.path(cell.image))
        for cell in capture.cells
    }


def close(a, b, steps):
    return np.abs(a - b).max() <= (steps + 0.01) / 255


def test_pictures_keep_every_value_through_blenders_loader(pixels, media, tmp_path):
    image = picture(3, 50, 37)
    pixels.write_png(tmp_path / "a.png", image)
    assert media.picture_size(tmp_path / "a.png") == (50, 37)
    assert close(media.read_picture(tmp_path / "a.png"), image, 0)
    # A mean in display space, as the backend's own resampling does it.
    half = pixels.resampled(picture(4, 8, 8), 4, 2)
    np.testing.assert_allclose(
        half, picture(4, 8, 8).reshape(2, 4, 4, 2, 3).mean(axis=(1, 3)), atol=1e-6
    )
    assert pixels.resampled(np.full((3, 5, 3), 0.25, np.float32), 17, 9) == pytest.approx(0.25)


def test_scene_linear_and_16_bit_pictures_come_as_display_values(pixels, media, tmp_path):
    linear = np.linspace(0, 1, 64, dtype=np.float32)
    exr = importlib.import_module("bl_ext.user_default.viewtime.capture.exr")
    exr.write_depth_exr(tmp_path / "a.exr", linear[None])
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    got = media.read_picture(tmp_path / "a.exr")
    np.testing.assert_allclose(got[0, :, 0], curve, atol=1e-5)
    # A 16-bit PNG holds display values; Blender makes them linear, and here they come back.
    deep = np.arange(0, 65536, 257, dtype=">u2").reshape(1, 256, 1).repeat(3, axis=2)
    header = struct.pack(">IIBBBBB", 256, 1, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + pixels._chunk(b"IHDR", header)
        + pixels._chunk(b"IDAT", zlib.compress(b"\0" + deep.tobytes()))
        + pixels._chunk(b"IEND", b"")
    )
    got = media.read_picture(tmp_path / "a.png")
    assert close(got[0, :, 1], np.arange(256) / 255, 0.5)


@pytest.mark.parametrize("codec, steps", [("FFV1", 1), ("H264", 6)])
def test_a_movie_gives_its_own_pixels_whatever_the_view_transform(
    scene, shots, media, tmp_path, codec, steps
):
    rig(scene)
    file = movie(shots("shots", 12), tmp_path / "clip.mkv", codec, fps=30)
    scene.view_settings.view_transform = "AgX"
    scene.view_settings.exposure = 1.5
    awkward(scene)
    before = everything(scene)
    assert bpy.ops.viewtime.capture(
        folder=str(tmp_path / "a"), what={"FIXED"}, frame_start=11, frame_end=19, times=5,
        clip="MOVIE", clip_path=str(file), clip_start=3, size=SIZE,
    ) == {"FINISHED"}  # fmt: skip
    assert everything(scene) == before
    capture = read_capture(tmp_path / "a")
    assert (capture.views, capture.times, capture.frame_start, capture.frame_step) == (3, 5, 11, 2)
    assert capture.fixed_view == 0 and not capture.has_depth
    found = pictures_of(capture, media)
    assert sorted(found) == [(0, t) for t in range(5)]
    for t in range(5):
        wanted = picture(3 + 2 * t)
        mean = [np.abs(found[0, t] - picture(n)).mean() for n in range(1, 13)]
        assert int(np.argmin(mean)) == 2 + 2 * t, "another frame of the clip"
        # Grey has no chroma to be subsampled: there a codec shows what it does to values.
        band = slice(0, SIZE // 2 - 2)
        assert close(found[0, t][band], wanted[band], steps)
        if codec == "FFV1":
            assert close(found[0, t], wanted, steps)


def test_an_image_sequence_is_taken_by_its_numbers_and_gaps_are_named(
    scene, shots, media, tmp_path
):
    rig(scene)
    folder = shots("shots", 12, first=8)
    arguments = dict(
        what={"FIXED"}, frame_start=1, frame_end=9, times=5, clip="SEQUENCE", size=SIZE
    )
    for k, path in enumerate((folder, folder / "shot.0010.png")):
        out = tmp_path / f"a{k}"
        assert bpy.ops.viewtime.capture(folder=str(out), clip_path=str(path), **arguments) == {
            "FINISHED"
        }
        found = pictures_of(read_capture(out), media)
        for t in range(5):
            assert close(found[0, t], picture(1 + 2 * t), 0)
    scene.frame_start, scene.frame_end, settings = 3, 40, scene.viewtime
    settings.clip_source, settings.clip_path, settings.clip_start = "SEQUENCE", str(folder), 3
    settings.times = 13
    assert bpy.ops.viewtime.range_from_clip() == {"FINISHED"}
    assert (settings.range_start, settings.range_end, settings.times) == (3, 12, 9)
    settings.clip_start = 1
    too_long = arguments | {"frame_end": 17}
    refused(
        "has 12 frames; 5 times from frames 1 to 17, every 4 takes frames 1 to 17",
        bpy.ops.viewtime.capture, folder=str(tmp_path / "b"), clip_path=str(folder), **too_long,
    )  # fmt: skip
    (folder / "shot.0012.png").unlink()
    refused(
        "shot.0012.png is missing between shot.0008.png and shot.0019.png",
        bpy.ops.viewtime.capture, folder=str(tmp_path / "b"),
        clip_path=str(folder / "shot.0008.png"), **arguments,
    )  # fmt: skip
    assert not (tmp_path / "b").exists() and not (tmp_path / "b.part").exists()


def test_a_strip_gives_its_frames_and_hears_none_of_the_others(scene, shots, media, tmp_path):
    rig(scene)
    folder = shots("shots", 12)
    scene.render.resolution_x = scene.render.resolution_y = SIZE
    scene.render.resolution_percentage = 100
    strips = scene.sequence_editor_create().strips
    files = sorted(folder.glob("*.png"))
    strip = strips.new_image("mine", str(files[0]), 1, 4, fit_method="ORIGINAL")
    for file in files[1:]:
        strip.elements.append(file.name)
    over = strips.new_effect(
        "over", "COLOR", 2, 1, **{"frame_end" if bpy.app.version < (5, 0) else "length": 40}
    )
    over.color = (1, 0, 0)
    for s in strips:
        s.select = s.name == "mine"
    assert bpy.ops.viewtime.clip_from_strip() == {"FINISHED"}
    settings = scene.viewtime
    assert (settings.clip_source, settings.clip_strip) == ("STRIP", "mine")
    scene.view_settings.view_transform = "AgX"
    before = everything(scene)
    assert bpy.ops.viewtime.range_from_clip() == {"FINISHED"}
    assert (settings.range_start, settings.range_end) == (4, 15)
    before = everything(scene)
    arguments = dict(what={"FIXED"}, times=5, size=SIZE)
    assert bpy.ops.viewtime.capture(
        folder=str(tmp_path / "a"), frame_start=4, frame_end=12, **arguments
    ) == {"FINISHED"}
    assert everything(scene) == before
    found = pictures_of(read_capture(tmp_path / "a"), media)
    for t in range(5):
        assert close(found[0, t], picture(1 + 2 * t), 1)
    refused(
        "Strip 'mine' lies at frames 4 to 15, the capture takes 5 times from frames 4 to 20",
        bpy.ops.viewtime.capture, folder=str(tmp_path / "b"), frame_start=4, frame_end=20,
        **arguments,
    )  # fmt: skip
    assert everything(scene) == before


def test_a_movie_and_picture_files_make_a_capture_without_any_render(
    scene, shots, media, tmp_path, monkeypatch
):
    rig(scene)
    clip, freeze = shots("clip", 9, 96, 64), shots("freeze", 3, 48, 32)
    scene.render.resolution_x, scene.render.resolution_y = 1500, 1000
    settings = scene.viewtime
    settings.capture_kind, settings.capture_size, settings.times = "REFERENCES", 48, 5
    settings.use_own_range, settings.range_start, settings.range_end = True, 1, 9
    settings.clip_source, settings.clip_path = "SEQUENCE", str(clip)
    assert (settings.clip_frames, settings.clip_width) == (9, 96)
    files = [{"name": p.name} for p in sorted(freeze.iterdir(), reverse=True)]
    assert bpy.ops.viewtime.freeze_files_choose(directory=str(freeze), files=files) == {"FINISHED"}
    settings.freeze_frame = 6
    assert (settings.freeze_frame, settings.freeze_time) == (7, 3) or settings.freeze_time == 2

    def forbidden(*_args, **_kwargs):
        raise AssertionError("it rendered")

    render = importlib.import_module("bl_ext.user_default.viewtime.capture.render")
    monkeypatch.setattr(render, "render_cell", forbidden)
    before = everything(scene)
    assert bpy.ops.viewtime.capture(folder=str(tmp_path / "a")) == {"FINISHED"}
    assert everything(scene) == before
    capture = read_capture(tmp_path / "a")
    assert (capture.width, capture.height) == (48, 32)
    assert capture.fixed_view == 0 and capture.freeze_time == settings.freeze_time
    found = pictures_of(capture, media)
    pixels = importlib.import_module("bl_ext.user_default.viewtime.capture.pixels")
    for t in range(5):
        wanted = pixels.resampled(picture(1 + 2 * t, 96, 64), 48, 32)
        assert close(found[0, t], wanted, 0.51)
    for view in (1, 2):
        assert close(found[view, capture.freeze_time], picture(view + 1, 48, 32), 0)
    # The rig is that of the Blender cameras, at the capture's size.
    conventions = importlib.import_module("bl_ext.user_default.viewtime.conventions")
    for item, camera in zip(scene.viewtime.rig, capture.rig.cameras):
        seen = conventions.camera_from_blender(item.camera, scene, 1500, 1000).resized(48, 32)
        np.testing.assert_allclose(camera.intrinsics, seen.intrinsics, rtol=1e-6)


def test_a_render_of_the_clip_mixes_with_files_of_the_frozen_moment(scene, shots, media, tmp_path):
    rig(scene)
    freeze = shots("freeze", 3)
    arguments = dict(what={"FIXED", "FREEZE", "DEPTH"}, frame_start=1, frame_end=5, times=5)
    assert bpy.ops.viewtime.capture(
        folder=str(tmp_path / "a"), freeze_folder=str(freeze), freeze_frame=4, **arguments
    ) == {"FINISHED"}
    capture = read_capture(tmp_path / "a")
    assert capture.freeze_time == 3
    assert [(c.view, c.time) for c in capture.cells if c.depth] == [(0, t) for t in range(5)]
    found = pictures_of(capture, media)
    pixels = importlib.import_module("bl_ext.user_default.viewtime.capture.pixels")
    assert close(found[2, 3], pixels.resampled(picture(3), 32, 32), 0.51)
    (freeze / "shot.0003.png").unlink()
    refused(
        "2 freeze-time pictures for 3 cameras",
        bpy.ops.viewtime.capture, folder=str(tmp_path / "b"), freeze_folder=str(freeze),
        **arguments,
    )  # fmt: skip
    refused(
        "Frame 8 is none of the 5 times from frames 1 to 5; the nearest is 5",
        bpy.ops.viewtime.capture, folder=str(tmp_path / "b"), freeze_frame=8, **arguments,
    )  # fmt: skip


def test_pictures_of_another_shape_are_refused_or_cropped_as_asked(
    scene, shots, media, tmp_path, viewtime
):
    readiness = importlib.import_module(f"{viewtime}.readiness")
    rig(scene)
    folder = shots("wide", 5, 128, 64)
    settings = scene.viewtime
    settings.capture_kind, settings.times, settings.capture_size = "CLIP", 5, SIZE
    settings.use_own_range, settings.range_start, settings.range_end = True, 1, 5
    settings.clip_source, settings.clip_path = "SEQUENCE", str(folder)
    settings.capture_folder = str(tmp_path / "a")
    both = "wide is 128 x 64 pixels, the render 64 x 64: another shape"
    assert both in readiness.missing_for_capture(scene)
    refused(both, bpy.ops.viewtime.capture)
    settings.capture_crop = True
    line = "wide, frames 1 to 5; 128 x 64, cropped to 64 x 64"
    assert line in " ".join(readiness.capture_outlook(scene).lines)
    assert bpy.ops.viewtime.capture() == {"FINISHED"}
    capture = read_capture(tmp_path / "a")
    found = pictures_of(capture, media)
    assert close(found[0, 0], picture(1, 128, 64)[:, 32:96], 0)
    settings.capture_crop = False
    assert bpy.ops.viewtime.render_shape() == {"FINISHED"}
    assert (scene.render.resolution_x, scene.render.resolution_y) == (128, 64)
    bpy.ops.viewtime.capture_folder_next()
    assert settings.capture_folder == str(tmp_path / "a.002")
    assert readiness.missing_for_capture(scene) is None


def test_files_that_are_no_clip_are_refused_and_nothing_stays(scene, tmp_path):
    rig(scene)
    (tmp_path / "fake.mp4").write_text("no movie")
    (tmp_path / "notes.txt").write_text("no picture")
    before = everything(scene)
    good = dict(folder=str(tmp_path / "a"), what={"FIXED"}, frame_start=1, frame_end=5, times=5)
    for match, arguments in (
        ("is no movie that Blender can read", {"clip_path": str(tmp_path / "fake.mp4")}),
        ("there is no such movie", {"clip_path": str(tmp_path / "gone.mp4")}),
        ("Choose the clip's movie file", {}),
        ("holds no strip", {"clip": "STRIP", "clip_strip": "x"}),
        ("holds no pictures", {"clip": "SEQUENCE", "clip_path": str(tmp_path)}),
        ("needs numbered files", {"clip": "SEQUENCE", "clip_path": str(tmp_path / "notes.txt")}),
    ):
        refused(match, bpy.ops.viewtime.capture, **good, **({"clip": "MOVIE"} | arguments))
    assert everything(scene) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fake.mp4", "notes.txt"]


@pytest.mark.parametrize("after", [1, 4])
def test_a_clip_that_is_cancelled_or_breaks_leaves_no_trace(
    scene, shots, tmp_path, viewtime, after
):
    rig(scene)
    awkward(scene)
    file = movie(shots("shots", 9), tmp_path / "clip.mkv", "FFV1")
    render = importlib.import_module(f"{viewtime}.capture.render")
    sources = importlib.import_module(f"{viewtime}.capture.sources")
    before, listing = everything(scene), sorted(tmp_path.iterdir())
    settings = render.CaptureSettings(
        tmp_path / "a", frozenset({"FIXED", "FREEZE"}), 1, 9, times=9, size=SIZE,
        clip=sources.ClipSource("MOVIE", file), engine="WORKBENCH",
    )  # fmt: skip
    steps = render.capture_steps(bpy.context, settings)
    for _ in range(after):
        next(steps)
    steps.close()
    assert everything(scene) == before
    assert sorted(tmp_path.iterdir()) == listing
    # A picture that changes size half-way.
    folder = tmp_path / "shots"
    pixels = importlib.import_module(f"{viewtime}.capture.pixels")
    pixels.write_png(folder / "shot.0006.png", picture(6, 32, 32))
    refused(
        "shot.0006.png is 32 x 32 pixels, shot.0001.png 64 x 64",
        bpy.ops.viewtime.capture, folder=str(tmp_path / "a"), what={"FIXED"}, frame_start=1,
        frame_end=9, times=9, clip="SEQUENCE", clip_path=str(folder),
    )  # fmt: skip
    assert everything(scene) == before
    assert sorted(tmp_path.iterdir()) == listing
