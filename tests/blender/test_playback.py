# SPDX-License-Identifier: GPL-3.0-or-later
"""Sequences on the timeline: import, frame mapping, files that move, files that are damaged.
It never looks at pictures (test_display does)."""

from __future__ import annotations

import importlib
import json

import bpy
import numpy as np
import pytest
from splats import (
    attribute,
    gaussians,
    import_sequence,
    message,
    positions,
    truncate,
    write_sequence,
)


def test_a_sequence_becomes_one_point_cloud_in_the_layout_of_native_splats(
    empty_scene, formats, tmp_path
):
    folder = write_sequence(formats, tmp_path / "swing", [40, 40], coefficients=4)
    ob = import_sequence(folder)
    wanted = gaussians(formats, 40, 0, 4)
    assert (ob.name, ob.type) == ("swing", "POINTCLOUD")
    assert ob.viewtime.sequence_id == formats.read_sequence(folder).id
    kinds = {a.name: a.data_type for a in ob.data.attributes if not a.name.startswith(".")}
    base = "FLOAT4" if bpy.app.version >= (5, 2, 0) else "FLOAT_COLOR"
    assert kinds == {
        "position": "FLOAT_VECTOR",
        "scale": "FLOAT_VECTOR",
        "rotation": "QUATERNION",
        "radiance:base": base,
        **{f"radiance:sh_{i}": "FLOAT_VECTOR" for i in range(3)},
    }
    assert np.array_equal(positions(ob), wanted.means)
    assert np.array_equal(attribute(ob, "scale", "vector", 3), wanted.scales)
    assert np.array_equal(attribute(ob, "rotation", "value", 4), wanted.rotations)
    stored = attribute(ob, "radiance:base", "vector" if base == "FLOAT4" else "color", 4)
    assert np.array_equal(stored, np.c_[wanted.sh[:, 0], wanted.opacities])
    assert np.array_equal(attribute(ob, "radiance:sh_2", "vector", 3), wanted.sh[:, 3])


def test_importing_the_same_folder_again_refreshes_the_object_it_has(
    empty_scene, formats, tmp_path, viewtime
):
    first = import_sequence(write_sequence(formats, tmp_path / "s", [5]))
    write_sequence(formats, tmp_path / "s", [8], seed=9)
    assert import_sequence(tmp_path / "s") == first
    assert [ob.type for ob in bpy.data.objects] == ["POINTCLOUD"]
    assert np.array_equal(positions(first), gaussians(formats, 8, 9).means)
    assert message(viewtime, first) == ""


@pytest.mark.parametrize(
    ("frame", "offset", "speed", "step"),
    [
        (-50, 0, 1, 0),
        (10, 0, 1, 0),
        (11, 0, 1, 0),
        (12, 0, 1, 1),
        (14, 0, 1, 2),
        (99, 0, 1, 3),
        (17, 5, 1, 1),
        (14, 0, 0.5, 1),
        (13, 0, 2, 3),
    ],
)
def test_frames_map_to_steps_and_hold_at_the_ends(
    empty_scene, formats, tmp_path, frame, offset, speed, step
):
    """Steps begin at frames 10, 12, 14, 16."""
    ob = import_sequence(
        write_sequence(formats, tmp_path / "s", [3, 4, 5, 6], frame_start=10, frame_step=2)
    )
    ob.viewtime.offset = offset
    ob.viewtime.speed = speed
    empty_scene.frame_set(frame)
    assert np.array_equal(positions(ob), gaussians(formats, 3 + step, step).means)


def test_editing_the_offset_takes_effect_at_once_and_playing_can_be_stopped(
    empty_scene, formats, tmp_path
):
    ob = import_sequence(write_sequence(formats, tmp_path / "s", [3, 4, 5]))
    ob.viewtime.offset = -1
    assert len(ob.data.points) == 4
    ob.viewtime.enabled = False
    empty_scene.frame_set(3)
    assert len(ob.data.points) == 4


def test_a_thousand_changes_of_count_leave_no_datablock_behind(empty_scene, formats, tmp_path):
    ob = import_sequence(write_sequence(formats, tmp_path / "s", [300, 0, 500]))
    blocks = ("pointclouds", "scenes", "objects", "node_groups", "meshes", "materials")
    before = {name: len(getattr(bpy.data, name)) for name in blocks}
    name = ob.data.name
    for turn in range(1000):
        empty_scene.frame_set(1 + turn % 3)
        assert len(ob.data.points) == (300, 0, 500)[turn % 3]
    assert {name: len(getattr(bpy.data, name)) for name in blocks} == before
    assert ob.data.name == name


