# SPDX-License-Identifier: GPL-3.0-or-later
"""The example scene is worth a capture: things move, cameras on the arc see all of them.
It is judged by what Blender evaluates, without rendering."""

from __future__ import annotations

import sys
from pathlib import Path

import bpy
import pytest
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Vector

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import make_scene  # noqa: E402


@pytest.fixture
def scene(viewtime):
    return make_scene.build()


def corners(scene):
    return [
        ob.matrix_world @ Vector(corner)
        for ob in scene.objects if ob.type == "MESH" for corner in ob.bound_box
    ]


def test_every_camera_of_the_demo_arc_sees_the_whole_table_at_every_time(scene):
    assert bpy.ops.viewtime.rig_arc(count=6, degrees=75) == {"FINISHED"}
    for frame in (1, 9, 17, 25, 33):
        scene.frame_set(frame)
        for item in scene.viewtime.rig:
            for corner in corners(scene):
                x, y, _ = world_to_camera_view(scene, item.camera, corner)
                assert 0 < x < 1 and 0 < y < 1, f"{item.camera.name} cuts off at frame {frame}"


def test_toys_move_moderately_between_timesteps(scene):
    def places(frame):
        scene.frame_set(frame)
        return {ob.name: ob.matrix_world.copy() for ob in scene.objects if ob.type == "MESH"}

    first, second = places(1), places(5)
    moved = [name for name in first if first[name] != second[name]]
    assert {"Ball", "Top", "Box", "Boiler", "Sail 0", "Ring 0"} <= set(moved)
    assert {"Table", "Track", "Windmill"}.isdisjoint(moved)
    far = max((first[n].translation - second[n].translation).length for n in moved)
    assert far < 0.3


def test_the_scene_says_what_the_demo_relies_on(scene):
    assert (scene.frame_start, scene.frame_end, scene.render.fps) == (1, 33, 24)
    assert scene.render.engine == "CYCLES" and scene.view_settings.view_transform == "Standard"
    assert not bpy.data.images, "textures are procedural: nothing beside the .blend is needed"
