# SPDX-License-Identifier: Apache-2.0
"""Datasets written in their public layouts: every frame at its place, every camera where it stood.

The expected pixels are worked out by hand in layouts_written.py, not by the code under test.
"""

import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from viewtime.data.readers import detect_layout, read_scene
from viewtime.data.readers.colmap import read_model
from viewtime.data.readers.poses import estate_cameras
from viewtime_formats.errors import CaptureError, ViewtimeError

_SPEC = importlib.util.spec_from_file_location(
    "layouts_written", Path(__file__).with_name("layouts_written.py")
)
written = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(written)


def pixel(camera) -> np.ndarray:
    x, y, z = camera.intrinsics @ (camera.rotation @ written.POINT + camera.translation)
    return np.array([x / z, y / z])


def colours(grid) -> np.ndarray:
    return np.round(grid.frames.mean((3, 4)) * 255)


@pytest.mark.parametrize("name", list(written.DYNAMIC))
def test_a_dynamic_scene_is_read_with_its_cameras(tmp_path, name):
    written.DYNAMIC[name](tmp_path, 3, 4)
    assert detect_layout(tmp_path) == name.split()[0]
    grid, rig = read_scene(tmp_path, height=15, width=20)
    assert grid.frames.shape == (3, 4, 3, 15, 20) and grid.known.all()
    expected = np.array([[written.colour(v, t) for t in range(4)] for v in range(3)])
    np.testing.assert_allclose(colours(grid), expected, atol=3)  # JPEG and video are lossy
    for v, camera in enumerate(rig.cameras):
        assert (camera.width, camera.height) == (20, 15)
        np.testing.assert_allclose(pixel(camera), [20 - 10 * v, 2.5], atol=1e-6)
        np.testing.assert_allclose(camera.center, written.place(v), atol=1e-9)
    if name == "transforms":
        assert (grid.depth == np.array([5, 6, 7, 8])[:, None, None]).all()


@pytest.mark.parametrize("name", list(written.STILL))
def test_a_still_scene_is_read_and_repeated_in_time(tmp_path, name):
    written.STILL[name](tmp_path, 3, 1)
    assert detect_layout(tmp_path) == name.split()[0]
    grid, rig = read_scene(tmp_path, times=2, height=15, width=20)
    assert grid.frames.shape == (3, 2, 3, 15, 20)
    for v, camera in enumerate(rig.cameras):
        np.testing.assert_allclose(colours(grid)[v], [written.colour(v, 0)] * 2, atol=3)
        np.testing.assert_allclose(pixel(camera), [20 - 10 * v, 2.5], atol=1e-6)


def test_videos_without_a_rig_have_none_and_the_shortest_counts(tmp_path):
    written.videos(tmp_path, 2, 3)
    assert detect_layout(tmp_path) == "cameras"
    grid, rig = read_scene(tmp_path, height=30, width=40)
    assert rig is None and grid.times == 3
    np.testing.assert_allclose(colours(grid)[1, 2], written.colour(1, 2), atol=3)


def test_a_number_is_spread_and_a_list_is_taken_as_it_is(tmp_path):
    written.pictures(tmp_path, 5, 7)
    grid, rig = read_scene(tmp_path, views=3, times=[6, 0], height=30, width=40)
    assert [camera.name for camera in rig.cameras] == ["cam0", "cam2", "cam4"]
    expected = [[written.colour(v, t) for t in (6, 0)] for v in (0, 2, 4)]
    np.testing.assert_allclose(colours(grid), expected)
    for wrong in ({"views": 6}, {"times": [7]}, {"times": []}, {"views": 0}):
        with pytest.raises(CaptureError, match=next(iter(wrong))):
            read_scene(tmp_path, height=30, width=40, **wrong)


def test_the_middle_is_cut_out_and_the_camera_follows(tmp_path):
    written.pictures(tmp_path, 1, 1)
    ramp = np.zeros((30, 40, 3), np.uint8)
    ramp[..., 0] = np.arange(40) * 5
    ramp[..., 1] = np.arange(30)[:, None] * 5
    Image.fromarray(ramp).save(tmp_path / "cam0" / "8.png")
    grid, rig = read_scene(tmp_path, height=10, width=10)  # columns 5 to 34, then 3 x 3 means
    got = grid.frames[0, 0] * 255
    np.testing.assert_allclose(got[0, 0], (6 + 3 * np.arange(10)) * 5, atol=0.1)
    np.testing.assert_allclose(got[1, :, 0], (1 + 3 * np.arange(10)) * 5, atol=0.1)
    np.testing.assert_allclose(pixel(rig.cameras[0]), [(40 - 5) / 3, 5 / 3])


def test_transparency_is_laid_over_white_and_sixteen_bits_are_not_cut(tmp_path):
    clear = np.full((4, 4, 4), [255, 0, 0, 51], np.uint8)
    written.save(tmp_path / "a" / "0.png", clear)
    (tmp_path / "b").mkdir()
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "b" / "0.png")
    grid, _ = read_scene(tmp_path, height=4, width=4)
    np.testing.assert_allclose(grid.frames[0, 0, :, 0, 0], [1.0, 0.8, 0.8], atol=1e-3)
    np.testing.assert_allclose(grid.frames[1, 0], 0.5, atol=1e-3)


def test_a_moving_camera_is_refused_except_at_one_time(tmp_path):
    written.kubric(tmp_path, 2, 3, moving=0.5)
    with pytest.raises(CaptureError, match="camera_0.*moved"):
        read_scene(tmp_path, height=15, width=20)
    _, rig = read_scene(tmp_path, times=[2], height=15, width=20)
    np.testing.assert_allclose(rig.cameras[1].center, [2.0, 0.0, 5.0])


