# SPDX-License-Identifier: GPL-3.0-or-later
"""The training renderer writes whole scenes that the backend's reader takes, and goes on where it
was stopped. Renders a few cells of 32 pixels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bpy
import numpy as np
import pytest
from mathutils import Vector

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import dataset_scenes  # noqa: E402
import render_dataset  # noqa: E402

READ_BACK = """
import sys, json, numpy as np
from viewtime.convert import reprojection_agreement
from viewtime.data.readers import detect_layout, read_scene
grid, rig = read_scene(sys.argv[1], height=32, width=32)
near = np.where(grid.depth[:, 0] < 1e9, grid.depth[:, 0], np.nan)
print(json.dumps([detect_layout(sys.argv[1]), list(grid.frames.shape), float(near[0, 16, 16]),
    rig.cameras[0].center.tolist(), reprojection_agreement(rig, near, 1)[0]]))
"""


def render(out: Path, *more: str) -> int:
    tiny = ["--views", "2", "--frames", "2", "--size", "32", "32", "--samples", "1"]
    return render_dataset.main(["--out", str(out), *tiny, *more])


def pixels(path: Path) -> np.ndarray:
    """(H, W, 4) stored values in [0, 1], top row first."""
    image = bpy.data.images.load(str(path))
    image.colorspace_settings.name = "Non-Color"
    width, height = image.size
    values = np.array(image.pixels[:]).reshape(height, width, 4)[::-1]
    bpy.data.images.remove(image)
    return values


def test_thrown_toys_are_rendered_once_and_read_by_the_backend(viewtime, tmp_path, backend_python):
    assert render(tmp_path, "--scenes", "1", "--depth") == 0
    scene = tmp_path / "scene_000000"
    about = json.loads((scene / "transforms.json").read_text())
    cells = [(frame["view"], frame["time"]) for frame in about["frames"]]
    assert sorted(cells) == [(f"view_{v:03d}", t) for v in range(2) for t in range(2)]
    answer = subprocess.run(
        [str(backend_python), "-c", READ_BACK, str(scene)], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    layout, shape, middle, centre, agreement = json.loads(answer.stdout)
    assert layout == "transforms" and shape == [2, 2, 3, 32, 32]
    pose = np.array(about["frames"][0]["transform_matrix"])
    np.testing.assert_allclose(centre, pose[:3, 3], atol=1e-5)
    # Depth maps of two views agree only if poses, intrinsics and depth are what the file says:
    # wrong conventions stay below 0.05.
    assert 1.0 < middle < 30.0 and agreement > 0.3

    before = (scene / "transforms.json").stat().st_mtime_ns
    (tmp_path / ".scene_000001.1.part").mkdir()  # what a killed run leaves is no scene
    assert render(tmp_path, "--scenes", "2") == 0
    assert (scene / "transforms.json").stat().st_mtime_ns == before
    assert (tmp_path / "scene_000001" / "view_001" / "0001.png").is_file()


def test_toys_fall_to_the_floor_and_are_thrown_alike_by_one_seed(viewtime):
    stage = dataset_scenes.physics_stage(4, 24)
    toys = [ob for ob in bpy.context.scene.objects if ob.name.startswith("Toy")]
    heights, places = [], []
    for t in (0, 2, 8, 23):
        stage.pose(t)
        places.append([toy.matrix_world.translation.copy() for toy in toys])
        heights.append(np.mean([place.z for place in places[-1]]))
    assert len(toys) >= 5 and heights[0] > heights[1] > heights[2] + 0.05
    lowest = min((toy.matrix_world @ vertex.co).z for toy in toys for vertex in toy.data.vertices)
    assert -0.05 < lowest < 0.1  # some lie on the floor, none has sunk into it
    # Before they meet. What follows a collision differs a little from run to run, as Bullet does.
    dataset_scenes.physics_stage(4, 24).pose(2)
    again = [ob for ob in bpy.context.scene.objects if ob.name.startswith("Toy")]
    for toy, place in zip(again, places[1], strict=True):
        assert (toy.matrix_world.translation - place).length < 1e-4


@pytest.fixture
def asset(viewtime, tmp_path) -> Path:
    """A .glb of a block, far from the origin and large, that turns a quarter in a second."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    bpy.ops.preferences.addon_enable(module="io_scene_gltf2")
    bpy.ops.mesh.primitive_cube_add(size=6, location=(30, -20, 50), scale=(1, 0.2, 0.2))
    block = bpy.context.object
    block.keyframe_insert("rotation_euler", frame=1)
    block.rotation_euler[2] = np.pi / 2
    block.keyframe_insert("rotation_euler", frame=25)
    folder = tmp_path / "assets"
    folder.mkdir()
    bpy.ops.export_scene.gltf(filepath=str(folder / "block.glb"))
    return folder


def test_an_asset_is_centred_clear_and_moves_by_its_animation(asset, tmp_path):
    out = tmp_path / "out"
    assert render(out, "--assets", str(asset)) == 0
    pictures = {(v, t): pixels(out / f"scene_000000/view_{v:03d}/{t:04d}.png")
                for v in range(2) for t in range(2)}  # fmt: skip
    for picture in pictures.values():
        assert 10 < (picture[..., 3] > 0.5).sum() < 600  # neither nothing nor everything
        assert picture[15:17, 15:17, 3].min() > 0.5  # the block's middle is the picture's
    for v in range(2):
        assert np.abs(pictures[v, 0][..., 3] - pictures[v, 1][..., 3]).sum() > 20
    for camera in [ob for ob in bpy.context.scene.objects if ob.type == "CAMERA"]:
        ahead = camera.matrix_world.to_3x3() @ Vector((0, 0, -1))
        to_centre = -camera.matrix_world.translation.normalized()
        assert ahead.dot(to_centre) > 1 - 1e-6


def test_a_broken_asset_is_left_out_and_the_rest_is_rendered(asset, tmp_path, capfd):
    (asset / "a_broken.glb").write_bytes(b"glTF but not really")
    out = tmp_path / "out"
    assert render(out, "--assets", str(asset), "--scenes", "2") == 0
    assert [path.name for path in out.iterdir()] == ["scene_000001"]
    assert "scene 0: left out" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        render(out, "--scenes", "0")
