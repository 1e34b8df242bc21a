# SPDX-License-Identifier: Apache-2.0
"""Capture and Rig: what is accepted, and the one line that each broken folder gets."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewtime_formats import (
    Camera,
    CaptureError,
    Cell,
    Rig,
    RigError,
    Video,
    ViewtimeError,
    read_capture,
    read_rig,
    write_capture,
    write_rig,
)
from viewtime_formats.headers import depth_size, image_size


def png(width: int, height: int) -> bytes:
    """A whole grey PNG, made by hand so that these tests need no image library."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (width + 1)))
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def make(folder, make_rig, views=2, times=3, places=None, **more):
    """A capture of 8 x 6 pixels with depth at the given places (all of the grid by default)."""
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    cells = []
    places = [(v, t) for v in range(views) for t in range(times)] if places is None else places
    for v, t in places:
        cell = Cell(v, t, f"frames/v{v}t{t}.png", f"frames/v{v}t{t}.npy")
        (folder / cell.image).write_bytes(png(8, 6))
        np.save(folder / cell.depth, np.ones((6, 8), np.float32))
        cells.append(cell)
    arguments = {"rig": make_rig(views), "fixed_view": 0, "freeze_time": 0, **more}
    return write_capture(
        folder, views=views, times=times, width=8, height=6, cells=cells, **arguments
    )


def edit(folder, change, name="capture.json"):
    obj = json.loads((folder / name).read_text())
    change(obj)
    (folder / name).write_text(json.dumps(obj))


def test_what_is_written_is_read(tmp_path, make_rig):
    made = make(tmp_path, make_rig, prompt="a röd häst", fps=12, frame_start=-3, frame_step=2,
                background=(0, 0.5, 1))  # fmt: skip
    read = read_capture(tmp_path)
    for name in ("views", "times", "width", "height", "fps", "frame_start", "frame_step", "prompt",
                 "fixed_view", "freeze_time", "video", "cells"):  # fmt: skip
        assert getattr(read, name) == getattr(made, name), name
    np.testing.assert_array_equal(read.background, (0, 0.5, 1))
    assert read.is_full_grid and read.has_depth and len(read.rig) == 2
    assert read.cell(1, 2).image == "frames/v1t2.png"
    for a, b in zip(read.rig.cameras, make_rig(2).cameras):
        assert (a.name, a.width, a.height) == (b.name, b.width, b.height)
        np.testing.assert_array_equal(a.intrinsics, b.intrinsics)
        np.testing.assert_array_equal(a.camera_from_world, b.camera_from_world)


def test_a_cross_of_references_is_known_where_given(tmp_path, make_rig):
    places = [(0, 0), (0, 1), (0, 2), (1, 0)]
    capture = make(tmp_path, make_rig, places=places)
    assert not capture.is_full_grid and capture.cell(1, 1) is None
    np.testing.assert_array_equal(capture.known, [[1, 1, 1], [1, 0, 0]])


def test_a_video_gives_its_whole_view(tmp_path, make_rig):
    (tmp_path / "clip.mp4").write_bytes(b"checked when it is decoded")
    video = Video(1, "clip.mp4")
    capture = make(tmp_path, make_rig, places=[(0, 0)], video=video, fixed_view=1)
    assert capture.video == video and not capture.has_depth
    np.testing.assert_array_equal(capture.known, [[1, 0, 0], [1, 1, 1]])
    with pytest.raises(CaptureError, match="by the video"):
        make(tmp_path, make_rig, places=[(0, 0), (1, 0)], video=video, fixed_view=1)


def test_a_capture_without_frames_is_refused(tmp_path, make_rig):
    with pytest.raises(CaptureError, match="at least one frame"):
        make(tmp_path, make_rig, places=[], fixed_view=None, freeze_time=None)
    assert not (tmp_path / "capture.json").exists() and not (tmp_path / "rig.json").exists()
    make(tmp_path, make_rig)
    edit(tmp_path, lambda obj: obj.update(cells=[], fixed_view=None, freeze_time=None))
    with pytest.raises(CaptureError, match="at least one frame"):
        read_capture(tmp_path)