def test_steps_not_written_yet_hold_the_last_one_and_appear_when_the_job_writes_them(
    empty_scene, formats, tmp_path, viewtime
):
    folder = tmp_path / "s"
    writer = formats.SequenceWriter(folder, times=4, fps=24.0, frame_start=1, frame_step=1)
    ob = import_sequence(folder)
    assert "No step" in message(viewtime, ob)
    writer.write_step(0, gaussians(formats, 3, 0))
    writer.write_step(1, gaussians(formats, 4, 1))
    empty_scene.frame_set(4)
    assert (len(ob.data.points), message(viewtime, ob)) == (4, "")
    writer.write_step(3, gaussians(formats, 6, 3))
    empty_scene.frame_set(4)
    assert len(ob.data.points) == 6
    empty_scene.frame_set(3)
    assert len(ob.data.points) == 4


def test_linked_duplicates_with_different_offsets_show_different_steps(
    empty_scene, formats, tmp_path
):
    ob = import_sequence(write_sequence(formats, tmp_path / "s", [3, 4, 5]))
    twin = ob.copy()
    empty_scene.collection.objects.link(twin)
    twin.viewtime.offset = 1
    empty_scene.frame_set(3)
    assert (len(ob.data.points), len(twin.data.points)) == (5, 4)


def test_a_truncated_step_is_refused_on_import_and_the_scene_is_untouched(
    empty_scene, formats, tmp_path
):
    folder = write_sequence(formats, tmp_path / "s", [30])
    path = truncate(folder, 0)
    with pytest.raises(RuntimeError) as refused:
        bpy.ops.viewtime.import_sequence(directory=str(folder))
    assert str(path) in str(refused.value) and str(refused.value).strip().count("\n") == 0
    assert not bpy.data.objects and not bpy.data.pointclouds


def test_a_truncated_step_met_while_scrubbing_is_a_line_and_keeps_the_last_good_splats(
    empty_scene, formats, tmp_path, viewtime
):
    folder = write_sequence(formats, tmp_path / "s", [30, 31, 32])
    path = truncate(folder, 1)
    ob = import_sequence(folder)
    empty_scene.frame_set(2)
    assert str(path) in message(viewtime, ob) and "\n" not in message(viewtime, ob)
    assert np.array_equal(positions(ob), gaussians(formats, 30, 0).means)
    empty_scene.frame_set(3)
    assert (len(ob.data.points), message(viewtime, ob)) == (32, "")


@pytest.mark.parametrize("content", [None, "{", json.dumps({"format": "other"})])
def test_a_folder_without_a_sequence_is_refused_in_one_line(empty_scene, tmp_path, content):
    if content is not None:
        (tmp_path / "sequence.json").write_text(content)
    with pytest.raises(RuntimeError, match="sequence.json") as refused:
        bpy.ops.viewtime.import_sequence(directory=str(tmp_path))
    assert str(refused.value).strip().count("\n") == 0
    assert not bpy.data.objects


@pytest.mark.parametrize("count", [0, 20_000])
def test_undo_and_redo_keep_frame_and_splats_together(empty_scene, formats, tmp_path, count):
    """From 20,000 splats on, two clouds take turns."""
    counts = [count + 3, count + 4, count + 5]
    name = import_sequence(write_sequence(formats, tmp_path / "s", counts)).name

    def shown() -> int | None:
        at, ob = bpy.context.scene.frame_current, bpy.data.objects[name]
        wanted = gaussians(formats, counts[at - 1], at - 1).means
        return at if np.array_equal(positions(ob), wanted) else None

    for frame in (2, 3):
        bpy.context.scene.frame_set(frame)
        bpy.ops.ed.undo_push(message=str(frame))
    bpy.ops.ed.undo()
    assert shown() == 2
    bpy.ops.ed.redo()
    assert shown() == 3
    bpy.context.scene.frame_set(1)
    assert shown() == 1 and len(bpy.data.pointclouds) <= 2


def test_the_panel_says_what_is_played(empty_scene, formats, tmp_path, viewtime):
    words = importlib.import_module(f"{viewtime}.readiness.result")
    with formats.SequenceWriter(
        tmp_path / "s",
        times=3,
        fps=24.0,
        frame_start=5,
        frame_step=2,
        provenance={"route": "captured"},
    ) as writer:
        writer.write_step(0, gaussians(formats, 1500, 0))
        writer.write_step(1, gaussians(formats, 1200, 1))
        ob = import_sequence(tmp_path / "s")
        text = "\n".join(words.sequence_in_words(ob))
        assert "2 of 3 steps so far, one every 2 frames (24 fps)" in text
        assert "Frames 5 to 9" in text and "1,200 to 1,500 splats a step" in text
        assert "captured geometry" in text
        assert not words.is_lost(ob)
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "x.blend"))
        assert "2 of 3 steps" in words.missing_for_native(ob)
        writer.write_step(2, gaussians(formats, 1200, 2))
    assert words.missing_for_native(ob) is None
    (tmp_path / "s").rename(tmp_path / "gone")
    assert words.is_lost(ob) and words.sequence_in_words(ob) == []
    assert "missing" in words.missing_for_native(ob)
