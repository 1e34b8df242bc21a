# SPDX-License-Identifier: Apache-2.0
"""Images, depth and video: exact values for good files, one CaptureError for bad ones."""

from __future__ import annotations

import struct

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from viewtime.media import (
    linear_to_srgb,
    read_depth,
    read_image,
    read_video,
    resize_depth,
    resize_image,
    write_depth,
    write_png,
)
from viewtime_formats import CaptureError, ViewtimeError


def test_a_png_comes_back_to_half_a_level(tmp_path):
    image = np.random.default_rng(0).random((5, 7, 3), np.float32)
    write_png(tmp_path / "a.png", image)
    back = read_image(tmp_path / "a.png")
    assert back.dtype == np.float32 and back.shape == (5, 7, 3)
    np.testing.assert_allclose(back, image, atol=0.5 / 255 + 1e-6)
    write_png(tmp_path / "b.png", back)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), back)


def test_grey_16_bit_and_transparent_pngs_become_rgb(tmp_path):
    Image.fromarray(np.array([[0, 65535, 32768]], np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_allclose(read_image(tmp_path / "deep.png")[0, :, 1], [0, 1, 0.5], atol=1e-4)
    Image.fromarray(np.array([[[255, 255, 255, 51]]], np.uint8)).save(tmp_path / "clear.png")
    np.testing.assert_allclose(read_image(tmp_path / "clear.png")[0, 0], 0.2, atol=1e-6)


def test_a_colour_exr_is_converted_from_scene_linear(tmp_path):
    linear = np.array([[[0.0, 0.18, 1.0], [0.002, 5.0, np.nan]]], np.float32)
    channels = {f"ViewLayer.Combined.{c}": linear[..., i].copy() for i, c in enumerate("RGB")}
    channels["ViewLayer.Depth.Z"] = np.full((1, 2), 3, np.float32)
    path = tmp_path / "a.exr"
    OpenEXR.File({"type": OpenEXR.scanlineimage}, channels).write(str(path))
    image = read_image(path)
    np.testing.assert_allclose(image[0, 0], [0, 0.461356, 1], atol=1e-5)
    np.testing.assert_allclose(image[0, 1], [0.02584, 1, 0], atol=1e-5)
    np.testing.assert_array_equal(read_depth(path), 3)
    assert (np.diff(linear_to_srgb(np.linspace(0, 1, 1000))) > 0).all()


@pytest.mark.parametrize("ending", ["exr", "npy"])
def test_depth_keeps_sky_and_unknown_apart(tmp_path, ending):
    depth = np.linspace(1, 9, 12, dtype=np.float32).reshape(3, 4)
    depth[0, 0], depth[1, 1] = np.inf, np.nan
    path = tmp_path / f"d.{ending}"
    write_depth(path, depth)
    np.testing.assert_array_equal(read_depth(path), depth)
    np.save(tmp_path / "raw.npy", np.array([[1e10, 1e9, -np.inf, np.inf, 0, -2, np.nan, 1e300]]))
    sky, unknown = np.inf, np.nan
    np.testing.assert_array_equal(
        read_depth(tmp_path / "raw.npy"), [[sky, sky, unknown, sky, unknown, unknown, unknown, sky]]
    )


def test_depth_is_found_by_its_channels_name(tmp_path):
    header = {"type": OpenEXR.scanlineimage}
    for name in ("Z", "ViewLayer.Depth.Z", "Depth.V", "Depth", "Y"):
        channels = {name: np.full((2, 2), 4, np.float32), "Noise.A": np.ones((2, 2), np.float32)}
        OpenEXR.File(header, channels).write(str(tmp_path / "d.exr"))
        assert (read_depth(tmp_path / "d.exr") == 4).all(), name
    colour = {c: np.ones((2, 2), np.float32) for c in "RGB"}
    OpenEXR.File(header, colour).write(str(tmp_path / "rgb.exr"))
    with pytest.raises(CaptureError, match="no depth channel"):
        read_depth(tmp_path / "rgb.exr")


@pytest.mark.parametrize("name", ["a.png", "a.exr", "a.npy"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_image_or_depth_map_is_one_capture_error(tmp_path, name, keep):
    random = np.random.default_rng(1)
    if name == "a.png":
        write_png(tmp_path / name, random.random((40, 40, 3), np.float32))
    else:
        write_depth(tmp_path / name, random.random((40, 40), np.float32) + 1)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: int(keep * len(raw))])
    with pytest.raises(CaptureError, match=name) as caught:
        (read_image if name == "a.png" else read_depth)(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_image_that_claims_a_gigapixel_is_refused_before_decoding(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.float32))
    raw = bytearray((tmp_path / "a.png").read_bytes())
    raw[16:24] = struct.pack(">II", 60_000, 60_000)
    (tmp_path / "a.png").write_bytes(raw)
    with pytest.raises(CaptureError, match="60000 x 60000"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.exr"])
def test_a_full_disk_leaves_the_old_image(tmp_path, name):
    image, depth = np.ones((64, 64, 3), np.float32), np.ones((64, 64), np.float32)
    path = tmp_path / name
    write = write_png if name == "a.png" else write_depth
    write(path, image if name == "a.png" else depth)
    old = path.read_bytes()
    path.with_name(name + ".part").symlink_to("/dev/full")
    with pytest.raises(ViewtimeError, match="disk is full"):
        write(path, 0.5 * (image if name == "a.png" else depth))
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_shrinking_takes_means_and_depth_takes_the_nearest():
    image = np.arange(8, dtype=np.float32).reshape(2, 4, 1).repeat(3, 2) / 8
    np.testing.assert_allclose(resize_image(image, 2, 1)[0, :, 0], [2.5 / 8, 4.5 / 8], atol=1e-6)
    assert resize_image(image, 8, 6).shape == (6, 8, 3)
    depth = np.array([[1, 1, 9, np.inf]], np.float32)
    assert set(resize_depth(depth, 3, 2).ravel()) <= {1, 9, np.inf}
    np.testing.assert_array_equal(resize_depth(depth, 8, 1)[0], depth[0].repeat(2))


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_a_video_comes_back_frame_by_frame(tmp_path, ending, write_video, ramp):
    frames = ramp()
    path = tmp_path / f"clip.{ending}"
    write_video(path, frames)
    video, fps = read_video(path)
    assert video.shape == frames.shape and video.dtype == np.float32 and fps == 12
    np.testing.assert_allclose(video, frames / 255, atol=0.06)


def test_a_clip_filmed_lying_down_comes_upright(tmp_path, write_video, ramp):
    frames = ramp(2)
    write_video(tmp_path / "a.mp4", frames)
    raw = bytearray((tmp_path / "a.mp4").read_bytes())
    # The track header's matrix, 40 bytes behind the version: a quarter turn clockwise to show it.
    at = raw.index(b"tkhd") + 4 + 40
    one = 1 << 16
    raw[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(raw)
    video, _ = read_video(tmp_path / "a.mp4")
    assert video.shape == (2, 64, 48, 3)
    np.testing.assert_allclose(video, np.rot90(frames, -1, (1, 2)) / 255, atol=0.06)


@pytest.mark.parametrize(
    "text",
    ["This is no film.\n" * 50, "ffconcat version 1.0\nfile real.mp4\n",
     "#EXTM3U\n#EXTINF:1,\nreal.mp4\n", "<svg/>", ""],
)  # fmt: skip
def test_a_text_file_named_mp4_is_one_capture_error(tmp_path, text, write_video, ramp):
    write_video(tmp_path / "real.mp4", ramp())
    (tmp_path / "a.mp4").write_text(text)
    with pytest.raises(CaptureError, match=r"a\.mp4: is no video .*; a video in an MP4") as caught:
        read_video(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", ["first", "last"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.98])
def test_a_truncated_video_is_refused(tmp_path, write_video, keep, index):
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3)).astype(np.uint8)
    where = {"movflags": "faststart"} if index == "first" else {}
    write_video(tmp_path / "a.mp4", noise, container_options=where)
    assert len(read_video(tmp_path / "a.mp4")[0]) == 12
    raw = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(raw[: int(keep * len(raw))])
    with pytest.raises(CaptureError, match="a.mp4") as caught:
        read_video(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)


def test_a_video_over_the_limits_is_refused(tmp_path, write_video, ramp):
    write_video(tmp_path / "a.mp4", ramp())
    with pytest.raises(CaptureError, match="more than 5 frames"):
        read_video(tmp_path / "a.mp4", max_frames=5)
    with pytest.raises(CaptureError, match="64 x 48 pixels per frame"):
        read_video(tmp_path / "a.mp4", max_pixels=64 * 48 - 1)
    assert len(read_video(tmp_path / "a.mp4", max_frames=6, max_pixels=64 * 48)[0]) == 6


def test_a_missing_file_is_one_capture_error(tmp_path):
    for read in (read_image, read_depth, read_video):
        with pytest.raises(CaptureError, match="there is no such file"):
            read(tmp_path / "none.mp4")
