# SPDX-License-Identifier: Apache-2.0
"""FrameGrid and the converters, on made data always and on the shared real data where present."""

from __future__ import annotations

import io
import json
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest

from viewtime.convert import (
    check_times,
    photos_to_capture,
    reprojection_agreement,
    video_to_capture,
    what_happens,
)
from viewtime.grid import FrameGrid, grid_from_capture, read_grid, working_size, write_grid
from viewtime.media import read_depth, read_image, write_depth, write_png
from viewtime_formats import (
    CaptureError,
    Cell,
    Video,
    ViewtimeError,
    read_capture,
    write_capture,
)

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
real_photos = pytest.mark.skipif(
    not (SHARED / "room" / "condition.npz").exists(), reason=f"{SHARED}/room is not on this machine"
)
real_clips = pytest.mark.skipif(
    not (SHARED / "clips" / "man_walking.mp4").exists(), reason=f"{SHARED}/clips is not here"
)


def make_photos(folder, centres=0.0, views=3, width=40, height=30):
    """Photos of a wavy floor from cameras that look down, with exact depth.

    centres: what the file's intrinsics call the middle of the first pixel (ours: 0.5).
    """
    folder.mkdir(parents=True, exist_ok=True)
    focal = 45.0
    matrix = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(x - width / 2) / focal, (y - height / 2) / focal, np.ones_like(x)], -1)
    poses, depths = [], []
    for v in range(views):
        pose = np.eye(4)
        pose[:3, 3] = (0.3 * v, -0.1 * v, -0.4 * v)
        z = np.full((height, width), 4.0)
        for _ in range(50):  # the floor is at 4 + 0.4 sin(2 x) + 0.3 cos(3 y)
            points = rays * z[..., None] + pose[:3, 3]
            floor = 4 + 0.4 * np.sin(2 * points[..., 0]) + 0.3 * np.cos(3 * points[..., 1])
            z = z + 0.7 * (floor - points[..., 2])
        image = np.stack([points[..., 0] % 1, points[..., 1] % 1, z % 1], -1)
        write_png(folder / f"{v}.png", image.astype(np.float32))
        poses.append(pose)
        depths.append(z)
    depths[0][0, 0] = 0
    intrinsics = np.repeat(matrix[None], views, 0)
    intrinsics[:, :2, 2] += centres - 0.5
    arrays = {"intrinsics": intrinsics, "poses": np.array(poses), "depths": np.array(depths)}
    save(folder, arrays)
    return arrays


def save(folder, arrays):
    np.savez(folder / "condition.npz", **arrays)


def only(folder, *names):
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("centres", [0.0, 0.5])
def test_photos_become_a_full_grid_with_depth_and_cameras(tmp_path, centres):
    arrays = make_photos(tmp_path / "photos", centres)
    capture = photos_to_capture(tmp_path / "photos", tmp_path / "out")
    assert (capture.views, capture.times) == (3, 1) and capture.is_full_grid and capture.has_depth
    for v, camera in enumerate(capture.rig.cameras):
        # Whichever way the file counted, ours is the truth: pixel centres at +0.5.
        np.testing.assert_allclose(camera.intrinsics[:2, 2], (20, 15))
        np.testing.assert_allclose(camera.world_from_camera, arrays["poses"][v], atol=1e-12)
    grid = grid_from_capture(capture)
    np.testing.assert_allclose(grid.depth[1, 0], arrays["depths"][1], rtol=1e-6)
    assert np.isnan(grid.depth[0, 0, 0, 0]) and grid.known.all()
    agreeing, error = reprojection_agreement(capture.rig, grid.depth[:, 0])
    assert agreeing > 0.98 and error < 0.01
    assert "fused" in what_happens(capture)
    only(tmp_path, "photos", "out")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda a: a.update(poses=np.linalg.inv(a["poses"])), "camera-to-world"),
        (lambda a: a.update(poses=a["poses"] @ np.diag([1, -1, -1, 1.0])), "camera-to-world"),
        (lambda a: a.update(poses=2 * a["poses"]), "rotation"),
        (lambda a: a.update(poses=0 * a["poses"]), "view 0"),
        (lambda a: a.update(poses=a["poses"][:2]), "2 views, there are 3 photos"),
        (lambda a: a.update(depths=a["depths"][:, :9]), "one size"),
        (lambda a: a.update(intrinsics=a["intrinsics"][:, :2]), "has shape"),
        (lambda a: a.pop("depths"), "cannot be read"),
        (lambda a: a.update(depths=np.array({"a": 1}, object)), "cannot be read"),
    ],
)
def test_a_wrong_calibration_is_refused_and_leaves_nothing(tmp_path, spoil, reason):
    arrays = make_photos(tmp_path / "photos")
    spoil(arrays)
    save(tmp_path / "photos", arrays)
    with pytest.raises(CaptureError, match=reason):
        photos_to_capture(tmp_path / "photos", tmp_path / "out")
    only(tmp_path, "photos")


