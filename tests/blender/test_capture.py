# SPDX-License-Identifier: GPL-3.0-or-later
"""Rigs and captures as an artist makes them: through the operators, in real Blender, small.
Depth is judged against rays cast by Blender itself, settings against a dump taken before."""

from __future__ import annotations

import importlib
import math

import bpy
import numpy as np
import pytest
from capture_stage import awkward, read_capture, refused, rig, stage, state
from mathutils import Vector


@pytest.fixture
def render(viewtime):
    return importlib.import_module(f"{viewtime}.capture.render")


@pytest.fixture
def scene(empty_scene):
    return stage(empty_scene)


# ---- rigs ----


def test_an_arc_begins_at_the_active_camera_and_keeps_its_distance_and_framing(scene, viewtime):
    conventions = importlib.import_module(f"{viewtime}.conventions")
    scene.camera.data.lens = 37.0
    cameras = rig(scene, 5)
    assert cameras[0] is scene.camera and len(cameras) == 5
    target = np.array([0, 0, 0.6])
    angles, pictures = [], []
    for ob in cameras:
        camera = conventions.camera_from_blender(ob, scene, 64, 64)
        arm = camera.center - target
        assert np.linalg.norm(arm) == pytest.approx(math.hypot(6, 2.4), rel=1e-5)
        assert ob.data.lens == 37.0
        angles.append(math.degrees(math.atan2(arm[1], arm[0])))
        pictures.append(camera.rotation @ target + camera.translation)
    np.testing.assert_allclose(np.diff(angles), 15.0, atol=1e-3)
    np.testing.assert_allclose(pictures, [pictures[0]] * 5, atol=1e-4)


def test_an_arc_may_rise_and_stand_at_another_distance(scene):
    cameras = rig(scene, 3, radius=4.0, height=1.0, target=(0, 0, 0.6))
    assert scene.camera not in cameras
    first, last = (c.matrix_world.translation for c in (cameras[0], cameras[-1]))
    assert (first - Vector((0, 0, 0.6))).length == pytest.approx(4.0, rel=1e-5)
    assert last.z - first.z == pytest.approx(1.0, abs=1e-5)


def test_a_second_arc_replaces_the_first_and_the_active_camera_stays(scene):
    before = scene.camera.matrix_world.copy()
    rig(scene, 6)
    cameras = rig(scene, 3)
    assert len(cameras) == 3
    assert len([ob for ob in scene.objects if ob.type == "CAMERA"]) == 3
    assert scene.camera.matrix_world == before


def test_the_selection_is_what_an_arc_goes_around(scene):
    scene.objects["Cube"].select_set(True)
    cameras = rig(scene, 2)
    centre = scene.objects["Cube"].matrix_world.translation
    a, b = ((c.matrix_world.translation - centre).to_2d().length for c in cameras)
    assert a == pytest.approx(b, rel=1e-5)


def test_selected_cameras_are_put_in_order_along_their_arc(scene):
    cameras = rig(scene, 5)
    for ob, name in zip(cameras[1:], "cadb"):
        ob.name = name
    bpy.ops.object.select_all(action="DESELECT")
    for ob in cameras:
        ob.select_set(True)
    scene.viewtime.rig.clear()
    assert bpy.ops.viewtime.rig_from_selection() == {"FINISHED"}
    assert [item.camera.name for item in scene.viewtime.rig] == ["Camera", "c", "a", "d", "b"]


def test_doubtful_rigs_are_named(viewtime):
    warnings = importlib.import_module(f"{viewtime}.capture.rig").rig_warnings
    target = np.array([0.0, 5, 0])
    line = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    assert "one straight line" in warnings("abc", line, target)[0]
    assert "'a' and 'b' stand in one place" in warnings("ab", line[[0, 0]], target)[0]
    arc = np.array([[0.0, 0, 0], [1, 0.3, 0], [2, 1, 0]])
    assert warnings("abc", arc, target) == []


def test_rigs_that_cannot_be_are_refused_in_one_line(scene):
    scene.camera.location = (0, 0, 5)
    refused("straight above", bpy.ops.viewtime.rig_arc, count=3)
    refused("0 cameras are selected", bpy.ops.viewtime.rig_from_selection)
    scene.camera = None
    refused("no active camera", bpy.ops.viewtime.rig_arc, count=3)


