# SPDX-License-Identifier: GPL-3.0-or-later
"""Renders show all splats of the exact frame, whatever renders and from whatever they are driven.
Tiny pictures: their colours say which step was drawn, their geometry how many splats."""

from __future__ import annotations

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