def test_frames_of_two_sizes_are_named_with_their_sizes(tmp_path, make_rig):
    make(tmp_path, make_rig)
    (tmp_path / "frames/v1t1.png").write_bytes(png(9, 6))
    with pytest.raises(CaptureError) as caught:
        read_capture(tmp_path)
    for part in ("two sizes", "v0t0.png", "8 x 6", "v1t1.png", "9 x 6"):
        assert part in str(caught.value)


def test_a_rig_whose_count_differs_from_the_frames_is_refused(tmp_path, make_rig):
    make(tmp_path, make_rig)
    write_rig(tmp_path / "rig.json", make_rig(3))
    with pytest.raises(CaptureError, match="3 cameras, the frames have 2 views"):
        read_capture(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda o: o["cells"].append(o["cells"][0]), "at most 6 entries"),
        (lambda o: o["cells"].__setitem__(1, o["cells"][0]), "given twice"),
        (lambda o: o["cells"].pop(1), "time 1 is not"),
        (lambda o: o["cells"].pop(3), "view 1 is not"),
        (lambda o: o["cells"][1].update(time=3), "from 0 to 2"),
        (lambda o: o["cells"][1].update(image="frames/none.png"), "no such file"),
        (lambda o: o["cells"][1].update(image="frames/v0t0.npy"), "neither a PNG nor an EXR"),
        (lambda o: o["cells"][1].update(depth="frames/v0t0.png"), "neither an EXR nor an NPY"),
        (lambda o: o.update(width=9), "capture.json says 9 x 6"),
        (lambda o: o.update(views=True), "a whole number"),
        (lambda o: o.update(views=10**9), "a whole number"),
        (lambda o: o.update(background=[0, 0, 2]), "from 0 to 1"),
        (lambda o: o.update(fps=0), "a number from"),
        (lambda o: o.update(version=2), "reads version 1"),
        (lambda o: o.update(format="viewtime.splats"), "is needed"),
    ],
)
def test_a_capture_that_contradicts_itself_is_refused_with_the_reason(
    tmp_path, make_rig, change, reason
):
    make(tmp_path, make_rig)
    edit(tmp_path, change)
    with pytest.raises(CaptureError, match=reason):
        read_capture(tmp_path)


def test_depth_of_another_size_than_its_frame_is_refused(tmp_path, make_rig):
    make(tmp_path, make_rig)
    np.save(tmp_path / "frames/v0t1.npy", np.ones((8, 6), np.float32))
    with pytest.raises(CaptureError, match="6 x 8 pixels, its frame"):
        read_capture(tmp_path)


def test_a_rig_for_another_size_is_refused(tmp_path, make_rig):
    with pytest.raises(CaptureError, match="is for 16 x 12"):
        make(tmp_path, make_rig, rig=make_rig(2).resized(16, 12))


@pytest.mark.parametrize("path", ["/etc/passwd", "../a.png", "C:\\a.png", "link/a.png", "frames"])
@pytest.mark.parametrize("key", ["image", "depth"])
def test_a_frame_path_that_leaves_the_folder_is_refused(tmp_path, make_rig, key, path):
    folder = tmp_path / "capture"
    make(folder, make_rig)
    (tmp_path / "a.png").write_bytes(png(8, 6))
    (folder / "link").symlink_to(tmp_path)
    edit(folder, lambda obj: obj["cells"][2].update({key: path}))
    with pytest.raises(CaptureError):
        read_capture(folder)


def test_a_missing_folder_or_file_is_one_clear_line(tmp_path):
    with pytest.raises(CaptureError, match="no such folder"):
        read_capture(tmp_path / "none")
    with pytest.raises(CaptureError, match="capture.json: there is no such file"):
        read_capture(tmp_path)


def test_a_full_disk_leaves_the_old_capture(tmp_path, make_rig):
    make(tmp_path, make_rig, prompt="old")
    (tmp_path / "capture.json.part").symlink_to("/dev/full")
    with pytest.raises(ViewtimeError, match="disk is full"):
        make(tmp_path, make_rig, prompt="new")
    assert read_capture(tmp_path).prompt == "old"
    assert not list(tmp_path.glob("*.part"))


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(allow_nan=False),
    st.text(max_size=5), st.just([]), st.just({}), st.just("../x"), st.just("frames/v0t0.png"),
    st.just("frames\x00"), st.just("x" * 2000),
)  # fmt: skip


