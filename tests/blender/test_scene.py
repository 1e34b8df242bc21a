# SPDX-License-Identifier: GPL-3.0-or-later
"""The example scene is worth a capture: things move, cameras on the arc see all of them.
It is judged by what Blender evaluates, without rendering."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import bpy
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import make_scene  # noqa: E402


@pytest.fixture
def scene(viewtime):
    return make_scene.build()


def vertices(scene):
    """(N, 4) homogeneous world coordinates of every vertex at the current frame."""
    parts = []
    for ob in scene.objects:
        if ob.type == "MESH":
            local = np.empty(3 * len(ob.data.vertices), np.float32)
            ob.data.vertices.foreach_get("co", local)
            flat = np.column_stack([local.reshape(-1, 3), np.ones(len(local) // 3)])
            parts.append(flat @ np.array(ob.matrix_world).T)
    return np.concatenate(parts)


def test_every_camera_of_the_demo_arc_sees_the_whole_table_at_every_time(scene, viewtime):
    conventions = importlib.import_module(f"{viewtime}.conventions")
    assert bpy.ops.viewtime.rig_arc(count=6, degrees=75) == {"FINISHED"}
    for frame in (1, 9, 17, 25, 33):
        scene.frame_set(frame)
        points = vertices(scene)
        for item in scene.viewtime.rig:
            camera = conventions.camera_from_blender(item.camera, scene, 256, 256)
            seen = points @ camera.camera_from_world.T @ camera.intrinsics.T
            pixels = seen[:, :2] / seen[:, 2:]
            assert pixels.min() > 4 and pixels.max() < 252, f"{item.camera.name}, frame {frame}"
            # And it fills the picture rather than being lost in it.
            assert np.ptp(pixels[:, 0]) > 200


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
