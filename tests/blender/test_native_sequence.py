# SPDX-License-Identifier: GPL-3.0-or-later
"""Make Native Sequence: what it makes plays in a Blender that has never heard of Viewtime.
Frames, counts and positions are told by another process, never by the one under test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bpy
import numpy as np
import pytest
from splats import gaussians, import_sequence, write_sequence

COUNTS = [3, 5, 4, 6]

# Runs in a fresh Blender: opens argv[1], goes to the frames argv[2], and says what is there.
ELSEWHERE = """
import json, os, sys
import bpy
import numpy as np

bpy.ops.wm.open_mainfile(filepath=sys.argv[1])
assert not hasattr(bpy.types.Object, "viewtime"), "the add-on is here"
scene = bpy.context.scene
ob = next(ob for ob in scene.objects if ob.type == "POINTCLOUD" and not ob.hide_render)
quads = next(m for m in ob.modifiers if m.name != "Viewtime Sequence")

def read(data, name, field, width):
    values = np.empty(len(data.attributes[name].data) * width, np.float32)
    data.attributes[name].data.foreach_get(field, values)
    return values.reshape(-1, width).tolist()

told = {}
for frame in json.loads(sys.argv[2]):
    scene.frame_set(int(frame), subframe=frame % 1)
    told[frame] = {}
    for points in (False, True):
        quads.show_viewport = not points
        geometry = ob.evaluated_get(bpy.context.evaluated_depsgraph_get()).evaluated_geometry()
        if points:
            cloud = geometry.pointcloud
            names = [a.name for a in cloud.attributes if not a.name.startswith(".")]
            told[frame]["names"] = sorted(names)
            for name, field, width in [("position", "vector", 3), ("scale", "vector", 3),
                    ("rotation", "value", 4), ("radiance:base", "color", 4)]:
                told[frame][name] = read(cloud, name, field, width)
            for name in names:
                if name.startswith("radiance:sh_"):
                    told[frame][name] = read(cloud, name, "vector", 3)
        else:
            told[frame]["quads"] = len(geometry.mesh.polygons)
scene.frame_set(int(sys.argv[3]))
scene.render.filepath = sys.argv[4]
bpy.ops.render.render(write_still=True)
print("TOLD" + json.dumps(told))
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture
def told(tmp_path):
    """Ask a Blender without the add-on what a file shows: {frame: {attribute: values}}."""

    def ask(blend: Path, frames: list[float], render: int) -> dict[float, dict]:
        environment = {**os.environ, "BLENDER_USER_RESOURCES": str(tmp_path / "nobody")}
        answer = subprocess.run(
            [
                sys.executable, "-c", ELSEWHERE, str(blend), json.dumps(frames), str(render),
                str(tmp_path / "elsewhere.png"),
            ],
            capture_output=True, text=True, env=environment, timeout=300,
        )  # fmt: skip
        (line,) = [x for x in answer.stdout.splitlines() if x.startswith("TOLD")] or [answer.stderr]
        assert line.startswith("TOLD"), line
        return {float(frame): what for frame, what in json.loads(line[4:]).items()}

    return ask


@pytest.fixture
def stage(empty_scene, tmp_path) -> bpy.types.Scene:
    """A saved file with a camera that sees the unit ball, ready for tiny renders."""
    camera = bpy.data.objects.new("c", bpy.data.cameras.new("c"))
    camera.location, camera.data.lens = (0, 0, 12), 150
    empty_scene.collection.objects.link(camera)
    empty_scene.camera = camera
    empty_scene.render.engine = "CYCLES"
    empty_scene.cycles.samples = 4
    empty_scene.render.resolution_x = empty_scene.render.resolution_y = 16
    empty_scene.frame_start, empty_scene.frame_end = 1, 30
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
    return bpy.context.scene


def saved_elsewhere(tmp_path: Path) -> Path:
    """Save, move the whole project, and forget the sequence: the farm has neither."""
    bpy.ops.wm.save_mainfile()
    farm = tmp_path / "farm"
    farm.mkdir()
    (tmp_path / "shot.blend").rename(farm / "shot.blend")
    (tmp_path / "s_ply").rename(farm / "s_ply")
    (tmp_path / "s").rename(tmp_path / "gone")
    return farm / "shot.blend"


def pixels(path: Path) -> np.ndarray:
    image = bpy.data.images.load(str(path))
    return np.array(image.pixels[:]).reshape(16, 16, 4)