@given(data=st.data())
@pytest.mark.parametrize("name", ["capture.json", "rig.json"])
def test_damaged_json_is_read_or_refused(folder, make_rig, name, data):
    where = folder / name.replace(".", "_")
    if not (keep := where / f"{name}.kept").exists():
        make(where, make_rig)
        keep.write_bytes((where / name).read_bytes())
    (where / name).write_bytes(keep.read_bytes())
    edit(where, lambda obj: _spoil(obj, data), name)
    try:
        read_capture(where)
    except (CaptureError, RigError) as error:
        assert "\n" not in str(error) and str(where) in str(error)


@given(cut=st.integers(0, 60), size=st.tuples(st.integers(1, 99), st.integers(1, 99)))
def test_an_image_header_is_read_or_refused(folder, cut, size):
    path = folder / "a.png"
    path.write_bytes(png(*size)[:cut])
    if cut >= 24:
        assert image_size(path) == size
    else:
        with pytest.raises(CaptureError):
            image_size(path)


@given(cut=st.integers(0, 400))
def test_a_truncated_exr_header_is_read_or_refused(folder, cut):
    exr = pytest.importorskip("OpenEXR")
    path = folder / "a.exr"
    if not path.exists():
        header = {"type": exr.scanlineimage}
        exr.File(header, {"Z": np.ones((5, 7), np.float32)}).write(str(path))
    (folder / "cut.exr").write_bytes(path.read_bytes()[:cut])
    assert depth_size(path) == image_size(path) == (7, 5)
    try:
        assert depth_size(folder / "cut.exr") == (7, 5)
    except CaptureError:
        assert cut < 400


def test_a_camera_knows_where_it_stands_and_what_it_sees(make_rig):
    camera = make_rig(3).cameras[2]
    world = np.append(camera.center, 1)
    np.testing.assert_allclose(camera.camera_from_world @ world, 0, atol=1e-12)
    np.testing.assert_allclose(
        camera.world_from_camera @ np.vstack([camera.camera_from_world, [0, 0, 0, 1]]), np.eye(4),
        atol=1e-12,
    )  # fmt: skip
    half = camera.resized(4, 3)
    point = np.array([0.3, -0.2, 5.0])
    np.testing.assert_allclose(2 * (half.intrinsics @ point)[:2], (camera.intrinsics @ point)[:2])


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("intrinsics", np.diag([0, 9, 1]), "focal"),
        ("intrinsics", np.array([[9, 1, 0], [0, 9, 0], [0, 0, 1]]), "must be"),
        ("intrinsics", np.eye(2), "shape"),
        ("camera_from_world", np.eye(3, 4) * 2, "rotation"),
        ("camera_from_world", np.diag([1, 1, -1, 1])[:3], "rotation"),
        ("camera_from_world", np.full((3, 4), np.nan), "finite"),
        ("width", 0, "width"),
        ("height", 2.5, "whole number"),
        ("name", "", "name"),
    ],
)
def test_a_camera_that_nothing_could_render_is_refused(make_rig, field, value, reason):
    camera = make_rig(1).cameras[0]
    values = {
        name: getattr(camera, name)
        for name in ("name", "width", "height", "intrinsics", "camera_from_world")
    }
    with pytest.raises(RigError, match=reason):
        Camera(**{**values, field: value})


def test_a_rig_without_cameras_or_with_twins_is_refused(tmp_path, make_rig):
    with pytest.raises(RigError, match="0 cameras"):
        Rig(())
    with pytest.raises(RigError, match="cam 0"):
        Rig(make_rig(1).cameras * 2)
    write_rig(tmp_path / "rig.json", make_rig(2))
    edit(tmp_path, lambda obj: obj["cameras"][1].update(width="8"), "rig.json")
    with pytest.raises(RigError, match=r"rig\.json: cameras\[1\]: width is '8'"):
        read_rig(tmp_path / "rig.json")


def _spoil(obj, data):
    keys = sorted(obj) if isinstance(obj, dict) else list(range(len(obj)))
    key = data.draw(st.sampled_from(keys))
    if isinstance(obj[key], (dict, list)) and obj[key] and data.draw(st.booleans()):
        _spoil(obj[key], data)
    elif isinstance(obj, dict) and data.draw(st.booleans()):
        del obj[key]
    else:
        obj[key] = data.draw(values)
