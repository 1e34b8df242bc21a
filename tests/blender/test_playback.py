# SPDX-License-Identifier: GPL-3.0-or-later
"""Sequences on the timeline: import, frame mapping, files that move, files that are damaged.
It never looks at pictures (test_display does)."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import bpy
import numpy as np
import pytest


@pytest.fixture
def formats(viewtime: str):
    """viewtime_formats as the extension's wheel brought it."""
    return importlib.import_module("viewtime_formats")


def gaussians(formats, count: int, seed: int, coefficients: int = 1):
    rng = np.random.default_rng(seed)
    rotations = rng.normal(size=(count, 4))
    return formats.Gaussians(
        means=rng.normal(size=(count, 3)).astype(np.float32),
        scales=rng.uniform(0.01, 0.1, (count, 3)).astype(np.float32),
        rotations=(rotations / np.linalg.norm(rotations, axis=1)[:, None]).astype(np.float32),
        opacities=rng.uniform(0.1, 1, count).astype(np.float32),
        sh=rng.normal(size=(count, coefficients, 3)).astype(np.float32),
    )


def write_sequence(
    formats,
    folder: Path,
    counts,
    *,
    times=None,
    frame_start=1,
    frame_step=1,
    seed=0,
    coefficients=1,
    order=None,
):
    """A sequence whose step i holds gaussians(counts[i], seed + i)."""
    times = times or len(counts)
    with formats.SequenceWriter(
        folder, times=times, fps=24.0, frame_start=frame_start, frame_step=frame_step
    ) as writer:
        for step in order or range(len(counts)):
            writer.write_step(step, gaussians(formats, counts[step], seed + step, coefficients))
    return folder


def import_sequence(folder: Path) -> bpy.types.Object:
    assert bpy.ops.viewtime.import_sequence(directory=str(folder)) == {"FINISHED"}
    return bpy.context.object


def positions(ob: bpy.types.Object) -> np.ndarray:
    return attribute(ob, "position", "vector", 3)


def attribute(ob: bpy.types.Object, name: str, field: str, width: int) -> np.ndarray:
    values = np.empty(len(ob.data.points) * width, np.float32)
    ob.data.attributes[name].data.foreach_get(field, values)
    return values.reshape(-1, width)


def message(viewtime: str, ob: bpy.types.Object) -> str:
    return importlib.import_module(f"{viewtime}.playback").message(ob)


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


def test_saved_files_are_small_and_find_their_sequence_after_save_as_and_move(
    empty_scene, formats, tmp_path, viewtime
):
    source = write_sequence(formats, tmp_path / "shot" / "splats", [60_000, 30_000])
    ob = import_sequence(source)
    assert ob.name == "shot"
    assert Path(ob.viewtime.folder) == source, "unsaved: absolute"
    first = tmp_path / "shot" / "a.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(first))
    assert ob.viewtime.folder == "//splats"
    assert len(ob.data.points) == 60_000, "saving leaves the open scene as it was"
    assert [cloud.name for cloud in bpy.data.pointclouds] == ["shot"]
    assert first.stat().st_size < 1_500_000, "60,000 splats are 3.4 MB"

    elsewhere = tmp_path / "other" / "deep"
    elsewhere.mkdir(parents=True)
    bpy.ops.wm.save_as_mainfile(filepath=str(elsewhere / "copy.blend"), copy=True)
    assert bpy.context.object.viewtime.folder == "//splats", "Save Copy: the open file stays"
    bpy.ops.wm.save_as_mainfile(filepath=str(elsewhere / "b.blend"))
    for name in ("copy.blend", "b.blend"):
        bpy.ops.wm.open_mainfile(filepath=str(elsewhere / name))
        ob = bpy.data.objects["shot"]
        assert ob.viewtime.folder == "//../../shot/splats"
        assert [cloud.name for cloud in bpy.data.pointclouds] == ["shot"]
        assert np.array_equal(positions(ob), gaussians(formats, 60_000, 0).means)
        bpy.context.scene.frame_set(2)
        assert np.array_equal(positions(ob), gaussians(formats, 30_000, 1).means)

    shutil.move(tmp_path / "shot", tmp_path / "moved")
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "moved" / "a.blend"))
    ob = bpy.data.objects["shot"]
    assert np.array_equal(positions(ob), gaussians(formats, 60_000, 0).means)
    assert message(viewtime, ob) == ""