def test_photos_of_two_sizes_or_with_a_gap_are_refused(tmp_path):
    folder = tmp_path / "photos"
    make_photos(folder)
    write_png(folder / "1.png", np.zeros((9, 8, 3), np.float32))
    with pytest.raises(
        CaptureError, match=r"two sizes: .*0\.png has 40 x 30 and .*1\.png has 8 x 9"
    ):
        photos_to_capture(folder, tmp_path / "out")
    (folder / "1.png").unlink()
    with pytest.raises(CaptureError, match="1.png is missing"):
        photos_to_capture(folder, tmp_path / "out")
    with pytest.raises(CaptureError, match="no such folder"):
        photos_to_capture(tmp_path / "none", tmp_path / "out")
    only(tmp_path, "photos")


def test_an_npz_that_claims_more_than_it_holds_is_refused(tmp_path):
    make_photos(tmp_path / "photos")
    head = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 3, 3)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(tmp_path / "photos" / "condition.npz", "w") as archive:
        for name in ("intrinsics", "poses", "depths"):
            archive.writestr(f"{name}.npy", head.getvalue())
    with pytest.raises(CaptureError, match="cannot be read"):
        photos_to_capture(tmp_path / "photos", tmp_path / "out")


def test_a_video_becomes_a_fixed_view_clip_and_says_what_becomes_of_it(tmp_path, write_video, ramp):
    frames = ramp(8)
    write_video(tmp_path / "a.mp4", frames)
    capture = video_to_capture(tmp_path / "a.mp4", tmp_path / "out", prompt="a ramp")
    assert (capture.views, capture.times, capture.fps) == (1, 5, 12)
    assert capture.fixed_view == 0 and capture.freeze_time is None and capture.rig is None
    assert capture.prompt == "a ramp" and capture.is_full_grid and not capture.has_depth
    grid = grid_from_capture(capture)
    np.testing.assert_allclose(grid.frames[0].transpose(0, 2, 3, 1), frames[:5] / 255, atol=0.06)
    assert grid.depth is None
    words = what_happens(capture)
    assert "1 view x 5 times" in words and "no other view" in words and "add a rig" in words
    only(tmp_path, "a.mp4", "out")


def test_times_are_spread_evenly_over_the_whole_video(tmp_path, write_video, ramp):
    write_video(tmp_path / "a.mp4", ramp(9, 24, 32))
    capture = video_to_capture(tmp_path / "a.mp4", tmp_path / "out", times=5, size=16)
    assert (capture.times, capture.width, capture.height, capture.fps) == (5, 16, 16, 6)
    level = grid_from_capture(capture).frames[0, :, 0, 8, 2] * 255
    np.testing.assert_allclose(level, 60 * np.arange(5), atol=12)


@pytest.mark.parametrize(("times", "near"), [(10, "9 or 13"), (2, "1 or 5"), (0, "1"), (-3, "1")])
def test_a_length_that_is_not_1_plus_4k_names_the_nearest(tmp_path, times, near, write_video, ramp):
    write_video(tmp_path / "a.mp4", ramp())
    with pytest.raises(CaptureError, match=f"times is {times}; .*nearest: {near}$"):
        video_to_capture(tmp_path / "a.mp4", tmp_path / "out", times=times)
    check_times(49)
    only(tmp_path, "a.mp4")


