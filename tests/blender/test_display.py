# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of splats as quads from Blender's engines against EWA splatting written in numpy.
It never compares with stored pictures: the formula is the reference."""

from __future__ import annotations

import importlib
import importlib.util
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
    return ewa.plain_scene(empty_scene)


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
def test_cycles_draws_anisotropic_gaussians_as_ewa_does(scene, formats, tmp_path, kind):
    scene.camera.data.type = kind
    scene.camera.data.ortho_scale = 3.0
    splats = gaussians(formats, 20)
    add(formats, tmp_path / "s", splats)
    bpy.ops.viewtime.prepare_render()
    picture = render(scene, tmp_path)
    assert psnr(picture, ewa.ewa(scene, splats)) > 45


def test_cycles_keeps_the_order_of_hundreds_of_overlapping_splats(scene, formats, tmp_path):
    splats = gaussians(formats, 400)
    splats.scales[:] *= 0.4
    add(formats, tmp_path / "s", splats)
    bpy.ops.viewtime.prepare_render()
    picture = render(scene, tmp_path)
    assert psnr(picture, ewa.ewa(scene, splats)) > 35


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
    assert psnr(picture, ewa.ewa(scene, splats, world)) > 35


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
    assert psnr(picture, ewa.ewa(scene, splats)) > 45


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
    assert np.abs(picture - ewa.display(np.array(ewa.BACKGROUND))).max() < 0.01


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
    assert (scene.cycles.transparent_max_bounces, scene.cycles.min_transparent_bounces) == (128, 64)
    assert before[2:] == (scene.view_settings.view_transform, scene.cycles.samples)


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
def test_quads_show_the_colour_that_the_camera_sees(scene, formats, tmp_path, kind):
    """Harmonics of degree 3, on an object that is turned and moved."""
    scene.camera.data.type = kind
    scene.camera.data.ortho_scale = 3.0
    splats = gaussians(formats, 20, degree=3)
    ob = add(formats, tmp_path / "s", splats)
    ob.location = (0.3, 0.2, -0.1)
    ob.rotation_euler = (0.4, -0.2, 1.0)
    bpy.context.view_layer.update()
    wanted = ewa.ewa(scene, splats, np.array(ob.matrix_world))
    bpy.ops.viewtime.prepare_render()
    assert psnr(render(scene, tmp_path), wanted) > 43
    ob.viewtime.display_sh = False
    plain = formats.Gaussians(
        splats.means, splats.scales, splats.rotations, splats.opacities, splats.sh[:, :1]
    )
    picture = render(scene, tmp_path)
    assert psnr(picture, wanted) < 35
    assert psnr(picture, ewa.ewa(scene, plain, np.array(ob.matrix_world))) > 43


def test_quads_blend_in_display_values_when_asked(scene, formats, tmp_path):
    splats = gaussians(formats, 40)
    splats.opacities[:] *= 0.6
    ob = add(formats, tmp_path / "s", splats)
    scene.world.color = (0, 0, 0)
    if scene.world.use_nodes:
        scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0, 0, 0, 1)
    bpy.ops.viewtime.prepare_render()
    seen = ewa.Seen(scene, splats)
    wanted, _, _ = seen.blend(ewa.harmonics(splats.sh, seen.sight))
    in_scene_light = psnr(render(scene, tmp_path), wanted)
    ob.viewtime.display_blend = "DISPLAY"
    scene.view_settings.view_transform = "Raw"
    assert psnr(render(scene, tmp_path), wanted) > 40 > in_scene_light


def without(formats, splats, kept):
    return formats.Gaussians(
        splats.means[kept],
        splats.scales[kept],
        splats.rotations[kept],
        splats.opacities[kept],
        splats.sh[kept],
    )


@pytest.mark.parametrize("engine", ["CYCLES", "VIEWTIME_SPLATS"])
def test_thresholds_and_the_crop_box_choose_what_renders(scene, formats, tmp_path, engine):
    splats = gaussians(formats, 60)
    ob = add(formats, tmp_path / "s", splats)
    ob.rotation_euler = (0.0, 0.0, 0.7)
    bpy.context.view_layer.update()
    world = np.array(ob.matrix_world)
    box = bpy.data.objects.new("box", None)
    box.matrix_world = ob.matrix_world.copy()
    # The file stands at frame 2; the box has its size at the frame that renders alone.
    for frame, scale in ((1, (0.8, 0.9, 0.7)), (2, (0.1, 0.1, 0.1))):
        box.scale = scale
        box.keyframe_insert("scale", frame=frame)
    scene.collection.objects.link(box)
    scene.frame_set(2)
    ob.viewtime.display_min_opacity = 0.5
    ob.viewtime.display_max_size = 0.25
    ob.viewtime.display_crop = box
    bpy.context.view_layer.update()
    kept = (splats.opacities >= 0.5) & (splats.scales.max(1) <= 0.25)
    kept &= (np.abs(splats.means) <= (0.8, 0.9, 0.7)).all(1)
    assert 5 < kept.sum() < 40
    chosen = without(formats, splats, kept)
    bpy.ops.viewtime.prepare_render()
    scene.render.engine = engine
    picture = render(scene, tmp_path, frame=1)
    if engine == "CYCLES":
        wanted = ewa.ewa(scene, chosen, world)
    else:
        seen = ewa.Seen(scene, chosen, world)
        color, alpha, _ = seen.blend(ewa.harmonics(chosen.sh, seen.sight))
        wanted = color + (1 - alpha) * ewa.display(np.array(ewa.BACKGROUND))
    assert psnr(picture, wanted) > 42


def test_the_quads_stay_out_of_the_viewport_unless_it_shows_quads(scene, formats, tmp_path):
    """The viewport draws splats itself; the object keeps its size there. Renders have the quads."""
    ob = add(formats, tmp_path / "s", gaussians(formats, 30))
    quads = ob.modifiers["Viewtime Splats"]
    values = {
        item.name: item.identifier
        for item in quads.node_group.interface.items_tree
        if item.item_type == "SOCKET"
    }

    def value(name):
        if hasattr(quads, "properties"):
            return getattr(quads.properties.inputs, values[name]).value
        return quads[values[name]]

    assert (quads.show_viewport, quads.show_render, value("In Viewport")) == (True, True, False)
    ob.viewtime.display_mode = "QUADS"
    assert (quads.show_viewport, quads.show_render, value("In Viewport")) == (True, True, True)
    ob.viewtime.display_mode = "NATIVE"  # this Blender has none: as Splats
    assert not value("In Viewport")
    ob.viewtime.display_mode = "POINTS"
    ob.viewtime.display_cloud = True
    assert (quads.show_viewport, quads.show_render) == (False, True)


def test_an_older_tree_in_a_file_is_renewed(scene, formats, tmp_path, viewtime):
    modifier = importlib.import_module(f"{viewtime}.display.modifier")
    ob = add(formats, tmp_path / "s", gaussians(formats, 3))
    ob.viewtime.display_min_opacity = 0.25
    old = ob.modifiers[0].node_group
    old["viewtime_version"] = 1
    blend = str(tmp_path / "old.blend")
    bpy.ops.wm.save_as_mainfile(filepath=blend)
    bpy.ops.wm.open_mainfile(filepath=blend)
    ob = bpy.data.objects[0] if len(bpy.data.objects) == 1 else bpy.data.objects["s"]
    group = ob.modifiers[0].node_group
    assert group["viewtime_version"] > 1 and group.name == "Viewtime Splats"
    assert len([g for g in bpy.data.node_groups if g.get("viewtime_version")]) == 1
    assert modifier.MODIFIER in ob.modifiers


def test_a_crop_box_is_one_operator_around_all_splats(scene, formats, tmp_path):
    splats = gaussians(formats, 50)
    ob = add(formats, tmp_path / "s", splats)
    ob.scale = (2.0, 1.0, 1.0)
    bpy.context.view_layer.update()
    assert bpy.ops.viewtime.add_crop_box.poll()
    assert bpy.ops.viewtime.add_crop_box() == {"FINISHED"}
    bpy.context.view_layer.update()
    box = ob.viewtime.display_crop
    assert bpy.context.object == ob and ob.select_get() and not box.select_get()
    inside = np.array(box.matrix_world.inverted() @ ob.matrix_world)
    places = splats.means @ inside[:3, :3].T + inside[:3, 3]
    assert 0.99 < np.abs(places).max(0).min() and np.abs(places).max() <= 1.0


def test_the_colour_note_follows_the_view_transform(scene, formats, tmp_path, viewtime):
    advice = importlib.import_module(f"{viewtime}.display").colour_advice
    ob = add(formats, tmp_path / "s", gaussians(formats, 3))
    assert advice(scene, ob) == []
    scene.view_settings.view_transform = "AgX"
    assert "AgX" in advice(scene, ob)[0] and "Standard" in advice(scene, ob)[0]
    ob.viewtime.display_blend = "DISPLAY"
    assert "Raw" in advice(scene, ob)[0]
    scene.view_settings.view_transform = "Raw"
    assert advice(scene, ob) == []
