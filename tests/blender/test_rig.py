# SPDX-License-Identifier: GPL-3.0-or-later
"""Rigs of every shape, their warnings, order, preview, undo and the way back from a file.
All through the operators, in real Blender; where cameras stand is judged by plain geometry."""

from __future__ import annotations

import importlib
import math

import bpy
import numpy as np
import pytest
from mathutils import Vector

TARGET = np.array([0.0, 0.0, 0.6])


@pytest.fixture
def scene(empty_scene):
    """A camera that looks a little past a small cube."""
    bpy.ops.mesh.primitive_cube_add(size=1, location=(0.2, 0, 0.8))
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    empty_scene.collection.objects.link(camera)
    camera.location = (0, -6, 3)
    camera.rotation_euler = Vector((0.3, 6, -2.0)).to_track_quat("-Z", "Y").to_euler()
    empty_scene.camera = camera
    empty_scene.cursor.location = TARGET
    bpy.ops.object.select_all(action="DESELECT")
    bpy.context.view_layer.update()
    return empty_scene


def made(scene, operator, **kwargs):
    """Poses (V, 4, 4) of the rig that the operator makes, in view order."""
    assert operator(**kwargs) == {"FINISHED"}
    return np.array([np.array(item.camera.matrix_world) for item in scene.viewtime.rig])


def sights(poses):
    return -poses[:, :3, 2]


def to_target(poses):
    arms = TARGET - poses[:, :3, 3]
    return arms / np.linalg.norm(arms, axis=1, keepdims=True)


def refused(match, operator, **kwargs):
    with pytest.raises(RuntimeError, match=match) as caught:
        operator(**kwargs)
    assert len(str(caught.value).strip().splitlines()) == 1


def test_an_orbit_parts_its_cameras_evenly_and_returns_to_none_of_them(scene):
    poses = made(scene, bpy.ops.viewtime.rig_orbit, count=12, aim="TRACK")
    arms = poses[:, :3, 3] - TARGET
    angles = np.unwrap(np.arctan2(arms[:, 1], arms[:, 0]))
    np.testing.assert_allclose(np.diff(angles), math.radians(30), atol=1e-5)
    np.testing.assert_allclose(sights(poses), to_target(poses), atol=1e-5)
    # Upright: the camera's right stays level.
    assert np.abs(poses[:, 2, 0]).max() < 1e-5


def test_a_dolly_goes_straight_and_looks_as_it_is_told(scene):
    own = np.array(scene.camera.matrix_world)
    poses = made(scene, bpy.ops.viewtime.rig_dolly, count=5, distance=2.0, aim="PARALLEL")
    np.testing.assert_allclose(poses[0], own, atol=1e-6)
    assert scene.viewtime.rig[0].camera is scene.camera
    np.testing.assert_allclose(
        poses[:, :3, 3] - own[:3, 3], np.outer(np.arange(5) * 0.5, own[:3, 0]), atol=1e-5
    )
    np.testing.assert_allclose(poses[:, :3, :3], [own[:3, :3]] * 5, atol=1e-5)
    poses = made(
        scene, bpy.ops.viewtime.rig_dolly, count=4, distance=2.0, centred=True, aim="TRACK"
    )
    np.testing.assert_allclose(poses[:, :3, 3].mean(0), own[:3, 3], atol=1e-5)
    np.testing.assert_allclose(sights(poses), to_target(poses), atol=1e-5)
    forward = made(scene, bpy.ops.viewtime.rig_dolly, count=2, distance=1.5, direction="FORWARD")
    np.testing.assert_allclose(forward[1, :3, 3] - forward[0, :3, 3], -1.5 * own[:3, 2], atol=1e-5)


