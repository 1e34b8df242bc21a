# SPDX-License-Identifier: GPL-3.0-or-later
"""What a capture says before it is made: times, moment, seconds, disk; and engines of its own.
Estimates are compared with what a capture then takes; nothing is timed against a limit."""

from __future__ import annotations

import importlib
import json

import bpy
import numpy as np
import pytest
from capture_stage import everything, refused, rig, stage

SIZE = 64


@pytest.fixture
def scene(empty_scene):
    return stage(empty_scene)


def test_the_range_says_its_times_and_the_nearest_that_would_do(scene, viewtime):
    frames = importlib.import_module(f"{viewtime}.capture.frames")
    settings = scene.viewtime
    scene.frame_start, scene.frame_end = 1, 27
    settings.times = 9
    assert str(frames.scene_plan(scene)) == "9 times from frames 1 to 25, every 3"
    for wrong, right in ((8, 9), (7, 5), (2, 1), (11, 9), (400, 25)):
        settings.times = wrong
        assert bpy.ops.viewtime.times_fit() == {"FINISHED"}
        assert settings.times == right
        frames.scene_plan(scene)
    settings.use_own_range = True
    assert (settings.range_start, settings.range_end, settings.range_step) == (1, 27, 0)
    settings.range_start, settings.range_step, settings.times = 3, 4, 9
    with pytest.raises(Exception, match="end at 35; the range ends at 27: choose 5 times"):
        frames.scene_plan(scene)
    bpy.ops.viewtime.times_fit()
    assert frames.scene_plan(scene).frames == [3, 7, 11, 15, 19]
    settings.freeze_frame = 12
    assert settings.freeze_frame == 15 or settings.freeze_frame == 11
    scene.frame_set(18)
    bpy.ops.viewtime.freeze_here()
    assert (settings.freeze_frame, settings.freeze_time) == (19, 4)


def test_one_look_says_what_will_be_and_the_last_capture_how_long(scene, tmp_path, viewtime):
    readiness = importlib.import_module(f"{viewtime}.readiness")
    rig(scene, 4)
    settings = scene.viewtime
    scene.frame_start, scene.frame_end, settings.times = 1, 5, 5
    settings.capture_folder = str(tmp_path / "a")
    before = readiness.capture_outlook(scene)
    assert (before.rendered, before.read, before.size, before.seconds) == (8, 0, (32, 32), None)
    assert bpy.ops.viewtime.capture() == {"FINISHED"}
    after = readiness.capture_outlook(scene)
    one = settings.capture_speed.rendered_seconds
    assert one > 0 and after.seconds == pytest.approx(8 * one, rel=1e-5)
    written = sum(p.stat().st_size for p in (tmp_path / "a").glob("*/*"))
    assert after.disk_bytes == pytest.approx(written, rel=0.01)
    # Another engine, other samples or another machine know nothing of it.
    settings.capture_samples = 7
    assert readiness.capture_outlook(scene).seconds is None
    state_before = everything(scene)
    assert bpy.ops.viewtime.capture_probe() == {"FINISHED"}
    assert everything(scene) == state_before
    assert readiness.capture_outlook(scene).seconds > 0
    settings.capture_speed.machine = "another"
    assert readiness.capture_outlook(scene).seconds is None


def test_workbench_renders_in_place_of_the_scenes_engine_with_true_depth(scene, tmp_path, viewtime):
    cameras = rig(scene)
    scene.camera = cameras[0]
    before = everything(scene)
    arguments = dict(what={"FREEZE", "DEPTH"}, frame_start=1, frame_end=1, times=1, size=SIZE)
    for engine in ("CYCLES", "WORKBENCH"):
        assert bpy.ops.viewtime.capture(
            folder=str(tmp_path / engine), engine=engine, samples=3, **arguments
        ) == {"FINISHED"}
        assert everything(scene) == before
    depth = {}
    for engine in ("CYCLES", "WORKBENCH"):
        image = bpy.data.images.load(str(tmp_path / engine / "depth" / "v001.t0000.exr"))
        image.colorspace_settings.name = "Non-Color"
        values = np.empty(len(image.pixels), np.float32)
        image.pixels.foreach_get(values)
        depth[engine] = values.reshape(SIZE, SIZE, -1)[..., 0]
        bpy.data.images.remove(image)
    solid = (depth["CYCLES"] < 1e9) & (depth["WORKBENCH"] < 1e9)
    assert solid.mean() > 0.2
    error = np.abs(depth["CYCLES"] - depth["WORKBENCH"])[solid]
    assert np.median(error) < 0.01, "planar z differs"
    first, second = (
        (tmp_path / engine / "frames" / "v001.t0000.png").read_bytes()
        for engine in ("CYCLES", "WORKBENCH")
    )
    assert first != second
    refused(
        "A viewport render gives no depth",
        bpy.ops.viewtime.capture, folder=str(tmp_path / "v"), engine="VIEWPORT", **arguments,
    )  # fmt: skip
    arguments["what"] = {"FREEZE"}
    refused(
        "needs a window with a 3D view",
        bpy.ops.viewtime.capture, folder=str(tmp_path / "v"), engine="VIEWPORT", **arguments,
    )  # fmt: skip
    assert everything(scene) == before
    assert json.loads((tmp_path / "CYCLES" / "capture.json").read_text())["times"] == 1
