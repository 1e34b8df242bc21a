# SPDX-License-Identifier: GPL-3.0-or-later
"""Cameras cross between Blender and OpenCV without moving a pixel.
The judge is Blender's own world_to_camera_view, never our formulas."""

from __future__ import annotations

import importlib
import math
import random

import bpy
import numpy as np
import pytest
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Euler, Matrix, Vector


@pytest.fixture
def conventions(viewtime):
    return importlib.import_module(f"{viewtime}.conventions")


@pytest.fixture
def scene(empty_scene):
    return empty_scene


def new_camera(scene, name="Camera"):
    ob = bpy.data.objects.new(name, bpy.data.cameras.new(name))
    scene.collection.objects.link(ob)
    return ob


def random_camera(scene, seed):
    """A camera with everything an artist can turn, under a parent that is itself turned."""
    rng = random.Random(seed)
    render = scene.render
    render.resolution_x, render.resolution_y = rng.choice([(256, 256), (320, 200), (144, 400)])
    render.resolution_percentage = 100
    render.pixel_aspect_x, render.pixel_aspect_y = rng.choice([(1, 1), (1, 1.5), (2, 1)])
    camera = new_camera(scene, f"Camera{seed}")
    data = camera.data
    data.sensor_fit = rng.choice(["AUTO", "HORIZONTAL", "VERTICAL"])
    data.lens = rng.uniform(18, 90)
    data.sensor_width, data.sensor_height = rng.uniform(20, 40), rng.uniform(12, 30)
    data.shift_x, data.shift_y = rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3)
    parent = bpy.data.objects.new("Parent", None)
    scene.collection.objects.link(parent)
    parent.matrix_world = Matrix.LocRotScale(
        Vector(rng.uniform(-2, 2) for _ in range(3)),
        Euler([rng.uniform(-3, 3) for _ in range(3)]),
        Vector([rng.uniform(0.5, 2)] * 3),
    )
    camera.parent = parent
    camera.matrix_local = Matrix.LocRotScale(
        Vector(rng.uniform(-4, 4) for _ in range(3)),
        Euler([rng.uniform(-3, 3) for _ in range(3)]),
        Vector(rng.uniform(0.3, 3) for _ in range(3)),
    )
    bpy.context.view_layer.update()
    return camera


def points_in_front(camera, seed, count=20):
    rng = random.Random(seed)
    pose = camera.matrix_world.normalized()
    return [
        pose @ Vector((rng.uniform(-1, 1), rng.uniform(-1, 1), -rng.uniform(3, 9)))
        for _ in range(count)
    ]


def project(camera, point):
    x, y, z = camera.camera_from_world @ np.array([*point, 1.0])
    u, v, w = camera.intrinsics @ (x, y, z)
    return u / w, v / w, z


@pytest.mark.parametrize("seed", range(24))
def test_a_point_lands_where_blender_puts_it(conventions, scene, seed):
    camera = random_camera(scene, seed)
    width, height = scene.render.resolution_x, scene.render.resolution_y
    ours = conventions.camera_from_blender(camera, scene, width, height)
    errors = []
    for point in points_in_front(camera, seed):
        x, y, depth = world_to_camera_view(scene, camera, point)
        u, v, z = project(ours, point)
        errors += [abs(u - x * width), abs(v - (1 - y) * height)]
        assert z == pytest.approx(depth, rel=1e-5)
    # The judge computes in float32: single points may be off by its rounding, the camera may not.
    assert np.median(errors) < 1e-4
    assert max(errors) < 2e-3


@pytest.mark.parametrize("seed", range(8))
def test_a_camera_comes_back_as_it_went(conventions, scene, seed):
    camera = random_camera(scene, seed)
    width, height = scene.render.resolution_x, scene.render.resolution_y
    went = conventions.camera_from_blender(camera, scene, width, height)
    back = new_camera(scene, "Back")
    back.data.sensor_width = 23.0
    conventions.blender_from_camera(went, back, scene)
    bpy.context.view_layer.update()
    came = conventions.camera_from_blender(back, scene, width, height)
    np.testing.assert_allclose(came.intrinsics, went.intrinsics, atol=2e-4)
    np.testing.assert_allclose(came.camera_from_world, went.camera_from_world, atol=2e-6)


@pytest.mark.parametrize(("kind", "word"), [("ORTHO", "orthographic"), ("PANO", "panoramic")])
def test_a_camera_without_a_pinhole_is_refused_in_words(conventions, scene, kind, word):
    camera = new_camera(scene)
    camera.data.type = kind
    with pytest.raises(Exception, match=f"Camera 'Camera' is {word}; set its type to Perspective"):
        conventions.camera_from_blender(camera, scene, 64, 64)


def test_mirrored_and_sheared_cameras_are_refused(conventions, scene):
    camera = new_camera(scene)
    camera.scale.x = -1
    bpy.context.view_layer.update()
    with pytest.raises(Exception, match="mirrored by a negative scale"):
        conventions.camera_from_blender(camera, scene, 64, 64)
    camera.scale.x = 1
    camera.rotation_euler.y = math.radians(40)
    parent = bpy.data.objects.new("Parent", None)
    scene.collection.objects.link(parent)
    parent.scale.x = 3
    camera.parent = parent
    bpy.context.view_layer.update()
    with pytest.raises(Exception, match="sheared by the scale of its parent"):
        conventions.camera_from_blender(camera, scene, 64, 64)


def test_an_object_that_is_no_camera_is_refused(conventions, scene):
    with pytest.raises(Exception, match="'Empty' is of type empty; a camera is needed"):
        conventions.camera_from_blender(bpy.data.objects.new("Empty", None), scene, 64, 64)


def test_pixels_that_the_scene_cannot_have_are_refused(conventions, scene):
    camera = new_camera(scene)
    scene.render.pixel_aspect_y = 2.0
    went = conventions.camera_from_blender(camera, scene, 64, 64)
    scene.render.pixel_aspect_y = 1.0
    with pytest.raises(Exception, match="set pixel aspect Y to 2"):
        conventions.blender_from_camera(went, camera, scene)