def test_same_framing_keeps_the_subject_in_its_place_in_every_picture(scene, viewtime):
    conventions = importlib.import_module(f"{viewtime}.conventions")
    for operator, kwargs in (
        (bpy.ops.viewtime.rig_arc, {"height": 2.0, "centred": True}),
        (bpy.ops.viewtime.rig_grid, {}),
    ):
        made(scene, operator, **kwargs)
        cameras = [
            conventions.camera_from_blender(item.camera, scene, 64, 64)
            for item in scene.viewtime.rig
        ]
        seen = np.array([c.intrinsics @ (c.rotation @ TARGET + c.translation) for c in cameras])
        pixels = seen[:, :2] / seen[:, 2:]
        own = conventions.camera_from_blender(scene.camera, scene, 64, 64)
        there = own.intrinsics @ (own.rotation @ TARGET + own.translation)
        np.testing.assert_allclose(pixels, [there[:2] / there[2]] * len(pixels), atol=0.2)


def test_a_grid_is_walked_without_jumps_and_keeps_its_distance(scene):
    own = np.array(scene.camera.matrix_world)[:3, 3]
    poses = made(
        scene, bpy.ops.viewtime.rig_grid, rows=3, columns=5, unit="DEGREES", degrees=(40, 20)
    )
    centres = poses[:, :3, 3]
    assert len(centres) == 15
    np.testing.assert_allclose(
        np.linalg.norm(centres - TARGET, axis=1), np.linalg.norm(own - TARGET), rtol=1e-5
    )
    # The active camera is the middle one, and stays where it is.
    assert scene.viewtime.rig[7].camera is scene.camera
    arms = centres - TARGET
    height = np.degrees(np.arcsin(arms[:, 2] / np.linalg.norm(arms, axis=1)))
    np.testing.assert_allclose(np.diff(height[[0, 5, 10]]), -10, atol=1e-3)
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    assert steps.max() < 1.6 * steps.min(), "the order jumps back at the end of a row"
    flat = made(scene, bpy.ops.viewtime.rig_grid, rows=2, columns=3, unit="METRES", metres=(2, 1))
    assert len(flat) == 6
    np.testing.assert_allclose(np.linalg.norm(flat[0, :3, 3] - flat[2, :3, 3]), 2, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(flat[2, :3, 3] - flat[3, :3, 3]), 1, rtol=1e-5)


def curve(scene, points, **data):
    line = bpy.data.curves.new("path", "CURVE")
    line.dimensions = "3D"
    spline = line.splines.new("POLY")
    spline.points.add(len(points) - 1)
    for point, co in zip(spline.points, points):
        point.co = (*co, 1)
    for name, value in data.items():
        setattr(line, name, value)
    ob = bpy.data.objects.new("path", line)
    scene.collection.objects.link(ob)
    return ob


def test_cameras_stand_evenly_along_a_curve_however_its_points_lie(scene):
    ob = curve(scene, [(0, 0, 0), (1, 0, 0), (1, 0, 0.5), (1, 3, 0.5)], bevel_depth=0.1)
    ob.location, ob.scale = (-1, -5, 1), (2, 2, 2)
    ob.select_set(True)
    bpy.context.view_layer.update()
    before = len(bpy.data.curves), len(bpy.data.objects), len(bpy.data.meshes)
    poses = made(scene, bpy.ops.viewtime.rig_curve, count=10)
    # A way of 9 metres: one camera at each metre, the second at the end of the first bend.
    centres = poses[:, :3, 3]
    np.testing.assert_allclose(centres[0], (-1, -5, 1), atol=1e-5)
    np.testing.assert_allclose(centres[2], (1, -5, 1), atol=1e-5)
    np.testing.assert_allclose(centres[3], (1, -5, 2), atol=1e-5)
    np.testing.assert_allclose(centres[-1], (1, 1, 2), atol=1e-5)
    np.testing.assert_allclose(sights(poses), to_target(poses), atol=1e-5)
    assert (len(bpy.data.curves), len(bpy.data.objects) - 10, len(bpy.data.meshes)) == before
    back = made(scene, bpy.ops.viewtime.rig_curve, count=10, reverse=True)
    np.testing.assert_allclose(back[::-1, :3, 3], centres, atol=1e-5)
    ob.data.splines[0].use_cyclic_u = True
    closed = made(scene, bpy.ops.viewtime.rig_curve, count=4)
    assert np.linalg.norm(closed[0, :3, 3] - closed[-1, :3, 3]) > 1


