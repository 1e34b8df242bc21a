# SPDX-License-Identifier: GPL-3.0-or-later
"""Renders show all splats of the exact frame, whatever renders and from whatever they are driven.
Tiny pictures: their colours say which step was drawn, their geometry how many splats."""

from __future__ import annotations

import importlib

import bpy
import numpy as np
import pytest
from splats import gaussians, import_sequence, write_sequence


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


class Witness(bpy.types.RenderEngine):
    """Renders nothing and notes what every view layer holds, at subframes around the frame too."""

    bl_idname = "VIEWTIME_TEST_WITNESS"
    bl_label = "Witness"
    subframes = (0.0,)
    seen: list = []  # noqa: RUF012 - the engine's instances come and go with each render
    on_render = staticmethod(lambda: None)

    def render(self, depsgraph: bpy.types.Depsgraph) -> None:
        scene = depsgraph.scene
        frame, layer = scene.frame_current, depsgraph.view_layer.name
        type(self).on_render()
        for subframe in self.subframes:
            if len(self.subframes) > 1:
                self.frame_set(frame + (-1 if subframe < 0 else 0), subframe % 1.0)
            for instance in depsgraph.object_instances:
                if instance.object.type == "POINTCLOUD" or instance.object.original.viewtime.folder:
                    ob = instance.object
                    self.seen.append((frame + subframe, layer, ob.original.name, quads(ob)))
                    break
        self.frame_set(frame, 0.0)


def quads(evaluated: bpy.types.Object) -> np.ndarray:
    """(N, 3) centres of the quads that the object has for a renderer, in its own space."""
    geometry = evaluated.evaluated_geometry()  # owns the mesh
    corners = np.empty(len(geometry.mesh.vertices) * 3, np.float32)
    geometry.mesh.vertices.foreach_get("co", corners)
    return corners.reshape(-1, 4, 3).mean(axis=1)


