# SPDX-License-Identifier: GPL-3.0-or-later
"""Sequences and files: saved, moved, lost and found, linked, overridden, appended.
The splats never go into a .blend; every test opens what it saved."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import bpy
import numpy as np
import pytest
from splats import gaussians, import_sequence, message, plays, positions, write_sequence


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


def reopened(tmp_path: Path, folder: str = "") -> bpy.types.Object:
    """Save as x.blend, move the sequence's folder away, and open the file again."""
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "x.blend"))
    if folder:
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s").rename(tmp_path / folder)
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "x.blend"))
    return bpy.data.objects["s"]


def test_a_moved_sequence_is_found_by_its_identity(empty_scene, formats, tmp_path, viewtime):
    write_sequence(formats, tmp_path / "decoy", [9, 9])
    twin = import_sequence(write_sequence(formats, tmp_path / "s", [3, 4])).copy()
    empty_scene.collection.objects.link(twin)
    ob = reopened(tmp_path, "renders/final/splats")
    assert "missing" in message(viewtime, ob)
    bpy.context.view_layer.objects.active = ob
    assert bpy.ops.viewtime.relink_sequence(nearby=True) == {"FINISHED"}
    for each in (ob, bpy.data.objects["s.001"]):
        assert each.viewtime.folder == "//renders/final/splats"
        assert message(viewtime, each) == ""
    assert plays(ob, {1: 3, 2: 4})


def test_a_person_may_point_at_the_folder_or_above_it_or_at_another_sequence(
    empty_scene, formats, tmp_path, viewtime
):
    identity = import_sequence(write_sequence(formats, tmp_path / "s", [3])).viewtime.sequence_id
    ob = reopened(tmp_path, "a/b/c")
    for chosen in ("a/b/c", "a/b/c/sequence.json", "a"):
        ob.viewtime.folder = "//nowhere"
        bpy.ops.viewtime.relink_sequence(object_name="s", directory=str(tmp_path / chosen))
        assert ob.viewtime.folder == "//a/b/c" and message(viewtime, ob) == ""
    write_sequence(formats, tmp_path / "other" / "splats", [7])
    bpy.ops.viewtime.relink_sequence(directory=str(tmp_path / "other"))
    assert len(ob.data.points) == 7 and message(viewtime, ob) == ""
    assert ob.viewtime.sequence_id != identity


def test_relinking_says_in_one_line_what_it_cannot_do(empty_scene, formats, tmp_path, viewtime):
    import_sequence(write_sequence(formats, tmp_path / "s", [3]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "sequence.json").write_text("[" * 100_000)
    ob = reopened(tmp_path)
    shutil.rmtree(tmp_path / "s")
    bpy.context.scene.frame_set(2)
    for arguments, wanted in [
        ({"nearby": True}, "not near"),
        ({"directory": str(tmp_path / "empty")}, "sequence.json"),
        ({}, "Choose the folder"),
        ({"object_name": "Ghost", "nearby": True}, "no splat sequence of this name"),
    ]:
        with pytest.raises(RuntimeError, match=wanted) as refused:
            bpy.ops.viewtime.relink_sequence(**arguments)
        assert str(refused.value).strip().count("\n") == 0
    assert ob.viewtime.folder == "//s" and len(ob.data.points) == 3, "the last good splats stay"


def test_operators_without_a_sequence_say_so(empty_scene):
    for operator in (bpy.ops.viewtime.relink_sequence, bpy.ops.viewtime.make_native_sequence):
        assert not operator.poll()
        with pytest.raises(RuntimeError, match="Import a splat sequence first"):
            operator()


def test_dropping_the_index_of_a_sequence_imports_it(empty_scene, formats, tmp_path):
    folder = write_sequence(formats, tmp_path / "s", [3])
    dropped = bpy.ops.wm.drop_import_file(
        "EXEC_DEFAULT", directory=str(folder), files=[{"name": "sequence.json"}]
    )
    assert dropped == {"FINISHED"}
    assert len(bpy.data.objects["s"].data.points) == 3
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(RuntimeError, match="not a splat sequence"):
        bpy.ops.viewtime.import_sequence(
            "INVOKE_DEFAULT", directory=str(tmp_path), filepath=str(tmp_path / "other.json")
        )


@pytest.mark.parametrize("chosen", ["run/splats", "run", "run/splats/sequence.json"])
def test_a_run_its_splats_and_their_index_mean_the_same(empty_scene, formats, tmp_path, chosen):
    write_sequence(formats, tmp_path / "run" / "splats", [3])
    key = "filepath" if chosen.endswith("json") else "directory"
    bpy.ops.viewtime.import_sequence(**{key: str(tmp_path / chosen)})
    (ob,) = bpy.data.objects
    assert (ob.name, Path(ob.viewtime.folder)) == ("run", tmp_path / "run" / "splats")


def test_import_and_make_native_are_one_step_of_undo_each(empty_scene, formats, tmp_path):
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "x.blend"))
    write_sequence(formats, tmp_path / "s", [3])
    bpy.ops.ed.undo_push(message="before")
    bpy.ops.viewtime.import_sequence("EXEC_DEFAULT", True, directory=str(tmp_path / "s"))
    bpy.ops.viewtime.make_native_sequence("EXEC_DEFAULT", True)
    assert {ob.name for ob in bpy.data.objects} == {"s", "s native"}
    bpy.ops.ed.undo()
    assert {ob.name for ob in bpy.data.objects} == {"s"}
    assert not bpy.data.objects["s"].hide_render
    bpy.ops.ed.undo()
    assert not bpy.data.objects


def test_steps_appear_while_a_job_writes_them(empty_scene, formats, tmp_path, viewtime):
    """What the session does whenever the job reports a step."""
    playback = importlib.import_module(f"{viewtime}.playback")
    with formats.SequenceWriter(
        tmp_path / "s", times=3, fps=24.0, frame_start=1, frame_step=1
    ) as writer:
        writer.write_step(0, gaussians(formats, 3, 0))
        empty_scene.frame_set(3)
        ob = import_sequence(tmp_path / "s")
        for step, count in [(1, 4), (2, 5)]:
            writer.write_step(step, gaussians(formats, count, step))
            playback.refresh_all()
            assert len(ob.data.points) == count