def test_rigs_that_cannot_be_are_refused_in_one_line(scene):
    ops = bpy.ops.viewtime
    refused("0 curves are selected", ops.rig_curve, count=3)
    refused("no curve 'road'", ops.rig_curve, count=3, curve="road")
    refused("length 0", ops.rig_dolly, count=3, distance=0)
    refused("2 to 256 are needed", ops.rig_grid, rows=1, columns=1)
    refused("without width and height", ops.rig_grid, rows=2, columns=2, degrees=(0, 0))
    refused("over the pole", ops.rig_grid, rows=3, columns=3, degrees=(10, 170))
    refused("Nothing is selected", ops.rig_orbit, around="SELECTION")
    refused("choose a rig.json", ops.rig_from_file, filepath="/nowhere/rig.json")
    assert not len(scene.viewtime.rig)
    scene.objects["Cube"].select_set(True)
    bpy.context.view_layer.objects.active = scene.objects["Cube"]
    bpy.ops.object.mode_set(mode="EDIT")
    refused("Leave edit mode", ops.rig_arc)
    bpy.ops.object.mode_set(mode="OBJECT")


def test_what_is_doubtful_about_a_rig_is_said(viewtime):
    warnings = importlib.import_module(f"{viewtime}.capture.poses").rig_warnings
    target = np.zeros(3)

    def ring(degrees):
        a = np.radians(degrees)
        return np.stack([np.cos(a), np.sin(a), 0.1 * a], axis=1)

    assert warnings("abc", ring([0, 20, 40]), target) == []
    assert "Views 1 and 2 are 50 degrees apart" in warnings("abc", ring([0, 20, 70]), target)[0]
    around = ring(np.arange(0, 360, 20))
    assert "340 degrees around" in warnings(range(18), around, target)[0]
    line = np.array([[0.0, -5, 0], [1, -5, 0], [2, -5, 0]])
    assert "one straight line" in warnings("abc", line, target)[0]
    assert "'a' and 'c' stand in one place" in " ".join(
        warnings("abc", ring([0, 20, 0]) * (1, 1, 0), target)
    )


def test_one_undo_takes_the_whole_rig_back(scene):
    bpy.ops.ed.undo_push(message="before")
    names = sorted(ob.name for ob in scene.objects)
    assert bpy.ops.viewtime.rig_grid("EXEC_DEFAULT", True, rows=2, columns=2) == {"FINISHED"}
    assert len(bpy.context.scene.viewtime.rig) == 4
    bpy.ops.ed.undo()
    assert not len(bpy.context.scene.viewtime.rig)
    assert sorted(ob.name for ob in bpy.context.scene.objects) == names
    bpy.ops.ed.redo()
    assert len(bpy.context.scene.viewtime.rig) == 4


def test_the_order_of_views_is_the_artists(scene):
    bpy.ops.viewtime.rig_arc(count=4)
    rig = scene.viewtime.rig
    names = [item.camera.name for item in rig]
    scene.viewtime.rig_index = 1
    bpy.ops.viewtime.rig_move(direction="DOWN")
    assert [item.camera.name for item in rig] == [names[i] for i in (0, 2, 1, 3)]
    assert scene.viewtime.rig_index == 2
    bpy.ops.viewtime.rig_reverse()
    assert [item.camera.name for item in rig] == [names[i] for i in (3, 1, 2, 0)]
    assert bpy.ops.viewtime.rig_move(index=0, direction="UP") == {"CANCELLED"}
    bpy.ops.viewtime.rig_activate(index=1)
    assert scene.camera.name == names[1]
    # Its own camera goes with the view; the active one and the artist's stay.
    bpy.ops.viewtime.rig_remove(index=0)
    assert names[3] not in bpy.data.objects
    bpy.ops.viewtime.rig_remove(index=0)
    bpy.ops.viewtime.rig_remove(index=1)
    assert {names[0], names[1]} <= set(bpy.data.objects.keys())
    assert [item.camera.name for item in rig] == [names[2]]
    scene.camera.select_set(True)
    bpy.ops.viewtime.rig_add()
    assert [item.camera.name for item in rig] == [names[2], names[1]]
    refused("in the rig already", bpy.ops.viewtime.rig_add)
    bpy.ops.object.select_all(action="DESELECT")
    refused("No camera is selected", bpy.ops.viewtime.rig_add)