# ---- which frames ----


def test_times_map_onto_whole_frames_or_are_refused_with_what_would_do(render):
    assert render.capture_frames(1, 33, 9) == [1, 5, 9, 13, 17, 21, 25, 29, 33]
    assert render.capture_frames(7, 7, 1) == [7]
    for arguments, words in (
        ((1, 30, 9), "end at 25 or 33"),
        ((1, 4, 9), "end at 9"),
        ((1, 33, 8), "choose 5 or 9"),
        ((9, 1, 9), "ends before it starts"),
        ((1, 9, 1), "end at 1"),
    ):
        with pytest.raises(Exception, match=words):
            render.capture_frames(*arguments)


def test_the_longer_side_gets_the_size_and_the_other_a_multiple_of_16(render, scene):
    scene.render.resolution_x, scene.render.resolution_y = 1920, 1080
    assert render.capture_resolution(scene, 256) == (256, 144)
    scene.render.resolution_x = 1080
    assert render.capture_resolution(scene, 256) == (256, 256)


# ---- captures ----


def test_clip_and_freeze_frames_land_in_a_folder_that_reads_back(scene, tmp_path):
    rig(scene)
    folder = tmp_path / "capture"
    assert bpy.ops.viewtime.capture(
        folder=str(folder),
        what={"FIXED", "FREEZE", "DEPTH"},
        frame_start=1,
        frame_end=5,
        times=5,
        freeze_time=2,
    ) == {"FINISHED"}
    capture = read_capture(folder)
    assert (capture.views, capture.times, capture.width, capture.height) == (3, 5, 32, 32)
    assert (capture.frame_start, capture.frame_step, capture.fps) == (1, 1, 24.0)
    assert (capture.fixed_view, capture.freeze_time) == (0, 2)
    known = np.zeros((3, 5), bool)
    known[0] = known[:, 2] = True
    np.testing.assert_array_equal(capture.known, known)
    assert capture.has_depth and len(capture.rig) == 3
    # The factory world's grey, as displayed.
    assert capture.background == pytest.approx([0.25] * 3, abs=0.03)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["capture"]
    assert not list(folder.glob("*.exr"))


def test_depth_is_planar_z_of_the_pixel_centre_and_the_camera_is_the_one_in_the_rig(
    scene, tmp_path, render, monkeypatch
):
    cameras = rig(scene)
    written = {}
    write = render.write_depth_exr

    def spy(path, z):
        written[path.stem] = z
        write(path, z)

    monkeypatch.setattr(render, "write_depth_exr", spy)
    capture = render.render_cells(scene, cameras[1:], [5], tmp_path / "c")
    scene.frame_set(5)
    graph = bpy.context.evaluated_depsgraph_get()
    camera = capture.rig.cameras[1]
    depth = written["v001.t0000"]
    sky = compared = 0
    for v in range(0, 32, 3):
        for u in range(0, 32, 3):
            ray = camera.rotation.T @ np.linalg.solve(camera.intrinsics, [u + 0.5, v + 0.5, 1.0])
            hit, place, *_ = scene.ray_cast(graph, Vector(camera.center), Vector(ray).normalized())
            if not hit:
                assert depth[v, u] >= 1e9
                sky += 1
                continue
            z = camera.rotation[2] @ np.array(place) + camera.translation[2]
            compared += abs(depth[v, u] - z) < 1e-3 * z
    assert sky > 20 and compared > 25
    # All but pixels that an edge of the cube may cross.
    assert compared + sky >= 11 * 11 - 2


def test_blender_reads_our_depth_file_back_bit_for_bit(render, tmp_path):
    rng = np.random.default_rng(3)
    depth = rng.uniform(1, 9, (37, 50)).astype(np.float32)
    depth[:9] = 1e10
    render.write_depth_exr(tmp_path / "z.exr", depth)
    image = bpy.data.images.load(str(tmp_path / "z.exr"))
    image.colorspace_settings.name = "Non-Color"
    pixels = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(pixels)
    np.testing.assert_array_equal(pixels.reshape(37, 50, -1)[::-1, :, 0], depth)


