# SPDX-License-Identifier: GPL-3.0-or-later
"""Which step is shown when: loops, sampling, keyframes, drivers, several scenes.
Counts say which step an object holds: step i has FIRST + i splats."""

from __future__ import annotations

import importlib

import bpy
import pytest
from splats import import_sequence, plays, write_sequence

FIRST = 3
COUNTS = [3, 4, 5, 6]


@pytest.fixture
def frames(viewtime):
    return importlib.import_module(f"{viewtime}.playback.frames")


@pytest.fixture
def ob(empty_scene, formats, tmp_path) -> bpy.types.Object:
    """Four steps at frames 10, 12, 14, 16."""
    return import_sequence(
        write_sequence(formats, tmp_path / "s", COUNTS, frame_start=10, frame_step=2)
    )


def step(ob: bpy.types.Object) -> int:
    return len(ob.data.points) - FIRST


@pytest.mark.parametrize(
    ("loop", "sampling", "wanted"),
    [
        ("HOLD", "HOLD", {1: 0, 10: 0, 11: 0, 13: 1, 16: 3, 40: 3}),
        ("LOOP", "HOLD", {8: 3, 9: 3, 10: 0, 17: 3, 18: 0, 20: 1, 26: 0, 2: 0}),
        ("PING_PONG", "HOLD", {8: 1, 10: 0, 16: 3, 18: 2, 20: 1, 22: 0, 24: 1, 4: 3}),
        ("HOLD", "NEAREST", {10: 0, 11: 1, 12: 1, 13: 2, 15: 3, 40: 3}),
        ("LOOP", "NEAREST", {16: 3, 17: 0, 18: 0, 19: 1, 9: 0, 8: 3}),
    ],
)
def test_outside_and_between_steps(ob, loop, sampling, wanted):
    ob.viewtime.loop, ob.viewtime.sampling = loop, sampling
    assert plays(ob, {frame: FIRST + step for frame, step in wanted.items()})


def test_one_step_alone_survives_every_loop(frames):
    for loop in ("HOLD", "LOOP", "PING_PONG"):
        timing = frames.Timing(times=1, frame_start=1, frame_step=1, loop=loop)
        assert {timing.step_at(frame) for frame in (-7, 0, 1, 2.5, 99)} == {0}


def test_what_is_read_ahead_follows_direction_speed_and_the_ends(frames):
    timing = frames.Timing(times=10, frame_start=1, frame_step=1)
    course = frames.Course()
    assert course.ahead(timing, 1.0, (1, 10), 3) == [1, 2, 3]
    assert course.ahead(timing, 3.0, (1, 10), 3) == [4, 6, 8], "every second frame"
    assert course.ahead(timing, 2.0, (1, 10), 3) == [0, 9, 8], "backwards, then round"
    assert course.ahead(timing, 9.0, (1, 10), 2) == [9, 0], "a jump forwards is no stride"
    assert course.ahead(timing, 10.0, (1, 10), 2) == [0, 1]
    assert course.ahead(timing, 1.0, (1, 10), 2) == [1, 2], "the timeline began again"
    assert course.ahead(timing, 1.0, (1, 10), 2) == [1, 2], "the same frame again"
    back_and_forth = frames.Timing(times=3, frame_start=1, frame_step=1, loop="PING_PONG")
    assert frames.Course().ahead(back_and_forth, 2.0, (1, 100), 3) == [2, 0]
    held = frames.Timing(times=4, frame_start=1, frame_step=1, time=2.0)
    assert frames.Course().ahead(held, 77.0, (1, 10), 3) == [3]


def test_a_keyframed_time_is_honoured_at_the_very_frame(ob, empty_scene):
    settings = ob.viewtime
    settings.use_time = True
    for frame, time in [(1, 3.0), (5, 3.0), (6, 0.0), (9, 2.0)]:
        settings.time = time
        settings.keyframe_insert("time", frame=frame)
    empty_scene.frame_set(5)
    assert step(ob) == 3
    for frame, wanted in [(6, 0), (5, 3), (9, 2), (1, 3), (6, 0)]:
        empty_scene.frame_set(frame)
        assert step(ob) == wanted, frame
    settings.time = 1.0
    assert step(ob) == 1, "an edit shows at once"


def test_a_keyframed_offset_is_honoured_and_speed_takes_no_keyframes(ob, empty_scene):
    for frame, offset in [(14, 0), (15, 2)]:
        ob.viewtime.offset = offset
        ob.viewtime.keyframe_insert("offset", frame=frame)
    assert plays(ob, {14: FIRST + 2, 15: FIRST + 1, 13: FIRST + 1})
    with pytest.raises(TypeError, match="not animatable"):
        ob.viewtime.keyframe_insert("speed", frame=1)


def test_a_driver_by_the_frame_and_by_another_object(ob, empty_scene):
    ob.viewtime.use_time = True
    handle = bpy.data.objects.new("handle", None)
    empty_scene.collection.objects.link(handle)
    driver = ob.driver_add("viewtime.time").driver
    driver.expression = "frame % 4"
    assert plays(ob, {4: FIRST, 5: FIRST + 1, 7: FIRST + 3, 8: FIRST})
    variable = driver.variables.new()
    variable.name, variable.targets[0].id = "x", handle
    variable.targets[0].data_path = "location.x"
    driver.expression = "x"
    for x in (2.0, 0.0, 3.5):
        handle.location.x = x
        bpy.context.view_layer.update()
        assert step(ob) == int(x), "no change of the frame"


def test_nla_strips_count_as_animation(ob, empty_scene):
    ob.viewtime.use_time = True
    for frame, time in [(1, 0.0), (4, 3.0)]:
        ob.viewtime.time = time
        ob.viewtime.keyframe_insert("time", frame=frame)
    data = ob.animation_data
    track = data.nla_tracks.new()
    strip = track.strips.new("s", 21, data.action)
    strip.action_slot = data.action_slot
    data.action = None
    assert plays(ob, {24: FIRST + 3, 21: FIRST})


def test_a_file_opens_at_what_its_keyframes_say(ob, empty_scene, tmp_path):
    ob.viewtime.use_time, ob.viewtime.time = True, 2.0
    ob.viewtime.keyframe_insert("time", frame=1)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "x.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "x.blend"))
    assert step(bpy.data.objects["s"]) == 2


def test_another_scene_does_not_move_what_it_does_not_show(ob, empty_scene, formats, tmp_path):
    empty_scene.frame_set(16)
    other = bpy.data.scenes.new("other")
    other.frame_set(10)
    assert step(ob) == 3
    other.background_set = empty_scene
    other.frame_set(12)
    assert step(ob) == 1