def test_nerf_renders_without_views_and_times_are_views_of_a_still_scene(tmp_path):
    written.transforms(tmp_path, 3, 1)
    path = tmp_path / "transforms.json"
    scene = json.loads(path.read_text())
    for frame in scene["frames"]:
        del frame["view"], frame["time"]
    scene |= {"fl_x": 100, "w": 40, "h": 30, "cx": 22}
    path.rename(tmp_path / "transforms_train.json").write_text(json.dumps(scene))
    grid, rig = read_scene(tmp_path, times=2, height=30, width=40)
    np.testing.assert_allclose(colours(grid)[:, 1], [written.colour(v, 0) for v in (2, 1, 0)])
    np.testing.assert_allclose(pixel(rig.cameras[2]), [42, 5], atol=1e-6)


def test_what_is_wrong_is_named(tmp_path):
    def broken(name, message, spoil, views=2, times=2):
        folder = tmp_path / f"{name} {len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (written.DYNAMIC | written.STILL)[name](folder, views, times)
        spoil(folder)
        with pytest.raises(ViewtimeError, match=message):
            read_scene(folder, height=15, width=20)

    def edit(path, old, new):
        def apply(folder):
            text = (folder / path).read_text()
            assert old in text
            (folder / path).write_text(text.replace(old, new))

        return apply

    gone = "00000002/cam02.jpg"
    broken("nvidia", "has no picture of cam02", lambda f: (f / "multiview_GT" / gone).unlink())
    broken("nvidia", "extrinsic.txt: has 1 numbers",
           lambda f: (f / "calibration/cam01/extrinsic.txt").write_text("3"))  # fmt: skip
    broken("nvidia dense", "rows 0 to 1 should be one camera",
           lambda f: written.poses_bounds(f / "dense/poses_bounds.npy", 2, 2, 0.4))  # fmt: skip
    broken("n3dv", "has 3 rows for 2",
           lambda f: written.poses_bounds(f / "poses_bounds.npy", 3))  # fmt: skip
    broken("n3dv", r"\(2, 5\)", lambda f: np.save(f / "poses_bounds.npy", np.ones((2, 5))))
    broken("transforms", "there is no such file", lambda f: (f / "view_001/0001.png").unlink())
    broken("transforms", "camera_angle_x is 7", edit("transforms.json", "0.39", "7.39"))
    broken("transforms", r"view 0 has 2 frames.*4 times",
           edit("transforms.json", '"view": 0, "time": ', '"view": 0, "time": 1'))  # fmt: skip
    broken(
        "transforms",
        "inside the folder is needed",
        edit("transforms.json", "./view_000", "../view_000"),
    )
    broken("kubric", "sensor_width", edit("camera_0/metadata.json", "20.0", "0"))
    broken("kubric", "resolution", edit("camera_0/metadata.json", "resolution", "size"))
    broken("colmap", r"OPENCV\) is distorted by",
           edit("sparse/0/cameras.txt", "SIMPLE_RADIAL 40 30 100.0 20 15 0.0",
                "OPENCV 40 30 100 100 20 15 0.5 0 0 0"))  # fmt: skip
    broken("colmap", "FOV; undistort",
           edit("sparse/0/cameras.txt", "SIMPLE_RADIAL 40 30 100.0 20 15 0.0",
                "FOV 40 30 100 100 20 15 0.3"))  # fmt: skip
    broken("realestate10k", "line 2 has 18 words", edit("clip.txt", "1000 2.5 ", "1000 "))
    broken("cameras", "rig.json: has 2 cameras.*has 1",
           lambda f: [p.unlink() for p in (f / "cam1").iterdir()])  # fmt: skip
    broken("cameras", "9.png.*one size",
           lambda f: written.save(f / "cam1/9.png", np.zeros((4, 4, 3), np.uint8)))  # fmt: skip
    broken("cameras", "8.png: cannot be read", lambda f: (f / "cam1/8.png").write_bytes(b"no"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CaptureError, match="no layout that is known"):
        detect_layout(empty)
    with pytest.raises(CaptureError, match="no such folder"):
        detect_layout(empty / "nowhere")


def test_a_cut_colmap_table_is_refused_wherever_it_ends(tmp_path):
    written.colmap_binary(tmp_path, 2, 1)
    whole = (tmp_path / "sparse" / "images.bin").read_bytes()
    assert len(read_model(tmp_path / "sparse")) == 2
    for end in range(0, len(whole), 7):
        (tmp_path / "sparse" / "images.bin").write_bytes(whole[:end])
        with pytest.raises(CaptureError, match="images.bin"):
            read_model(tmp_path / "sparse")
    (tmp_path / "sparse" / "cameras.bin").write_bytes(struct.pack("<QiiQQ", 1, 7, 99, 4, 4))
    with pytest.raises(CaptureError, match="cameras.bin"):
        read_model(tmp_path / "sparse")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_spoilt_camera_files_are_refused_in_words_or_read(tmp_path, data):
    """A few bytes changed: a CaptureError that names the file, or cameras; nothing else."""
    name = data.draw(st.sampled_from(["colmap", "colmap binary", "realestate10k"]))
    folder = tmp_path / name
    if not folder.exists():
        folder.mkdir()
        written.STILL[name](folder, 2, 1)
        for path in [*folder.rglob("*.txt"), *folder.rglob("*.bin")]:
            path.with_suffix(path.suffix + ".good").write_bytes(path.read_bytes())
    good = data.draw(st.sampled_from(sorted(folder.rglob("*.good"))))
    spoilt = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    path = good.with_suffix("")
    path.write_bytes(spoilt)
    try:
        if name == "realestate10k":
            estate_cameras(path)
        else:
            read_model(path.parent)
    except CaptureError as problem:
        assert str(folder) in str(problem)
    finally:
        path.write_bytes(good.read_bytes())