def test_a_missing_folder_is_a_line_on_the_object_and_the_file_still_opens_and_saves(
    empty_scene, formats, tmp_path, viewtime
):
    ob = import_sequence(write_sequence(formats, tmp_path / "s", [3, 4]))
    blend = tmp_path / "x.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(blend))
    (tmp_path / "s").rename(tmp_path / "away")
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    ob = bpy.data.objects["s"]
    assert "missing" in message(viewtime, ob) and str(tmp_path / "s") in message(viewtime, ob)
    bpy.context.scene.frame_set(2)
    bpy.ops.wm.save_mainfile()
    assert ob.viewtime.folder == "//s"
    (tmp_path / "away").rename(tmp_path / "s")
    bpy.context.scene.frame_set(1)
    assert (len(ob.data.points), message(viewtime, ob)) == (3, "")


def truncate(folder: Path, step: int) -> Path:
    path = folder / f"step.{step:04d}.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    return path


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


@pytest.mark.parametrize("motion_blur", [False, True])
def test_rendered_frames_show_their_own_step(empty_scene, formats, tmp_path, motion_blur):
    """One opaque splat fills the frame; its red channel is the step. Counts differ per step."""
    folder = tmp_path / "s"
    with formats.SequenceWriter(folder, times=4, fps=24.0, frame_start=1, frame_step=1) as writer:
        for step in range(4):
            count = 1 + step % 2
            one = np.ones((count, 1), np.float32)
            writer.write_step(
                step,
                formats.Gaussians(
                    means=one * np.array([[0, 0, 0]], np.float32),
                    scales=one * np.array([[50, 50, 0.01]], np.float32),
                    rotations=one * np.array([[1, 0, 0, 0]], np.float32),
                    opacities=np.ones(count, np.float32),
                    sh=formats.rgb_to_sh0(one * np.array([[step / 4, 0.5, 0.5]], np.float32))[
                        :, None
                    ],
                ),
            )
    scene = empty_scene
    import_sequence(folder)
    camera = bpy.data.objects.new("c", bpy.data.cameras.new("c"))
    camera.location = (0, 0, 5)
    scene.collection.objects.link(camera)
    scene.camera = camera
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 4
    scene.render.use_motion_blur = motion_blur
    scene.render.resolution_x = scene.render.resolution_y = 8
    scene.view_settings.view_transform = "Standard"
    scene.frame_start, scene.frame_end = 1, 4
    scene.render.filepath = str(tmp_path / "f")
    bpy.ops.render.render(animation=True)
    scene.frame_set(3)
    scene.render.filepath = str(tmp_path / "still0003.png")
    bpy.ops.render.render(write_still=True)
    for name, step in [("f0001", 0), ("f0002", 1), ("f0003", 2), ("f0004", 3), ("still0003", 2)]:
        image = bpy.data.images.load(str(tmp_path / f"{name}.png"))
        red = np.array(image.pixels[:]).reshape(8, 8, 4)[4, 4, 0]
        assert abs(red - step / 4) < 0.01, name


def test_the_evaluated_scene_has_the_splats_of_each_frame(empty_scene, formats, tmp_path):
    """The quads of the modifier stand where the step's Gaussians are."""
    ob = import_sequence(write_sequence(formats, tmp_path / "s", [30, 50, 20]))
    camera = bpy.data.objects.new("c", bpy.data.cameras.new("c"))
    camera.location = (0, 0, 10)
    empty_scene.collection.objects.link(camera)
    empty_scene.camera = camera
    for step, count in enumerate((30, 50, 20)):
        empty_scene.frame_set(1 + step)
        depsgraph = bpy.context.evaluated_depsgraph_get()
        geometry = ob.evaluated_get(depsgraph).evaluated_geometry()  # owns the mesh
        mesh = geometry.mesh
        corners = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", corners)
        centers = corners.reshape(-1, 4, 3).mean(axis=1)
        assert len(centers) == count
        wanted = gaussians(formats, count, step).means
        nearest = np.linalg.norm(centers[:, None] - wanted[None], axis=2).argmin(axis=1)
        assert np.allclose(centers, wanted[nearest], atol=2e-3)
        assert len(set(nearest)) == count


def test_undo_and_redo_keep_frame_and_splats_together(empty_scene, formats, tmp_path):
    ob = import_sequence(write_sequence(formats, tmp_path / "s", [3, 4, 5]))
    name = ob.name
    for frame in (2, 3):
        bpy.context.scene.frame_set(frame)
        bpy.ops.ed.undo_push(message=str(frame))
    bpy.ops.ed.undo()
    assert (bpy.context.scene.frame_current, len(bpy.data.objects[name].data.points)) == (2, 4)
    bpy.ops.ed.redo()
    assert (bpy.context.scene.frame_current, len(bpy.data.objects[name].data.points)) == (3, 5)


