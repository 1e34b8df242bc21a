# SPDX-License-Identifier: GPL-3.0-or-later
"""Sequences and files: saved, moved, lost and found, linked, overridden, appended.
The splats never go into a .blend; every test opens what it saved."""

from __future__ import annotations

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
