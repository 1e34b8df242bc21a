# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbered PLY files from a sequence object, by the command line and by the operator.
It never trusts the writer: every file is read back by viewtime_formats."""

from __future__ import annotations

import importlib
from pathlib import Path

import bpy
import numpy as np
import pytest
from mathutils import Matrix, Quaternion
from splats import gaussians


@pytest.fixture
def cli(viewtime: str):
    return importlib.import_module(f"{viewtime}.cli")


@pytest.fixture
def swing(empty_scene, formats, tmp_path) -> bpy.types.Object:
    """Four steps of 5, 6, 7, 8 Gaussians on frames 3, 5, 7, 9."""
    folder = tmp_path / "swing"
    with formats.SequenceWriter(folder, times=4, fps=24.0, frame_start=3, frame_step=2) as writer:
        for step in range(4):
            writer.write_step(step, gaussians(formats, 5 + step, step))
    bpy.ops.viewtime.import_sequence(directory=str(folder))
    return bpy.context.object


def covariances(splats) -> np.ndarray:
    turn = np.array([Quaternion(q).to_matrix() for q in splats.rotations.tolist()])
    axes = turn * splats.scales[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_command_line_writes_one_ply_per_frame_of_the_whole_sequence(
    swing, formats, cli, tmp_path, capsys
):
    bpy.context.scene.frame_set(6)
    assert cli.main(["export", "--out", str(tmp_path / "ply")]) == 0
    assert names(tmp_path / "ply") == [f"swing.{frame:04d}.ply" for frame in range(3, 10)]
    for frame, step in [(3, 0), (4, 0), (5, 1), (8, 2), (9, 3)]:
        read = formats.read_ply(tmp_path / "ply" / f"swing.{frame:04d}.ply")
        wanted = gaussians(formats, 5 + step, step)
        assert np.array_equal(read.means, wanted.means)
        assert np.array_equal(read.sh, wanted.sh)
        assert np.allclose(read.scales, wanted.scales, rtol=1e-6)
        assert np.allclose(read.opacities, wanted.opacities, atol=1e-6)
        assert np.allclose(read.rotations, wanted.rotations, atol=1e-6)
    assert bpy.context.scene.frame_current == 6
    assert "7 PLY files" in capsys.readouterr().out


def test_keyframes_of_the_sequence_time_are_followed(swing, formats, cli, tmp_path):
    swing.viewtime.use_time = True
    for frame, time in [(3, 3.0), (4, 1.0), (5, 2.0)]:
        swing.viewtime.time = time
        swing.viewtime.keyframe_insert("time", frame=frame)
    assert cli.export(["--out", str(tmp_path / "ply"), "--frames", "3:5"]) == 0
    counts = [
        len(formats.read_ply(tmp_path / "ply" / f"swing.{frame:04d}.ply")) for frame in (3, 4, 5)
    ]
    assert counts == [8, 6, 7]


def test_frames_and_object_can_be_named_and_follow_the_offset(swing, cli, formats, tmp_path):
    swing.viewtime.offset = 10
    out = tmp_path / "ply"
    assert cli.export(["--object", "swing", "--out", str(out), "--frames", "15:16"]) == 0
    assert names(out) == ["swing.0015.ply", "swing.0016.ply"]
    assert len(formats.read_ply(out / "swing.0015.ply")) == 6


def test_the_animated_world_transform_of_the_object_is_applied(swing, cli, formats, tmp_path):
    swing.rotation_mode = "QUATERNION"
    swing.rotation_quaternion = Quaternion((1.0, 2.0, 3.0), 2.2)
    swing.scale = (2.5, 2.5, 2.5)
    swing.location = (1, 0, 0)
    swing.keyframe_insert("location", frame=3)
    swing.location = (1, 0, 6)
    swing.keyframe_insert("location", frame=9)
    assert cli.main(["export", "--out", str(tmp_path / "ply"), "--frames", "9"]) == 0
    read = formats.read_ply(tmp_path / "ply" / "swing.0009.ply")
    wanted = gaussians(formats, 8, 3)
    turn = np.array(Quaternion((1.0, 2.0, 3.0), 2.2).to_matrix())
    assert np.allclose(read.means, 2.5 * wanted.means @ turn.T + [1, 0, 6], atol=1e-5)
    moved = 6.25 * turn @ covariances(wanted) @ turn.T
    assert np.allclose(covariances(read), moved, atol=1e-6)
    assert np.array_equal(read.sh, wanted.sh)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (Matrix.Diagonal((1, 1, 2, 1)), "not uniform"),
        (Matrix.Diagonal((-1, 1, 1, 1)), "mirror"),
        (Matrix.Diagonal((0, 0, 0, 1)), "zero"),
    ],
)
def test_what_is_no_similarity_is_refused_in_words(swing, cli, tmp_path, capsys, matrix, words):
    swing.matrix_world = matrix
    if words == "zero":
        swing.scale = (0, 0, 0)
    bpy.context.view_layer.update()
    assert cli.main(["export", "--out", str(tmp_path / "ply")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "ply").exists()


@pytest.mark.parametrize("coefficients", [4, 9, 16])
def test_view_dependent_colour_turns_with_the_object(
    empty_scene, formats, cli, tmp_path, coefficients
):
    sh = importlib.import_module("viewtime_formats.sh")
    with formats.SequenceWriter(
        tmp_path / "s", times=1, fps=24.0, frame_start=1, frame_step=1
    ) as writer:
        writer.write_step(0, gaussians(formats, 3, 0, coefficients))
    bpy.ops.viewtime.import_sequence(directory=str(tmp_path / "s"))
    ob = bpy.context.object
    ob.rotation_mode = "QUATERNION"
    ob.rotation_quaternion = Quaternion((1.0, -2.0, 0.5), 1.1)
    assert cli.main(["export", "--out", str(tmp_path / "a")]) == 0
    read = formats.read_ply(tmp_path / "a" / "s.0001.ply")
    # Seen along d from outside, the turned splat shows what the first showed along turn^-1 d.
    turn = np.array(ob.rotation_quaternion.to_matrix(), np.float64)
    d = np.random.default_rng(5).normal(size=(20, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    degree = int(coefficients**0.5) - 1
    old = gaussians(formats, 3, 0, coefficients).sh
    before = np.einsum("mk,nkc->nmc", sh.sh_basis(d @ turn, degree), old)
    after = np.einsum("mk,nkc->nmc", sh.sh_basis(d, degree), read.sh)
    assert np.allclose(after, before, atol=1e-5)
    assert not np.allclose(read.sh, old, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export"], "--out"),
        (["export", "--out", "OUT", "--frames", "a:b"], "A:B"),
        (["export", "--out", "OUT", "--frames", "5:3"], "end before"),
        (["export", "--out", "OUT", "--object", "nobody"], "swing"),
        (["export", "--out", "OUT", "--object", "Camera"], "no splat sequence"),
        (["export", "--out", "FILE"], "cannot be written"),
        (["bake"], "bake"),
        ([], "command"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(
    swing, cli, tmp_path, capsys, arguments, words
):
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    bpy.context.scene.collection.objects.link(camera)
    (tmp_path / "file").write_text("")
    places = {"OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "file" / "x")}
    assert cli.main([places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_step_in_the_middle_leaves_no_file_at_all(swing, cli, tmp_path, capsys):
    path = tmp_path / "swing" / "step.0002.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    out = tmp_path / "ply"
    assert cli.main(["export", "--out", str(out)]) == 2
    assert str(path) in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    assert cli.main(["export", "--out", str(out)]) == 2
    assert names(out) == ["mine.txt"]


def test_a_running_job_is_not_exported_as_if_it_were_done(
    empty_scene, formats, cli, tmp_path, capsys
):
    writer = formats.SequenceWriter(tmp_path / "s", times=3, fps=24.0, frame_start=1, frame_step=1)
    writer.write_step(0, gaussians(formats, 3, 0))
    bpy.ops.viewtime.import_sequence(directory=str(tmp_path / "s"))
    assert cli.main(["export", "--out", str(tmp_path / "ply")]) == 2
    assert "frame 2 (step 1) is not written yet" in capsys.readouterr().err
    assert cli.main(["export", "--out", str(tmp_path / "ply"), "--frames", "1:1"]) == 0


def test_several_sequences_need_a_name(swing, formats, cli, tmp_path, capsys):
    with formats.SequenceWriter(
        tmp_path / "b", times=1, fps=24.0, frame_start=1, frame_step=1
    ) as writer:
        writer.write_step(0, gaussians(formats, 3, 0))
    bpy.ops.viewtime.import_sequence(directory=str(tmp_path / "b"))
    assert cli.main(["export", "--out", str(tmp_path / "ply")]) == 2
    assert "b, swing" in capsys.readouterr().err


def test_a_saved_scene_is_exported_after_reopening(swing, formats, cli, tmp_path):
    """What a farm does: open the .blend, run the command."""
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "scene.blend"))
    assert cli.main(["export", "--out", str(tmp_path / "ply"), "--frames", "3:3"]) == 0
    read = formats.read_ply(tmp_path / "ply" / "swing.0003.ply")
    assert np.array_equal(read.means, gaussians(formats, 5, 0).means)


def test_the_operator_exports_the_active_sequence_and_says_what_is_wrong(swing, tmp_path):
    out = tmp_path / "ply"
    assert bpy.ops.viewtime.export_ply(directory=str(out)) == {"FINISHED"}
    assert len(names(out)) == 7
    swing.scale.x = 3
    with pytest.raises(RuntimeError, match="not uniform"):
        bpy.ops.viewtime.export_ply(directory=str(out))


def test_an_add_on_enabled_on_an_open_file_exports_it_all_the_same(swing, viewtime, tmp_path):
    """A farm opens the .blend first and enables the add-on then, while Blender hides the file."""
    import addon_utils

    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
    addon_utils.disable(viewtime)
    try:
        bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "shot.blend"))
    finally:
        assert addon_utils.enable(viewtime) is not None
    cli = importlib.import_module(f"{viewtime}.cli")
    assert cli.export(["--out", str(tmp_path / "ply")]) == 0
    assert list((tmp_path / "ply").glob("*.ply"))
