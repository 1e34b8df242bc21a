# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine that draws splats exactly: colours, order, meshes in front, the depth pass.
It never compares with stored pictures: EWA splatting in numpy is the reference."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
from pathlib import Path

import bpy
import numpy as np
import pytest

_spec = importlib.util.spec_from_file_location("ewa", Path(__file__).with_name("ewa.py"))
ewa = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ewa)
add, gaussians, psnr, render, SIZE = ewa.add, ewa.gaussians, ewa.psnr, ewa.render, ewa.SIZE


@pytest.fixture
def formats(viewtime: str):
    return importlib.import_module("viewtime_formats")


@pytest.fixture
def scene(empty_scene: bpy.types.Scene) -> bpy.types.Scene:
    scene = ewa.plain_scene(empty_scene)
    scene.render.engine = "VIEWTIME_SPLATS"
    scene.render.film_transparent = True
    return scene


def layers(scene: bpy.types.Scene, folder: Path, viewtime: str) -> np.ndarray:
    """The depth pass of one render, top row first."""
    exr = importlib.import_module(f"{viewtime}.capture.exr")
    bpy.context.view_layer.use_pass_z = True
    settings = scene.render.image_settings
    if hasattr(settings, "media_type"):
        settings.media_type = "MULTI_LAYER_IMAGE"
    settings.file_format = "OPEN_EXR_MULTILAYER"
    settings.color_depth = "32"
    settings.exr_codec = "NONE"
    scene.render.filepath = str(folder / "layers.exr")
    bpy.ops.render.render(write_still=True)
    return exr.read_depth_pass(folder / "layers.exr")


def premultiplied(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture[..., :3] * picture[..., 3:], picture[..., 3:]], -1)


def wanted(scene, splats, world=None) -> np.ndarray:
    seen = ewa.Seen(scene, splats, world)
    color, alpha, _ = seen.blend(np.minimum(ewa.harmonics(splats.sh, seen.sight), 1.0))
    return np.concatenate([color, alpha], -1)


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
@pytest.mark.parametrize("degree", [0, 3])
def test_pictures_are_those_of_the_formula(scene, formats, tmp_path, kind, degree):
    scene.camera.data.type = kind
    scene.camera.data.ortho_scale = 3.0
    splats = gaussians(formats, 300, degree=degree)
    splats.scales[:] *= 0.5
    if degree:
        splats.sh[:] *= 0.5  # no colour above 1, which a file of straight colours cuts off
    ob = add(formats, tmp_path / "s", splats)
    ob.location = (0.1, 0.2, -0.1)
    ob.rotation_euler = (0.4, -0.2, 1.0)
    ob.scale = (0.7, -0.9, 1.3)
    bpy.context.view_layer.update()
    picture = premultiplied(render(scene, tmp_path, alpha=True))
    assert psnr(picture, wanted(scene, splats, np.array(ob.matrix_world))) > 50


def test_objects_that_interpenetrate_are_sorted_as_one(scene, formats, tmp_path):
    """Two objects, unevenly scaled, with harmonics, in one another's place."""
    one, two = gaussians(formats, 150, 1, degree=1), gaussians(formats, 150, 2, degree=1)
    first, second = add(formats, tmp_path / "a", one), add(formats, tmp_path / "b", two)
    first.scale = (1.0, 0.5, 1.2)
    second.rotation_euler = (0.3, 0.4, 0.5)
    bpy.context.view_layer.update()
    picture = premultiplied(render(scene, tmp_path, alpha=True))
    seen = [
        ewa.Seen(scene, splats, np.array(ob.matrix_world))
        for splats, ob in ((one, first), (two, second))
    ]
    both = seen[0]
    colors = np.concatenate(
        [np.minimum(ewa.harmonics(s.sh, e.sight), 1) for s, e in zip((one, two), seen)]
    )
    for name in ("u", "v", "z", "inverse", "opacity"):
        setattr(both, name, np.concatenate([getattr(e, name) for e in seen]))
    color, alpha, _ = both.blend(colors)
    assert psnr(picture, np.concatenate([color, alpha], -1)) > 45


def wall(formats, color=(0.8, 0.4, 0.1)):
    """Overlapping splats, each half transparent, that fill a square of the plane y = 0."""
    line = np.linspace(-1, 1, 21)
    x, z = (grid.reshape(-1) for grid in np.meshgrid(line, line))
    count = len(x)
    sh = formats.rgb_to_sh0(np.tile(np.array(color, np.float32), (count, 1)))[:, None]
    return formats.Gaussians(
        means=np.stack([x, 0 * x, z], -1).astype(np.float32),
        scales=np.full((count, 3), 0.08, np.float32),
        rotations=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        opacities=np.full(count, 0.45, np.float32),
        sh=sh.astype(np.float32),
    )


def test_depth_has_no_holes_where_splats_cover(scene, formats, tmp_path, viewtime):
    """No splat of the wall is opaque; together they are. Depth is the wall's, without a gap."""
    splats = wall(formats)
    scene.camera.location = (0, -4, 0)
    scene.camera.rotation_euler = (np.pi / 2, 0, 0)
    bpy.context.view_layer.update()
    add(formats, tmp_path / "s", splats)
    depth = layers(scene, tmp_path, viewtime)
    _, alpha, mean = ewa.Seen(scene, splats).blend(np.ones((len(splats), 3)))
    inside = alpha[..., 0] > 0.55
    assert 0.1 < inside.mean() < 0.9
    assert np.abs(depth[inside] - 4.0).max() < 0.02
    assert np.abs(depth[inside] - mean[..., 0][inside]).max() < 1e-3
    assert (depth[alpha[..., 0] < 0.45] > 1e9).all()


