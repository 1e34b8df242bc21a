# SPDX-License-Identifier: Apache-2.0
"""Predicted depth in a captured rig: its scale per view, and what is said where there is none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from viewtime.data.synthetic import sample_grid
from viewtime.grid import FrameGrid
from viewtime.reconstructor.align_depth import refine_view_scales
from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.lift import reconstruct
from viewtime.reconstructor.lift_predict import predict
from viewtime.reconstructor.model import Prediction
from viewtime.reconstructor.pose import encode_rig
from viewtime_formats.rig import Camera, Rig

FACTORS = np.array([1.25, 0.85, 1.0, 1.1, 0.8])


@pytest.fixture(scope="module")
def scene():
    return sample_grid(10_000_004, 5, 1, 48)


def test_the_factor_of_each_view_is_found_from_what_its_neighbours_see(scene):
    grid, rig = scene
    surface = np.isfinite(grid.depth)
    depth = np.where(surface, grid.depth, 1.0)
    noise = np.exp(0.05 * np.random.default_rng(0).normal(size=(5, 1, 6, 6)))
    noise = noise.repeat(8, 2).repeat(8, 3)
    wrong = depth * noise / (0.8 * FACTORS[:, None, None, None])
    found = refine_view_scales(wrong, surface, grid.frames, rig.cameras)
    np.testing.assert_allclose(found.scales, 0.8 * FACTORS, rtol=0.04)
    assert found.after < 0.6 * found.before and found.seen.all()


def test_views_in_one_place_say_nothing_and_keep_their_depth(scene):
    grid, rig = scene
    first = rig.cameras[0]
    spot = [Camera(f"c{n}", 48, 48, first.intrinsics, first.camera_from_world) for n in range(3)]
    depth = np.where(np.isfinite(grid.depth), grid.depth, 1.0)[:3]
    found = refine_view_scales(depth, np.isfinite(grid.depth[:3]), grid.frames[:3], spot)
    assert not found.seen.any() and np.array_equal(found.scales, np.ones(3))


class Told(torch.nn.Module):
    """Answers with a scene's depth and cameras in a unit and a world of its own."""

    def __init__(self, grid: FrameGrid, rig: Rig, unit: float, factors: np.ndarray) -> None:
        super().__init__()
        self.config = ReconstructorConfig.small(size=48, rays=False)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.scene, self.unit, self.factors = (grid, rig), unit, factors

    def forward(self, frames, rays=None, **_):
        grid, rig = self.scene
        surface = np.isfinite(grid.depth)
        depth = np.where(surface, grid.depth, 1.0) / self.unit / self.factors[:, None, None, None]
        depth = torch.from_numpy(depth.astype(np.float32)).transpose(0, 1)[None]
        logits = torch.from_numpy(np.where(surface, 9.0, -9.0).astype(np.float32))
        poses = torch.from_numpy(encode_rig(rig, self.unit))[None, None]
        poses = poses.expand(1, frames.shape[1], -1, -1)
        return Prediction(depth, torch.ones_like(depth), logits.transpose(0, 1)[None], [poses])


def test_a_model_in_a_world_of_its_own_lands_in_the_artists_at_its_scale(scene):
    grid, rig = scene
    true = rig.cameras[3]
    wrong = Camera("wrong", 48, 48, true.intrinsics, -true.camera_from_world[:, [1, 0, 2, 3]])
    said = Rig((*rig.cameras[:3], wrong, rig.cameras[4]))
    model = Told(grid, said, 7.0, FACTORS)
    found = predict(model, grid.frames, rig)
    assert found.scale == "cameras" and found.unit == pytest.approx(7.0, rel=1e-3)
    alignment = found.record["alignment"]
    assert alignment["outliers"] == [3] and alignment["rotation_degrees"][1] < 0.1
    assert alignment["position_of_rig"][1] < 1e-3
    surface = np.isfinite(grid.depth)
    ratio = [np.median(found.depth[v][surface[v]] / grid.depth[v][surface[v]]) for v in range(5)]
    np.testing.assert_allclose(ratio, 1.0, rtol=0.04)
    bare = predict(model, grid.frames, rig, refine=False)
    ratio = [np.median(bare.depth[v][surface[v]] / grid.depth[v][surface[v]]) for v in range(5)]
    np.testing.assert_allclose(ratio, 1.0 / FACTORS, rtol=1e-3)


def test_the_record_of_a_run_says_how_the_rig_was_met(scene):
    grid, rig = scene
    bare = FrameGrid(grid.frames, grid.known)
    result = reconstruct(Told(grid, rig, 3.0, np.ones(5)), bare, rig)
    assert result.provenance["scale"] == "cameras" and result.rig.world == rig.world
    assert result.provenance["alignment"]["method"] == "centres and orientations"
    assert len(result.provenance["depth_scale"]["per_view"]) == 5
    assert len(next(result)) > 500

    one = FrameGrid(grid.frames[:1], grid.known[:1])
    told = Told(SimpleNamespace(depth=grid.depth[:1]), Rig(rig.cameras[:1]), 3.0, np.ones(1))
    result = reconstruct(told, one, Rig(rig.cameras[:1]))
    assert result.provenance["scale"] == "guessed"
    assert "no scale" in result.provenance["alignment"]["refused"]
