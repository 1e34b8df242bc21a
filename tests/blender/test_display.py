# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of splats from Blender's engines against EWA splatting written in numpy.
It never compares with stored pictures: the formula is the reference."""

from __future__ import annotations

import importlib
from pathlib import Path

import bpy
import numpy as np
import pytest
from mathutils import Vector

SIZE = 96
BACKGROUND = (0.05, 0.1, 0.2)  # scene linear


@pytest.fixture
def formats(viewtime: str):
    return importlib.import_module("viewtime_formats")


@pytest.fixture
def scene(empty_scene: bpy.types.Scene) -> bpy.types.Scene:
    """Cycles at SIZE, a plain world, a camera that looks at the origin, Standard transform."""
    scene = empty_scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 8
    scene.cycles.pixel_filter_type = "BOX"
    scene.cycles.use_denoising = False
    scene.render.resolution_x = scene.render.resolution_y = SIZE
    scene.view_settings.view_transform = "Standard"
    scene.render.dither_intensity = 0.0
    scene.world = bpy.data.worlds.new("w")
    scene.world.color = BACKGROUND
    if scene.world.use_nodes:
        scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (*BACKGROUND, 1)
    camera = bpy.data.objects.new("c", bpy.data.cameras.new("c"))
    camera.location = (1.5, -4.0, 1.0)
    camera.rotation_euler = Vector((-1.5, 4.0, -1.0)).to_track_quat("-Z", "Y").to_euler()
    scene.collection.objects.link(camera)
    scene.camera = camera
    bpy.context.view_layer.update()
    return scene


def gaussians(formats, count: int, seed: int = 1):
    rng = np.random.default_rng(seed)
    rotations = rng.normal(size=(count, 4))
    colors = rng.uniform(0.1, 0.9, (count, 1, 3)).astype(np.float32)
    return formats.Gaussians(
        means=rng.uniform(-1, 1, (count, 3)).astype(np.float32),
        scales=(0.03 * 12 ** rng.uniform(0, 1, (count, 3))).astype(np.float32),
        rotations=(rotations / np.linalg.norm(rotations, axis=1)[:, None]).astype(np.float32),
        opacities=rng.uniform(0.3, 0.95, count).astype(np.float32),
        sh=formats.rgb_to_sh0(colors),
    )


def add(formats, folder: Path, splats) -> bpy.types.Object:
    with formats.SequenceWriter(folder, times=1, fps=24.0, frame_start=1, frame_step=1) as writer:
        writer.write_step(0, splats)
    bpy.ops.viewtime.import_sequence(directory=str(folder))
    return bpy.context.object


def render(scene: bpy.types.Scene, folder: Path) -> np.ndarray:
    """(SIZE, SIZE, 3) display values, top row first."""
    scene.render.filepath = str(folder / "picture.png")
    scene.render.image_settings.color_depth = "16"
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(scene.render.filepath)
    image.colorspace_settings.name = "Non-Color"
    pixels = np.array(image.pixels[:]).reshape(SIZE, SIZE, -1)[::-1, :, :3]
    bpy.data.images.remove(image)
    return pixels


def ewa(scene, splats, colors, world=None) -> np.ndarray:
    """EWA splatting, front to back in scene linear light, without a low-pass filter."""
    camera = scene.camera
    view = np.array(camera.matrix_world.inverted()) @ (np.eye(4) if world is None else world)
    turn = np.array([_matrix(q) for q in splats.rotations.astype(float)])
    axes = view[:3, :3] @ turn * splats.scales[:, None, :].astype(float)
    center = splats.means.astype(float) @ view[:3, :3].T + view[:3, 3]
    z = -center[:, 2]
    x, y = center[:, 0], -center[:, 1]
    axes[:, 1:] *= -1  # OpenCV: y down, z forward
    grid = (np.arange(SIZE) + 0.5) - SIZE / 2
    u, v = np.meshgrid(grid, grid)
    zero = np.zeros_like(z)
    if camera.data.type == "ORTHO":
        pixels = SIZE / camera.data.ortho_scale
        px, py = pixels * x, pixels * y
        row_x = np.stack([zero + pixels, zero, zero], -1)
        row_y = np.stack([zero, zero + pixels, zero], -1)
    else:
        focal = SIZE * camera.data.lens / camera.data.sensor_width
        px, py = focal * x / z, focal * y / z
        row_x = np.stack([focal / z, zero, -focal * x / z**2], -1)
        row_y = np.stack([zero, focal / z, -focal * y / z**2], -1)
    flat = np.einsum("nki,nij->nkj", np.stack([row_x, row_y], 1), axes)
    inverse = np.linalg.inv(flat @ flat.transpose(0, 2, 1))
    picture = np.zeros((SIZE, SIZE, 3))
    through = np.ones((SIZE, SIZE, 1))
    for n in np.argsort(z):
        if z[n] < camera.data.clip_start:
            continue
        d = np.stack([u - px[n], v - py[n]], -1)
        power = np.einsum("hwi,ij,hwj->hw", d, inverse[n], d)
        alpha = (splats.opacities[n] * np.exp(-0.5 * power) * (power < 9))[..., None]
        picture += through * alpha * linear(colors[n])
        through = through * (1 - alpha)
    return display(picture + through * np.array(BACKGROUND))


def _matrix(q):
    w, x, y, z = q / np.linalg.norm(q)
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]


def linear(values):
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def display(values):
    values = np.clip(values, 0, 1)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def psnr(a, b) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def colors_of(formats, splats):
    return formats.sh0_to_rgb(splats.sh[:, 0]).astype(float)


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
def test_cycles_draws_anisotropic_gaussians_as_ewa_does(scene, formats, tmp_path, kind):
    scene.camera.data.type = kind
    scene.camera.data.ortho_scale = 3.0
    splats = gaussians(formats, 20)
    add(formats, tmp_path / "s", splats)
    bpy.ops.viewtime.prepare_render()
    picture = render(scene, tmp_path)
    assert psnr(picture, ewa(scene, splats, colors_of(formats, splats))) > 45


def test_cycles_keeps_the_order_of_hundreds_of_overlapping_splats(scene, formats, tmp_path):
    splats = gaussians(formats, 400)
    splats.scales[:] *= 0.4
    add(formats, tmp_path / "s", splats)
    bpy.ops.viewtime.prepare_render()
    picture = render(scene, tmp_path)
    assert psnr(picture, ewa(scene, splats, colors_of(formats, splats))) > 35


def test_splats_follow_an_object_that_is_moved_turned_and_stretched(scene, formats, tmp_path):
    splats = gaussians(formats, 20)
    ob = add(formats, tmp_path / "s", splats)
    ob.location = (0.3, 0.2, -0.1)
    ob.rotation_euler = (0.4, -0.2, 1.0)
    ob.scale = (0.7, 0.9, 1.3)
    bpy.context.view_layer.update()
    world = np.array(ob.matrix_world)
    bpy.ops.viewtime.prepare_render()
    picture = render(scene, tmp_path)
    assert psnr(picture, ewa(scene, splats, colors_of(formats, splats), world)) > 35


def test_splats_at_one_depth_are_all_drawn(scene, formats, tmp_path):
    """A flat wall seen frontally: every quad lies in one plane. Equal colours: order is free."""
    splats = gaussians(formats, 400)
    line = np.linspace(-1, 1, 20)
    splats.means[:] = np.stack([*np.meshgrid(line, line), np.zeros((20, 20))], -1).reshape(-1, 3)
    splats.scales[:] = 0.07
    splats.opacities[:] = 0.3
    splats.sh[:] = formats.rgb_to_sh0(np.array([0.9, 0.5, 0.2], np.float32))
    scene.camera.location = (0, 0, 4)
    scene.camera.rotation_euler = (0, 0, 0)
    bpy.context.view_layer.update()
    add(formats, tmp_path / "s", splats)
    bpy.ops.viewtime.prepare_render()
    scene.cycles.min_transparent_bounces = 128  # no grain: the question is what is drawn
    picture = render(scene, tmp_path)
    assert psnr(picture, ewa(scene, splats, colors_of(formats, splats))) > 45


def test_an_opaque_splat_gives_its_own_colour_back_and_a_mesh_hides_it(scene, formats, tmp_path):
    color = np.array([[0.8, 0.4, 0.1]], np.float32)
    one = formats.Gaussians(
        means=np.zeros((1, 3), np.float32),
        scales=np.full((1, 3), 2, np.float32),
        rotations=np.array([[1, 0, 0, 0]], np.float32),
        opacities=np.ones(1, np.float32),
        sh=formats.rgb_to_sh0(color)[:, None],
    )
    ob = add(formats, tmp_path / "s", one)
    middle = render(scene, tmp_path)[SIZE // 2, SIZE // 2]
    assert np.abs(middle - color).max() < 0.01
    bpy.ops.mesh.primitive_cube_add(size=0.5, location=(0.75, -2.0, 0.5))
    middle = render(scene, tmp_path)[SIZE // 2, SIZE // 2]
    assert middle.max() < 0.5, "an unlit cube stands between"
    assert ob.modifiers[0].node_group.name == "Viewtime Splats"


def test_splats_behind_the_camera_draw_nothing(scene, formats, tmp_path):
    splats = gaussians(formats, 20)
    splats.means[:] = 2 * np.array(scene.camera.location) + splats.means
    add(formats, tmp_path / "s", splats)
    picture = render(scene, tmp_path)
    assert np.abs(picture - display(np.array(BACKGROUND))).max() < 0.01


def test_render_settings_change_only_when_asked(scene, formats, tmp_path, viewtime):
    advice = importlib.import_module(f"{viewtime}.display").advice
    before = (
        scene.cycles.transparent_max_bounces,
        scene.cycles.min_transparent_bounces,
        scene.view_settings.view_transform,
        scene.cycles.samples,
    )
    add(formats, tmp_path / "s", gaussians(formats, 3))
    assert before == (
        scene.cycles.transparent_max_bounces,
        scene.cycles.min_transparent_bounces,
        scene.view_settings.view_transform,
        scene.cycles.samples,
    )
    assert "transparent bounces" in advice(scene)[0]
    bpy.ops.viewtime.prepare_render()
    assert advice(scene) == []
    assert (scene.cycles.transparent_max_bounces, scene.cycles.min_transparent_bounces) == (128, 16)
    assert before[2:] == (scene.view_settings.view_transform, scene.cycles.samples)