def test_a_mesh_in_front_hides_splats_and_gives_its_own_depth(scene, formats, tmp_path, viewtime):
    scene.camera.location = (0, -4, 0)
    scene.camera.rotation_euler = (np.pi / 2, 0, 0)
    add(formats, tmp_path / "s", wall(formats))
    bpy.ops.mesh.primitive_plane_add(size=0.6, location=(0.3, -1, 0), rotation=(np.pi / 2, 0, 0))
    bpy.ops.mesh.primitive_plane_add(size=9.0, location=(0, 1, 0), rotation=(np.pi / 2, 0, 0))
    hidden = bpy.context.object
    bpy.context.view_layer.update()
    picture = render(scene, tmp_path, alpha=True)
    depth = layers(scene, tmp_path, viewtime)
    middle, front, edge = (SIZE // 2, SIZE // 4), (SIZE // 2, SIZE // 2 + 8), (2, 2)
    assert picture[middle][3] > 0.8 and np.abs(picture[middle][:3] - (0.8, 0.4, 0.1)).max() < 0.01
    assert abs(depth[middle] - 4.0) < 0.02
    assert picture[front][3] == 0 and abs(depth[front] - 3.0) < 1e-3
    assert picture[edge][3] < 0.05 and abs(depth[edge] - 5.0) < 1e-3
    hidden.hide_render = True
    assert layers(scene, tmp_path, viewtime)[edge] > 1e9


def test_a_border_renders_the_same_pixels(scene, formats, tmp_path):
    add(formats, tmp_path / "s", gaussians(formats, 100))
    whole = premultiplied(render(scene, tmp_path, alpha=True))
    scene.render.use_border = scene.render.use_crop_to_border = True
    scene.render.border_min_x, scene.render.border_max_x = 0.25, 0.75
    scene.render.border_min_y, scene.render.border_max_y = 0.5, 1.0
    part = premultiplied(render(scene, tmp_path, alpha=True))
    assert part.shape[:2] == (SIZE // 2, SIZE // 2)
    assert psnr(part, whole[: SIZE // 2, SIZE // 4 : 3 * SIZE // 4]) > 50


def test_a_scene_without_splats_is_clear_and_hidden_objects_do_not_render(scene, formats, tmp_path):
    assert render(scene, tmp_path, alpha=True).max() == 0
    ob = add(formats, tmp_path / "s", gaussians(formats, 10))
    assert render(scene, tmp_path, alpha=True)[..., 3].max() > 0.3
    ob.hide_render = True
    assert render(scene, tmp_path, alpha=True).max() == 0
    scene.render.film_transparent = False
    picture = render(scene, tmp_path)
    assert np.abs(picture - ewa.display(np.array(ewa.BACKGROUND))).max() < 0.01


BACKEND = """
import sys, numpy as np
from viewtime.gaussians import render
from viewtime_formats import read_sequence
from viewtime_formats.rig import Camera
seen = np.load(sys.argv[2])
camera = Camera("c", int(seen["size"]), int(seen["size"]), seen["k"], seen["pose"])
np.save(sys.argv[3], render(read_sequence(sys.argv[1]).step(0), camera).color)
"""


def test_pictures_are_those_of_the_backend(scene, formats, tmp_path, viewtime, backend_python):
    """The same 3,000 splats and camera in three ways: the pass, quads in Cycles, the backend."""
    conventions = importlib.import_module(f"{viewtime}.conventions")
    splats = gaussians(formats, 3000, degree=3)
    splats.scales[:] *= 0.3
    splats.sh[:] *= 0.5
    ob = add(formats, tmp_path / "s", splats)
    camera = conventions.camera_from_blender(scene.camera, scene, SIZE, SIZE)
    np.savez(
        tmp_path / "c.npz", k=camera.intrinsics, pose=camera.camera_from_world, size=camera.width
    )
    command = [str(backend_python), "-c", BACKEND]
    paths = [str(tmp_path / name) for name in ("s", "c.npz", "wanted.npy")]
    subprocess.run([*command, *paths], check=True, cwd=tmp_path)
    backend = np.load(tmp_path / "wanted.npy")
    exact = render(scene, tmp_path, alpha=True)
    assert psnr(exact[..., :3] * exact[..., 3:], backend) > 45
    # What Cycles needs to show the same: docstring of benchmarks/display.py.
    scene.render.engine, scene.view_settings.view_transform = "CYCLES", "Raw"
    scene.render.film_transparent = False
    scene.world.color = (0, 0, 0)
    if scene.world.use_nodes:
        scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0, 0, 0, 1)
    ob.viewtime.display_blend = "DISPLAY"
    scene.cycles.samples, scene.cycles.filter_width = 1, 0.01
    bpy.ops.viewtime.prepare_render()
    assert psnr(render(scene, tmp_path), backend) > 38