@pytest.fixture
def linked(empty_scene, formats, tmp_path) -> bpy.types.Object:
    """A sequence of 3, 4, 5 splats linked from lib/lib.blend into an unsaved file."""
    import_sequence(write_sequence(formats, tmp_path / "lib" / "s", [3, 4, 5]))
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "lib" / "lib.blend"))
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    with bpy.data.libraries.load(str(tmp_path / "lib" / "lib.blend"), link=True) as (_, into):
        into.objects = ["s"]
    bpy.context.scene.collection.objects.link(bpy.data.objects["s"])
    return bpy.data.objects["s"]


def plays(ob: bpy.types.Object, counts: dict[int, int]) -> bool:
    shown = {}
    for frame in counts:
        bpy.context.scene.frame_set(frame)
        shown[frame] = len(ob.data.points)
    return shown == counts


def test_a_linked_sequence_plays_as_it_is(linked, viewtime, tmp_path):
    assert plays(linked, {1: 3, 2: 4, 3: 5}) and message(viewtime, linked) == ""
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
    assert len(linked.data.points) == 5, "saving leaves the open scene as it was"
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "shot.blend"))
    again = bpy.data.objects["s"]
    assert again.library is not None and plays(again, {3: 5, 2: 4})
    assert [cloud.name for cloud in bpy.data.pointclouds if cloud.library is None] == [
        "s (linked)"
    ], "nothing of it came from the file"


def test_a_linked_collection_plays_through_its_instance(empty_scene, formats, tmp_path, viewtime):
    ob = import_sequence(write_sequence(formats, tmp_path / "lib" / "s", [3, 4]))
    group = bpy.data.collections.new("group")
    empty_scene.collection.children.link(group)
    group.objects.link(ob)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "lib" / "lib.blend"))
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    with bpy.data.libraries.load(str(tmp_path / "lib" / "lib.blend"), link=True) as (_, into):
        into.collections = ["group"]
    empty = bpy.data.objects.new("instance", None)
    empty.instance_type, empty.instance_collection = "COLLECTION", bpy.data.collections["group"]
    bpy.context.scene.collection.objects.link(empty)
    bpy.context.scene.frame_set(2)
    depsgraph = bpy.context.evaluated_depsgraph_get()
    instances = {i.parent.name for i in depsgraph.object_instances if i.is_instance}
    assert instances == {"instance"}
    assert len(bpy.data.objects["s"].data.points) == 4


def test_an_override_of_a_linked_sequence_plays_and_keeps_what_is_set_on_it(
    linked, viewtime, tmp_path
):
    override = linked.override_create(remap_local_usages=True)
    assert plays(override, {1: 3, 2: 4, 3: 5}) and message(viewtime, override) == ""
    override.viewtime.offset = 1
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "shot.blend"))
    reopened = next(ob for ob in bpy.data.objects if ob.library is None and ob.type == "POINTCLOUD")
    assert reopened.viewtime.offset == 1
    assert plays(reopened, {2: 3, 3: 4, 4: 5}) and message(viewtime, reopened) == ""


def test_a_linked_sequence_made_local_is_found_beside_its_library(linked, viewtime, tmp_path):
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
    bpy.data.objects["s"].make_local()
    local = next(ob for ob in bpy.data.objects if ob.library is None and ob.type == "POINTCLOUD")
    assert plays(local, {1: 3, 2: 4}) and message(viewtime, local) == ""
    assert local.viewtime.folder == "//lib/s"


def test_an_appended_sequence_keeps_its_folder(empty_scene, formats, tmp_path, viewtime):
    import_sequence(write_sequence(formats, tmp_path / "lib" / "s", [3, 4]))
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "lib" / "lib.blend"))
    library = str(tmp_path / "lib" / "lib.blend")
    for saved in (False, True):
        bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
        if saved:
            bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
        bpy.ops.wm.append(
            filepath=f"{library}/Object/s", directory=f"{library}/Object/", filename="s"
        )
        ob = bpy.data.objects["s"]
        assert ob.library is None and plays(ob, {1: 3, 2: 4}) and message(viewtime, ob) == ""
        assert ob.viewtime.folder == ("//lib/s" if saved else str(tmp_path / "lib" / "s"))