def same_places(centers: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether there is one quad at each place, in any order."""
    if len(centers) != len(wanted):
        return False
    distance = np.linalg.norm(centers[:, None] - wanted[None], axis=2)
    nearest = distance.argmin(axis=1)
    return len(set(nearest)) == len(wanted) and bool(distance.min(axis=1).max() < 5e-3)


@pytest.fixture
def witness():
    bpy.utils.register_class(Witness)
    Witness.seen.clear()
    Witness.subframes, Witness.on_render = (0.0,), lambda: None
    yield Witness
    bpy.utils.unregister_class(Witness)


COUNTS = (30, 50, 20, 40)


@pytest.fixture
def stage(empty_scene, formats, tmp_path, witness) -> bpy.types.Object:
    """Four steps on frames 1 to 4, seen whole by the camera, rendered by the witness."""
    ob = import_sequence(write_sequence(formats, tmp_path / "s", COUNTS))
    camera = bpy.data.objects.new("c", bpy.data.cameras.new("c"))
    camera.location = (0, 0, 20)
    empty_scene.collection.objects.link(camera)
    empty_scene.camera = camera
    empty_scene.render.engine = Witness.bl_idname
    empty_scene.render.resolution_x = empty_scene.render.resolution_y = 8
    empty_scene.render.filepath = str(tmp_path / "f")
    empty_scene.frame_start, empty_scene.frame_end = 1, 4
    return ob


def shows(formats, places: np.ndarray, step: int) -> bool:
    return same_places(places, gaussians(formats, COUNTS[step], step).means)


@pytest.mark.parametrize("locked", [False, True])
def test_a_still_and_an_animation_hold_all_splats_of_their_frames(stage, formats, witness, locked):
    scene = bpy.context.scene
    scene.render.use_lock_interface = locked
    scene.frame_set(3)
    bpy.ops.render.render()
    bpy.ops.render.render(animation=True)
    frames = [frame for frame, *_ in witness.seen]
    assert frames == [3, 1, 2, 3, 4]
    for frame, _, _, places in witness.seen:
        assert shows(formats, places, int(frame) - 1), frame
    assert scene.frame_current == 3 and len(stage.data.points) == COUNTS[2]


def test_the_viewports_share_of_splats_is_not_the_renders(stage, formats, witness):
    stage.viewtime.display_density = 0.1
    bpy.ops.render.render()
    ((_, _, _, places),) = witness.seen
    assert shows(formats, places, 0)


def test_subframes_show_the_step_that_is_on_then(stage, formats, witness):
    witness.subframes = (-0.25, 0.0, 0.25)
    stage.viewtime.speed = 4.0  # a step lasts a quarter of a frame
    scene = bpy.context.scene
    scene.render.use_motion_blur = True
    scene.frame_set(1)
    bpy.ops.render.render()
    assert [frame for frame, *_ in witness.seen] == [0.75, 1.0, 1.25]
    for (_, _, _, places), step in zip(witness.seen, (0, 0, 1)):
        assert shows(formats, places, step)
    assert len(stage.data.points) == COUNTS[0]


def test_every_view_layer_has_the_exact_frame(stage, formats, witness):
    scene = bpy.context.scene
    scene.view_layers.new("second")
    bpy.ops.render.render(animation=True)
    assert [(frame, layer) for frame, layer, *_ in witness.seen] == [
        (frame, layer) for frame in (1, 2, 3, 4) for layer in ("ViewLayer", "second")
    ]
    for frame, _, _, places in witness.seen:
        assert shows(formats, places, int(frame) - 1)


def test_a_keyframed_time_holds_in_renders_and_at_their_subframes(stage, formats, witness):
    """Blender sets the frame before it evaluates animation: the first value would be the last."""
    stage.viewtime.use_time = True
    for frame, time in [(1, 3.0), (2, 0.0), (3, 2.0), (4, 1.0)]:
        stage.viewtime.time = time
        stage.viewtime.keyframe_insert("time", frame=frame)
    (strip,) = stage.animation_data.action.layers[0].strips
    for curve in strip.channelbags[0].fcurves:
        for point in curve.keyframe_points:
            point.interpolation = "CONSTANT"
    bpy.context.scene.view_layers.new("second")
    witness.subframes = (-0.25, 0.0, 0.25)
    bpy.ops.render.render(animation=True)
    steps = {1: 3, 2: 0, 3: 2, 4: 1}
    assert len(witness.seen) == 4 * 2 * 3
    for frame, _, _, places in witness.seen:
        assert shows(formats, places, steps[max(1, int(frame))]), frame
    witness.seen.clear()
    witness.subframes = (0.0,)
    bpy.context.scene.frame_set(3)
    bpy.ops.render.render()
    assert shows(formats, witness.seen[0][3], 2)


@pytest.mark.parametrize("animated", [False, True])
def test_two_clouds_that_take_turns_hold_in_renders(
    stage, formats, witness, tmp_path, viewtime, monkeypatch, animated
):
    """What is done with large clouds, here with small ones."""
    cloud = importlib.import_module(f"{viewtime}.playback.cloud")
    monkeypatch.setattr(cloud, "_POINTS_PER_OBJECT", 1)
    bpy.data.objects.remove(stage)
    ob = import_sequence(write_sequence(formats, tmp_path / "even", [40] * 4))
    scene = bpy.context.scene
    scene.view_layers.new("second")
    if animated:
        ob.viewtime.use_time = True
        for frame in (1, 4):
            ob.viewtime.time = frame - 1
            ob.viewtime.keyframe_insert("time", frame=frame)
        (strip,) = ob.animation_data.action.layers[0].strips
        for point in strip.channelbags[0].fcurves[0].keyframe_points:
            point.interpolation = "LINEAR"
    witness.subframes = (-0.25, 0.0, 0.25)
    used = set()
    witness.on_render = lambda: used.add(ob.data.session_uid)
    bpy.ops.render.render(animation=True)
    assert len(witness.seen) == 4 * 2 * 3 and len(used) == 2
    for frame, _, _, places in witness.seen:
        step = max(0, int(frame + 1e-3) - 1)
        assert same_places(places, gaussians(formats, 40, step).means), frame


def test_duplicates_at_different_offsets_render_their_own_steps(stage, formats, witness):
    twin = stage.copy()
    bpy.context.scene.collection.objects.link(twin)
    twin.viewtime.offset = 1
    stage.hide_render = True
    bpy.ops.render.render(animation=True)
    assert [name for _, _, name, _ in witness.seen] == [twin.name] * 4
    for (_, _, _, places), step in zip(witness.seen, (0, 0, 1, 2)):
        assert shows(formats, places, step)