def test_a_capture_leaves_every_setting_as_it_was(scene, tmp_path):
    rig(scene)
    awkward(scene)
    before = state(scene)
    arguments = dict(what={"GRID", "DEPTH"}, frame_start=1, frame_end=5, times=5)
    assert bpy.ops.viewtime.capture(folder=str(tmp_path / "a"), **arguments) == {"FINISHED"}
    assert state(scene) == before
    # All cells, none seen from the marker's camera instead.
    capture = read_capture(tmp_path / "a")
    assert capture.is_full_grid
    pictures = {capture.path(capture.cell(v, 2).image).read_bytes() for v in range(3)}
    assert len(pictures) == 3


@pytest.mark.parametrize("file_format", ["OPEN_EXR_MULTILAYER", "FFMPEG", "TIFF"])
def test_the_output_format_comes_back_whatever_it_was(scene, tmp_path, file_format):
    cameras = rig(scene, 2)
    images = scene.render.image_settings
    if hasattr(images, "media_type"):  # Blender 5
        images.media_type = {"OPEN_EXR_MULTILAYER": "MULTI_LAYER_IMAGE", "FFMPEG": "VIDEO"}.get(
            file_format, "IMAGE"
        )
    images.file_format = file_format
    before = state(scene)
    module = importlib.import_module("bl_ext.user_default.viewtime.capture.render")
    module.render_cells(scene, cameras, [1], tmp_path / "a")
    assert state(scene) == before


def test_a_cancelled_capture_leaves_no_folder_and_no_change(scene, tmp_path, render):
    rig(scene)
    awkward(scene)
    before = state(scene)
    settings = render.CaptureSettings(
        tmp_path / "a", frozenset({"GRID", "DEPTH"}), 1, 5, times=5, size=32
    )
    steps = render.capture_steps(bpy.context, settings)
    seen = [next(steps) for _ in range(3)]
    assert [done for done, _, _ in seen] == [0, 1, 2] and seen[0][1] == 15
    steps.close()
    assert state(scene) == before
    assert list(tmp_path.iterdir()) == []


def test_a_camera_that_moves_is_refused_and_nothing_stays(scene, tmp_path):
    rig(scene)
    camera = scene.camera
    camera.keyframe_insert("location", frame=1)
    camera.location.x += 1
    camera.keyframe_insert("location", frame=5)
    before = state(scene)
    refused(
        "'Camera' moves between frames 1 and 2",
        bpy.ops.viewtime.capture,
        folder=str(tmp_path / "a"),
        frame_start=1,
        frame_end=5,
        times=5,
    )
    assert state(scene) == before
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_leaves_the_scene_and_the_folder_as_they_were(
    scene, tmp_path, render, monkeypatch
):
    rig(scene)
    before = state(scene)

    def full(path, depth):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(render, "write_depth_exr", full)
    refused(
        "No space left on device",
        bpy.ops.viewtime.capture,
        folder=str(tmp_path / "a"),
        frame_start=1,
        frame_end=5,
        times=5,
    )
    assert state(scene) == before
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_captured_is_refused_in_one_line(scene, tmp_path):
    capture = bpy.ops.viewtime.capture
    good = dict(frame_start=1, frame_end=5, times=5)
    refused("There is no rig", capture, folder=str(tmp_path / "a"), **good)
    cameras = rig(scene)
    refused("not saved yet", capture, folder="//capture", **good)
    refused("is relative", capture, folder="somewhere", **good)
    refused("0 to 4 exist", capture, folder=str(tmp_path / "a"), freeze_time=5, **good)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused("is not empty", capture, folder=str(tmp_path / "full"), **good)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    bpy.data.objects.remove(cameras[2])
    refused("Camera 2 of the rig is gone", capture, folder=str(tmp_path / "a"), **good)
    for ob in [ob for ob in scene.objects if ob.type == "CAMERA"]:
        bpy.data.objects.remove(ob)
    refused("The scene has no camera", capture, folder=str(tmp_path / "a"), **good)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]