def test_more_times_than_frames_or_a_text_file_leave_nothing(tmp_path, write_video, ramp):
    write_video(tmp_path / "a.mp4", ramp())
    (tmp_path / "b.mp4").write_text("no film\n")
    with pytest.raises(CaptureError, match="has 6 frames, times is 9; at most 5"):
        video_to_capture(tmp_path / "a.mp4", tmp_path / "out", times=9)
    with pytest.raises(CaptureError, match="is no video"):
        video_to_capture(tmp_path / "b.mp4", tmp_path / "out")
    only(tmp_path, "a.mp4", "b.mp4")


def test_an_existing_folder_is_never_overwritten(tmp_path, write_video, ramp):
    write_video(tmp_path / "a.mp4", ramp())
    make_photos(tmp_path / "photos")
    (tmp_path / "out").mkdir()
    for convert in (
        lambda: video_to_capture(tmp_path / "a.mp4", tmp_path / "out"),
        lambda: photos_to_capture(tmp_path / "photos", tmp_path / "out"),
    ):
        with pytest.raises(CaptureError, match="exists already"):
            convert()
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_that_takes_no_more_leaves_no_half_capture(tmp_path):
    make_photos(tmp_path / "photos")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # the kernel refuses byte 2001
    try:
        with pytest.raises(ViewtimeError, match="cannot be written"):
            photos_to_capture(tmp_path / "photos", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    only(tmp_path, "photos")


def test_a_grid_folder_comes_back(tmp_path):
    random = np.random.default_rng(0)
    frames = (random.integers(0, 256, (2, 3, 3, 4, 5)) / 255).astype(np.float32)
    depth = random.random((2, 3, 4, 5), np.float32) + 1
    depth[0, 0, 0, :2] = np.inf, np.nan
    known = np.array([[1, 1, 1], [1, 0, 0]], bool)
    write_grid(tmp_path / "g", FrameGrid(frames, known, depth))
    back = read_grid(tmp_path / "g")
    np.testing.assert_allclose(back.frames, frames, atol=1e-6)
    np.testing.assert_array_equal(back.known, known)
    np.testing.assert_array_equal(back.depth, depth)
    (tmp_path / "g" / "v001.t0002.png").unlink()
    with pytest.raises(CaptureError, match="v001.t0002.png"):
        read_grid(tmp_path / "g")
    write_grid(tmp_path / "g", FrameGrid(frames, known))
    assert read_grid(tmp_path / "g").depth is None
    write_png(tmp_path / "g" / "v000.t0000.png", np.zeros((2, 2, 3), np.float32))
    with pytest.raises(CaptureError, match="2 x 2 pixels; grid.json says 5 x 4"):
        read_grid(tmp_path / "g")


def test_a_grid_json_that_claims_the_moon_allocates_nothing(tmp_path):
    grid = FrameGrid(np.zeros((1, 1, 3, 2, 2), np.float32), np.ones((1, 1), bool))
    write_grid(tmp_path, grid)
    obj = json.loads((tmp_path / "grid.json").read_text())
    (tmp_path / "grid.json").write_text(json.dumps({**obj, "width": 60000, "height": 60000}))
    with pytest.raises(CaptureError):
        read_grid(tmp_path)


@pytest.mark.parametrize(
    ("frames", "known", "depth"),
    [
        (np.zeros((1, 2, 4, 4, 3)), np.ones((1, 2)), None),
        (np.zeros((1, 2, 3, 4, 4)), np.ones((2, 1)), None),
        (np.zeros((1, 2, 3, 4, 4)), np.ones((1, 2)), np.zeros((1, 2, 3, 4))),
    ],
)
def test_a_grid_whose_arrays_do_not_fit_is_refused(frames, known, depth):
    with pytest.raises(CaptureError, match="is needed"):
        FrameGrid(frames, known, depth)


def test_unknown_cells_are_black_and_a_video_fills_its_view(tmp_path, write_video, ramp):
    write_video(tmp_path / "clip.mp4", ramp(5))
    write_png(tmp_path / "a.png", np.ones((48, 64, 3), np.float32))
    write_depth(tmp_path / "a.exr", np.full((48, 64), 2, np.float32))
    arguments = {"views": 3, "width": 64, "height": 48, "cells": [Cell(1, 0, "a.png", "a.exr")]}
    video = Video(0, "clip.mp4")
    capture = write_capture(tmp_path, times=5, video=video, fixed_view=0, **arguments)
    grid = grid_from_capture(capture, 24)
    assert grid.frames.shape == (3, 5, 3, 24, 32)
    np.testing.assert_array_equal(grid.known.sum(axis=1), [5, 1, 0])
    np.testing.assert_allclose(grid.frames[0, 3, :, 12, 4] * 255, 90, atol=15)
    assert grid.frames[1, 0].min() > 0.99 and not grid.frames[1, 1:].any()
    assert (grid.depth[1, 0] == 2).all() and np.isnan(grid.depth[0]).all()
    for times, has in ((4, "more than 4 frames"), (6, "has 5 frames")):
        wrong = write_capture(tmp_path, times=times, video=video, fixed_view=0, **arguments)
        with pytest.raises(CaptureError, match=has):
            grid_from_capture(wrong)


def test_working_sizes_keep_the_aspect_and_suit_the_models():
    assert working_size(434, 350, None) == (434, 350)
    assert working_size(434, 350, 350) == (434, 350)
    assert working_size(720, 352, 128) == (256, 128)
    assert working_size(434, 350, 100) == (124, 100)


def test_a_width_is_what_the_generator_can_cut_into_patches():
    """TI2V-5B needs multiples of 32; no option sets a width, so the height must do."""
    assert working_size(1920, 1080, 704, 32) == (1248, 704)
    assert working_size(1920, 1080, 704) == (1248, 704)
    assert working_size(848, 480, 480, 32) == (832, 480)  # its own height, another width
    assert working_size(832, 480, 480, 32) == (832, 480)
    assert working_size(854, 480, None, 16) == (848, 480)
    assert working_size(640, 480, 352, 32) == (480, 352)
    assert working_size(590, 480, 352) == (432, 352)
    assert working_size(590, 480, 352, 32) == (448, 352)
    assert working_size(720, 352, 128, 8) == (256, 128)


def test_a_grid_too_large_for_memory_is_refused_with_advice(tmp_path):
    write_png(tmp_path / "a.png", np.ones((64, 64, 3), np.float32))
    capture = write_capture(
        tmp_path, views=1000, times=1000, width=64, height=64, cells=[Cell(0, 0, "a.png")]
    )
    with pytest.raises(CaptureError, match="choose a smaller size"):
        grid_from_capture(capture)


@real_photos
def test_the_real_room_converts_and_its_views_agree(tmp_path):
    capture = photos_to_capture(SHARED / "room", tmp_path / "out")
    assert (capture.views, capture.width, capture.height) == (8, 434, 350)
    depths = np.stack([read_depth(capture.path(cell.depth)) for cell in capture.cells])
    agreeing, error = reprojection_agreement(capture.rig, depths)
    assert agreeing > 0.9 and error < 0.004
    np.testing.assert_array_equal(
        read_image(capture.path(capture.cells[3].image)), read_image(SHARED / "room" / "3.png")
    )


@real_clips
@pytest.mark.parametrize(("name", "times"), [("man_walking", 21), ("parkour", 5)])
def test_the_real_clips_convert(tmp_path, name, times):
    capture = video_to_capture(SHARED / "clips" / f"{name}.mp4", tmp_path / "out", size=64)
    assert (capture.views, capture.times, capture.height) == (1, times, 64)
    assert read_capture(tmp_path / "out").is_full_grid
    assert grid_from_capture(capture).frames.std() > 0.05