def test_it_plays_without_the_add_on_with_the_same_splats_at_every_frame(
    stage, formats, tmp_path, told
):
    ob = import_sequence(
        write_sequence(
            formats, tmp_path / "s", COUNTS, frame_start=10, frame_step=2, coefficients=4
        )
    )
    ob.viewtime.offset, ob.viewtime.speed, ob.viewtime.loop = 3, 0.5, "LOOP"
    ob.location = (0.1, 0.2, 0.3)
    frames = [1, 12, 13, 16, 17, 20.5, 21, 25, 28, 29, 30]
    wanted, shown = {}, {}
    for frame in frames:
        stage.frame_set(int(frame), subframe=frame % 1)
        step = {3: 0, 5: 1, 4: 2, 6: 3}[len(ob.data.points)]
        wanted[frame] = gaussians(formats, COUNTS[step], step, 4)
        shown[frame] = step
    assert [shown[f] for f in (12, 13, 17, 20.5, 28, 29)] == [3, 0, 1, 1, 3, 0]
    stage.frame_set(17)
    stage.render.filepath = str(tmp_path / "here.png")
    bpy.ops.render.render(write_still=True)

    assert bpy.ops.viewtime.make_native_sequence() == {"FINISHED"}
    native = bpy.context.object
    assert native.name == "s native" and ob.hide_render and not native.hide_render
    heard = told(saved_elsewhere(tmp_path), frames, 17)
    for frame in frames:
        what, splats = heard[frame], wanted[frame]
        assert what["names"] == sorted(
            ["position", "scale", "rotation", "radiance:base", "radius"]
            + [f"radiance:sh_{k}" for k in range(3)]
        )
        assert np.array_equal(np.float32(what["position"]), splats.means), frame
        assert np.allclose(what["scale"], splats.scales, rtol=1e-5)
        assert np.allclose(
            what["radiance:base"], np.c_[splats.sh[:, 0], splats.opacities], atol=2e-6
        )
        turns = np.abs(np.einsum("nk,nk->n", what["rotation"], splats.rotations))
        assert np.allclose(turns, 1.0, atol=1e-5)
        assert np.allclose(what["radiance:sh_2"], splats.sh[:, 3], atol=1e-6)
        assert what["quads"] == len(splats)
    here, there = pixels(tmp_path / "here.png"), pixels(tmp_path / "elsewhere.png")
    assert here[..., :3].max() > 0.05, "something is seen"
    # Cycles' noise is the same for the same seed; depth jitter may differ by a hair.
    assert np.abs(here - there).max() < 0.02


def test_a_keyframed_time_is_sampled_into_keys(stage, formats, tmp_path, told):
    ob = import_sequence(write_sequence(formats, tmp_path / "s", COUNTS))
    ob.viewtime.use_time = True
    for frame, time in [(1, 3.0), (7, 0.0), (8, 2.0)]:
        ob.viewtime.time = time
        ob.viewtime.keyframe_insert("time", frame=frame)
    ob.keyframe_insert("location", frame=1)
    shown = {}
    for frame in (1, 3, 5, 7, 8, 30):
        stage.frame_set(frame)
        shown[frame] = len(ob.data.points)
    assert shown[1] == 6 and shown[7] == 3 and shown[8] == shown[30] == 4
    assert len(set(shown.values())) >= 3
    stage.frame_set(4)
    bpy.ops.viewtime.make_native_sequence()
    assert stage.frame_current == 4
    assert ob.animation_data.action is not bpy.context.object.animation_data.action
    heard = told(saved_elsewhere(tmp_path), list(shown), 1)
    assert {frame: what["quads"] for frame, what in heard.items()} == shown


def test_it_says_what_is_missing_before_it_begins(empty_scene, formats, tmp_path):
    import_sequence(write_sequence(formats, tmp_path / "s", [3], times=2))
    for wanted in ("Save the .blend first", "step 1 of 2 is not written"):
        with pytest.raises(RuntimeError, match=wanted):
            bpy.ops.viewtime.make_native_sequence()
        assert len(bpy.data.objects) == 1
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))


def test_what_it_writes_are_plain_3dgs_files(stage, formats, tmp_path):
    import_sequence(write_sequence(formats, tmp_path / "s", COUNTS))
    bpy.ops.viewtime.make_native_sequence(directory=str(tmp_path / "elsewhere"))
    files = sorted((tmp_path / "elsewhere").iterdir())
    assert [len(formats.read_ply(file)) for file in files] == COUNTS
    read = formats.read_ply(files[2])
    assert np.array_equal(read.means, gaussians(formats, 4, 2).means)
