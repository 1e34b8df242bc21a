# SPDX-License-Identifier: GPL-3.0-or-later
"""The sidebar: its order, what each step says is missing, and that it only draws.
Pictures of it are looked at by people (docs/sidebar.png); background Blender draws no panels."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import bpy
import pytest

PYTHON = __file__  # any file that exists
# Names under which a panel has data in its hands; other local names are layouts and buttons.
DATA = {"scene", "settings", "ob", "context", "camera", "item", "space", "self", "data", "region"}


@pytest.fixture(scope="module")
def readiness(viewtime: str) -> ModuleType:
    return importlib.import_module(f"{viewtime}.readiness")


@pytest.fixture(scope="module")
def panels(viewtime: str) -> ModuleType:
    return importlib.import_module(f"{viewtime}.panels")


def panels_source(panels: ModuleType) -> ast.Module:
    """All modules of the package as one tree."""
    files = sorted(Path(panels.__file__).parent.glob("*.py"))
    return ast.parse(
        "\n".join(
            file.read_text().replace("from __future__ import annotations", "") for file in files
        )
    )


@pytest.fixture
def staged(empty_scene: bpy.types.Scene, tmp_path: Path) -> bpy.types.Scene:
    """A scene with an active camera, two rig cameras, and absolute folders."""
    for name in ("main", "left", "right"):
        camera = bpy.data.objects.new(name, bpy.data.cameras.new(name))
        empty_scene.collection.objects.link(camera)
        if name == "main":
            empty_scene.camera = camera
        else:
            empty_scene.viewtime.rig.add().camera = camera
    empty_scene.viewtime.capture_folder = str(tmp_path / "capture")
    empty_scene.viewtime.output_folder = str(tmp_path / "out")
    return empty_scene


def test_the_tab_leads_from_rig_to_export(panels: ModuleType) -> None:
    registered = sorted(
        (
            cls
            for cls in bpy.types.Panel.__subclasses__()
            if cls in panels.CLASSES and not hasattr(cls, "bl_parent_id")
        ),
        key=lambda cls: cls.bl_order,
    )
    assert [cls.bl_label for cls in registered] == [
        "Rig",
        "Reference",
        "Generate",
        "Result",
        "Export",
    ]
    assert {cls.bl_category for cls in registered} == {"Viewtime"}


def test_panels_call_no_operator_and_write_to_no_data(panels: ModuleType) -> None:
    tree = panels_source(panels)
    assert "bpy.ops" not in ast.unparse(tree) and "bpy.data" not in ast.unparse(tree)
    written = [
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for outer in node.targets
        for target in ast.walk(outer)
        if isinstance(target, ast.Attribute)
    ]
    # What a button carries and how things are laid out; never a setting or an object.
    for target in written:
        owner = target.rpartition(".")[0]
        drawn = owner.isidentifier() and owner not in DATA
        assert drawn or ".operator(" in owner, target


def test_every_button_names_an_operator_and_its_properties(panels: ModuleType) -> None:
    tree = panels_source(panels)
    buttons = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and str(node.value).startswith("viewtime.")
    }
    assert {"viewtime.rig_arc", "viewtime.capture", "viewtime.generate"} <= buttons
    for name in buttons:
        operator = getattr(bpy.ops.viewtime, name.removeprefix("viewtime."))
        assert operator.get_rna_type().description, f"{name} has no tooltip"
    capture = bpy.ops.viewtime.capture.get_rna_type().properties
    assert {"what", "folder", "frame_start", "frame_end", "times", "freeze_time"} <= set(
        capture.keys()
    )


def test_a_scene_without_cameras_is_told_to_add_one(readiness, empty_scene) -> None:
    for missing in (readiness.missing_for_rig, readiness.missing_for_capture):
        assert missing(empty_scene) == "Add a camera and make it the scene's active camera"


def test_a_capture_wants_a_rig_that_is_still_there(readiness, staged) -> None:
    assert readiness.missing_for_capture(staged) is None
    bpy.data.objects.remove(bpy.data.objects["right"])
    assert "Camera 1 of the rig is gone" in readiness.missing_for_capture(staged)
    staged.viewtime.rig.clear()
    assert "There is no rig" in readiness.missing_for_capture(staged)


def test_a_capture_wants_times_that_fit_the_timeline(readiness, staged) -> None:
    staged.frame_start, staged.frame_end, staged.viewtime.times = 1, 8, 9
    assert "9 times do not fit: choose 5" in readiness.missing_for_capture(staged)
    staged.viewtime.times = 8
    assert "choose 5 or 9" in readiness.missing_for_capture(staged)
    # A moment left over from more times is the last of those that there are, as the panel says.
    staged.frame_end, staged.viewtime.times, staged.viewtime.freeze_time = 9, 9, 12
    assert readiness.missing_for_capture(staged) is None
    assert staged.viewtime.freeze_frame == 9
    assert "1 cameras at frame 9" in " ".join(readiness.capture_outlook(staged).lines)


def test_a_capture_takes_the_part_of_the_timeline_that_divides(readiness, staged) -> None:
    staged.frame_start, staged.frame_end, staged.viewtime.times = 1, 250, 9
    plan = readiness.capture_outlook(staged).plan
    assert (plan.start, plan.end, plan.step) == (1, 249, 31)
    assert str(plan) == "9 times from frames 1 to 249, every 31"
    assert readiness.missing_for_capture(staged) is None


def test_a_finished_capture_is_not_captured_over(readiness, staged, tmp_path) -> None:
    (tmp_path / "capture").mkdir()
    (tmp_path / "capture" / "capture.json").write_text("{}")
    assert "choose another folder" in readiness.missing_for_capture(staged)


@pytest.mark.parametrize("folder", ["capture_folder", "output_folder"])
def test_an_unsaved_file_has_no_relative_folders(readiness, staged, folder, tmp_path) -> None:
    setattr(staged.viewtime, folder, "//somewhere")
    assert "Save the .blend first" in readiness.missing_for_generate(staged, PYTHON)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
    assert "Save the .blend" not in readiness.missing_for_generate(bpy.context.scene, PYTHON)


def test_generate_says_what_is_missing_in_the_order_of_work(readiness, staged, tmp_path) -> None:
    settings = staged.viewtime
    assert "capture the scene first" in readiness.missing_for_generate(staged, PYTHON)
    (tmp_path / "capture").mkdir()
    (tmp_path / "capture" / "capture.json").write_text("{}")
    assert "preferences" in readiness.missing_for_generate(staged, "")
    assert readiness.missing_for_generate(staged, "", announced=True) is None
    assert "/nowhere/python" in readiness.missing_for_generate(staged, "/nowhere/python")
    assert readiness.missing_for_generate(staged, PYTHON) is None
    settings.output_folder = str(tmp_path / "capture" / "out")
    assert "outside the capture folder" in readiness.missing_for_generate(staged, PYTHON)
    settings.output_folder = ""
    assert readiness.missing_for_generate(staged, PYTHON) == "Choose the output folder"


def test_result_and_export_wait_for_a_sequence(readiness, staged, tmp_path) -> None:
    assert "Generate first" in readiness.missing_for_result(staged)
    (tmp_path / "out" / "splats").mkdir(parents=True)
    (tmp_path / "out" / "splats" / "sequence.json").write_text("{}")
    assert readiness.missing_for_result(staged) is None
    camera = staged.camera
    assert "Import a splat sequence first" == readiness.missing_for_export(staged, camera)
    bpy.data.objects["left"].viewtime.sequence_id = "0" * 32
    assert "Select the object" in readiness.missing_for_export(staged, camera)
    assert readiness.missing_for_export(staged, bpy.data.objects["left"]) is None


def test_remaining_time_is_said_in_words_for_people(panels: ModuleType) -> None:
    duration = importlib.import_module(f"{panels.__name__}.layout").duration
    assert [duration(s) for s in (0.2, 42, 100, 5000, 9000)] == [
        "about 1 s",
        "about 42 s",
        "about 2 min",
        "about 83 min",
        "about 2.5 h",
    ]