def test_a_view_is_looked_through_and_the_artists_view_comes_back(viewtime, tmp_path):
    # Not the empty file: this one has a window with a 3D view.
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    scene = bpy.context.scene
    area = next(
        a for a in bpy.context.window_manager.windows[0].screen.areas if a.type == "VIEW_3D"
    )
    space = area.spaces.active
    lend = importlib.import_module(f"{viewtime}.capture.lend")
    before, camera = lend.view_state(space), scene.camera
    bpy.ops.viewtime.rig_arc(count=3)
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0], area=area):
        refused("No view is being looked through", bpy.ops.viewtime.look_back)
        for view in (2, 1):
            assert bpy.ops.viewtime.look_through(index=view) == {"FINISHED"}
            assert space.camera is scene.viewtime.rig[view].camera and space.use_local_camera
            assert space.region_3d.view_perspective == "CAMERA"
            assert scene.camera is camera
        assert bpy.ops.viewtime.look_back() == {"FINISHED"}
    assert lend.view_state(space) == before
    assert scene.camera is camera


def test_a_rig_comes_back_from_the_capture_that_it_was_for(scene, viewtime, tmp_path):
    rig_format = importlib.import_module("viewtime_formats.rig")
    conventions = importlib.import_module(f"{viewtime}.conventions")
    scene.render.resolution_x, scene.render.resolution_y = 640, 360
    scene.camera.data.lens, scene.camera.data.shift_x = 41.0, 0.07
    bpy.ops.viewtime.rig_arc(count=4, height=0.7)
    bpy.context.view_layer.update()
    went = rig_format.Rig(
        tuple(
            # A height of 144 is 16:9; 176 is not, as when pictures are brought to 16 pixels.
            conventions.camera_from_blender(item.camera, scene, 1280, 720).resized(256, height)
            for item, height in zip(scene.viewtime.rig, (144, 144, 176, 144))
        )
    )
    rig_format.write_rig(tmp_path / "rig.json", went)
    for item in scene.viewtime.rig:
        item.camera.matrix_world.translation = (9, 9, 9)
    for path in (tmp_path, tmp_path / "rig.json"):
        scene.camera = None
        assert bpy.ops.viewtime.rig_from_file(filepath=str(path)) == {"FINISHED"}
        bpy.context.view_layer.update()
        cameras = [item.camera for item in scene.viewtime.rig]
        assert len(cameras) == 4 and scene.camera in cameras
        for ob, old in zip(cameras, went.cameras):
            back = conventions.camera_from_blender(ob, scene, 1280, 720)
            old = old.resized(1280, 720)
            np.testing.assert_allclose(back.center, old.center, atol=1e-4)
            np.testing.assert_allclose(back.rotation, old.rotation, atol=1e-5)
            np.testing.assert_allclose(back.intrinsics, old.intrinsics, rtol=2e-4, atol=0.1)


def test_a_file_that_is_no_rig_changes_nothing(scene, tmp_path):
    bpy.ops.viewtime.rig_arc(count=3)
    before = [item.camera.name for item in scene.viewtime.rig], sorted(bpy.data.objects.keys())
    (tmp_path / "rig.json").write_text("{}")
    refused("rig.json", bpy.ops.viewtime.rig_from_file, filepath=str(tmp_path))
    assert before == (
        [item.camera.name for item in scene.viewtime.rig],
        sorted(bpy.data.objects.keys()),
    )
