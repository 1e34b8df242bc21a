# SPDX-License-Identifier: Apache-2.0
"""Frames to Gaussians: known depth is kept, holes are filled in scale, every input has a path."""

import dataclasses

import numpy as np
import pytest
import torch

from viewtime.data.synthetic import sample_grid
from viewtime.gaussians.raster_cpu import render
from viewtime.grid import FrameGrid
from viewtime.progress import Cancelled
from viewtime.reconstructor.complete import complete_depth, fit_disparity
from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.lift import agreed, reconstruct
from viewtime.reconstructor.lift_predict import Predicted, model_size, predict
from viewtime.reconstructor.model import Reconstructor
from viewtime.reconstructor.splats import DROP_SHARE
from viewtime_formats.rig import Camera, Rig

TINY = ReconstructorConfig.small(
    dim=32, depth=4, heads=2, camera_heads=2, head_channels=(8, 8, 8, 8), head_features=8, size=32
)


@pytest.fixture(scope="module")
def model() -> Reconstructor:
    torch.manual_seed(0)
    model = Reconstructor(TINY).eval()
    torch.nn.init.constant_(model.depth_head.surface.bias, 1.0)  # everything is a surface
    return model


@pytest.fixture(scope="module")
def scene():
    return sample_grid(3, 3, 2, 32)


def without_depth(grid: FrameGrid) -> FrameGrid:
    return FrameGrid(grid.frames, grid.known)


def test_known_depth_is_kept_to_the_last_bit_and_holes_are_filled():
    rng = np.random.default_rng(0)
    known = rng.uniform(2.0, 6.0, (24, 32)).astype(np.float32)
    known[:4] = np.inf
    hole = rng.random((24, 32)) < 0.3
    surface = rng.random((24, 32)) < 0.9
    given = np.where(hole, np.nan, known)
    filled = complete_depth(given, rng.uniform(0.5, 2.0, (24, 32)), surface)
    assert np.array_equal(filled[~hole], known[~hole])
    assert not np.isnan(filled).any()
    assert np.array_equal(np.isinf(filled[hole]), ~surface[hole])


def test_a_prediction_right_up_to_scale_and_shift_fills_holes_exactly():
    y, x = np.mgrid[0:24, 0:32]
    true = 1.0 / (0.15 + 0.006 * x + 0.004 * y)
    predicted = 1.0 / ((1.0 / true - 0.02) / 0.37)
    given = true.astype(np.float32)
    given[8:16, 10:20] = np.nan
    filled = complete_depth(given, predicted, np.ones_like(x, bool))
    np.testing.assert_allclose(filled, true, rtol=1e-3)


def test_the_fit_ignores_outliers_and_refuses_to_turn_the_scene_around():
    rng = np.random.default_rng(1)
    predicted = rng.uniform(0.5, 3.0, 500)
    known = 1.0 / (0.4 / predicted + 0.05)
    known[:60] *= rng.uniform(1.5, 4.0, 60)
    a, b = fit_disparity(predicted, known)
    assert a == pytest.approx(0.4, rel=0.02) and b == pytest.approx(0.05, abs=0.01)
    a, b = fit_disparity(predicted, 1.0 / (1.0 - 0.2 / predicted))
    assert a > 0 and b == 0.0


def test_the_seam_has_no_step_where_the_prediction_is_off_a_little():
    x = np.broadcast_to(np.linspace(0.0, 1.0, 32), (24, 32))
    true = (3.0 + x).astype(np.float32)
    predicted = true * (1.0 + 0.1 * np.sin(6.0 * x))
    given = true.copy()
    given[:, 12:20] = np.nan
    filled = complete_depth(given, predicted, np.ones((24, 32), bool))
    assert np.abs(np.diff(np.log(filled), axis=1)).max() < 0.05
    a, b = fit_disparity(predicted[~np.isnan(given)], true[~np.isnan(given)])
    bare = np.abs(1.0 / (a / predicted + b) / true - 1.0)[:, 12:20].max()
    assert np.abs(filled / true - 1.0)[:, 12:20].max() < bare


def test_a_grid_with_all_its_depth_needs_no_prediction_and_shows_its_frames(scene):
    grid, rig = scene
    steps = reconstruct(None, grid, rig)  # type: ignore[arg-type]
    assert steps.provenance["depth"] == "captured" and steps.provenance["cameras"] == "given"
    gaussians = list(steps)
    assert len(gaussians) == 2
    sky = (
        np.median(grid.frames.transpose(0, 1, 3, 4, 2)[np.isinf(grid.depth)], axis=0)
        if np.isinf(grid.depth).any()
        else np.zeros(3)
    )
    shown = render(gaussians[1], rig.cameras[1], background=sky).color
    error = np.mean((shown - grid.frames[1, 1].transpose(1, 2, 0)) ** 2)
    assert error < 0.01


def test_prior_depth_serves_where_the_grid_has_none_and_grid_depth_wins(scene, model):
    grid, rig = scene
    prior = np.where(np.isnan(grid.depth), np.nan, 2.0 * grid.depth)
    wanted = list(reconstruct(None, grid, rig))  # type: ignore[arg-type]
    got = list(reconstruct(None, grid, rig, prior_depth=prior))  # type: ignore[arg-type]
    assert np.array_equal(got[0].means, wanted[0].means)
    partly = FrameGrid(
        grid.frames,
        grid.known,
        np.where(np.arange(2)[None, :, None, None] == 0, grid.depth, np.nan),
    )
    mixed = list(reconstruct(None, partly, rig, prior_depth=grid.depth))  # type: ignore[arg-type]
    assert np.array_equal(mixed[1].means, wanted[1].means)


def test_holes_are_filled_on_the_scale_of_the_known_depth(scene, model):
    grid, rig = scene
    holes = grid.depth.copy()
    holes[:, :, 10:14, 10:14] = np.nan
    steps = reconstruct(model, without_depth(grid), rig, prior_depth=holes)
    assert steps.provenance["depth"] == "completed"
    assert steps.provenance["predicted_share"] == pytest.approx(16 / 1024, abs=1e-3)
    for gaussians in steps:
        gaussians.validate("step")
        assert len(gaussians) > 500


def test_without_depth_the_rigs_own_unit_gives_the_scale(scene, model):
    grid, rig = scene
    one = predict(model, grid.frames, rig)
    assert one.scale == "rays" and one.depth.shape == grid.depth.shape
    result = reconstruct(model, without_depth(grid), rig)
    assert result.provenance["depth"] == "predicted, views agreed"
    steps = list(result)
    assert len(steps) == 2 and all(len(s) > 100 for s in steps)


def test_a_model_that_cannot_tell_sky_leaves_out_what_it_is_least_sure_of(scene, monkeypatch):
    """The same share as of the learned head's Gaussians; what is left out has no sky's colour."""
    grid, rig = scene
    torch.manual_seed(0)
    model = Reconstructor(dataclasses.replace(TINY, surface=False)).eval()
    doubt = torch.rand(32, 32) < 0.1
    doubt[:3] = True  # the sky, say

    def forward(*given, **options):
        answer = Reconstructor.forward(model, *given, **options)
        return dataclasses.replace(answer, confidence=2.0 * answer.confidence - doubt.float())

    monkeypatch.setattr(model, "forward", forward)
    found = predict(model, grid.frames, rig)
    assert not found.sees_sky and (~found.surface).mean() == pytest.approx(DROP_SHARE, abs=0.002)
    assert (~found.surface & doubt.numpy()).sum() == (~found.surface).sum()
    steps = reconstruct(model, without_depth(grid), rig)
    assert steps.background is None
    assert all(len(s) > 100 for s in steps)


@pytest.mark.parametrize("off", [0.05, 0.15])
def test_a_sharp_prediction_keeps_its_edges_where_views_are_made_to_agree(off):
    """Off by a smooth factor, little or much: its edges stay better than the sweep's own."""
    grid, rig = sample_grid(900_010, 4, 1, 192)
    true = grid.depth[:, 0]
    surface = np.isfinite(true)
    factor = np.random.default_rng(0).normal(0.0, off, (4, 1, 6, 6)).astype(np.float32)
    factor = torch.nn.functional.interpolate(torch.from_numpy(factor), (192, 192), mode="bicubic")
    depth = (np.where(surface, true, 20.0) * np.exp(factor[:, 0].numpy()))[:, None]
    coarse = Predicted(depth.astype(np.float32), surface[:, None], rig, "rays")
    nearer = np.stack([np.roll(true, n, (1, 2)) for n in (-2, 0, 2)])
    edges = surface & (nearer.max(0) > 1.1 * nearer.min(0))

    def error(made: np.ndarray, where: np.ndarray) -> float:
        return float(np.mean(np.abs(made[where] / true[where] - 1.0)))

    swept = agreed(coarse, grid.frames, 0)
    found = agreed(dataclasses.replace(coarse, seen=518), grid.frames, 0)
    assert np.array_equal(np.isfinite(found), surface)
    assert error(found, surface) < 0.9 * error(swept, surface)
    assert error(found, edges) < 0.6 * error(swept, edges)
    if off > 0.1:
        assert error(found, surface) < 0.9 * error(depth[:, 0], surface)


def test_parallel_cameras_get_their_scale_from_the_distance_between_them(scene, model):
    grid, rig = scene
    first = rig.cameras[0]
    row = tuple(
        Camera(
            f"p{n}",
            32,
            32,
            first.intrinsics,
            np.concatenate(
                [first.rotation, first.translation[:, None] + [[0.5 * n], [0.0], [0.0]]], 1
            ),
        )
        for n in range(3)
    )
    near = predict(model, grid.frames, Rig(row), refine=False)
    wide = predict(
        model,
        grid.frames,
        Rig(
            tuple(
                Camera(c.name, 32, 32, c.intrinsics, c.camera_from_world * [[1, 1, 1, 2]])
                for c in row
            )
        ),
        refine=False,
    )
    assert near.scale == wide.scale == "cameras"
    np.testing.assert_allclose(wide.depth, 2.0 * near.depth, rtol=1e-4)
    alone = predict(model, grid.frames[:1], Rig(row[:1]))
    assert alone.scale == "guessed" and np.isfinite(alone.depth).all()


def test_without_a_rig_cameras_are_predicted_upright_in_view_0s_place(scene, model):
    grid, _ = scene
    steps = reconstruct(model, without_depth(grid), None)
    assert steps.provenance["cameras"] == "predicted" and steps.rig.world == "view0"
    np.testing.assert_allclose(steps.rig.cameras[0].center, 0.0, atol=1e-9)
    np.testing.assert_allclose(steps.rig.cameras[0].rotation[2], [0.0, 1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(steps.rig.cameras[0].rotation[1], [0.0, 0.0, -1.0], atol=1e-9)
    assert sum(len(s) for s in steps) > 100


def test_a_single_clip_stands_before_a_default_pinhole(scene, model):
    grid, _ = scene
    clip = FrameGrid(grid.frames[:1], grid.known[:1])
    steps = reconstruct(model, clip, None)
    assert steps.provenance["cameras"] == "default pinhole" and len(steps.rig.cameras) == 1
    assert all(g.means[:, 1].min() > 0 for g in steps)  # in front of it


def test_cancel_stops_before_the_next_step_and_progress_counts(scene):
    grid, rig = scene
    seen, stop = [], []
    steps = reconstruct(
        None,
        grid,
        rig,
        on_step=lambda i, n: seen.append((i, n)),  # type: ignore[arg-type]
        should_cancel=lambda: bool(stop),
    )
    next(steps)
    stop.append(True)
    with pytest.raises(Cancelled):
        next(steps)
    assert seen == [(1, 2)]


def test_wrong_shapes_are_named(scene, model):
    grid, rig = scene
    with pytest.raises(ValueError, match="3 cameras for a grid of 2 views"):
        reconstruct(model, FrameGrid(grid.frames[:2], grid.known[:2]), rig)
    with pytest.raises(ValueError, match="prior_depth"):
        reconstruct(model, grid, rig, prior_depth=grid.depth[:2])


def test_the_model_sees_frames_at_its_own_size():
    assert model_size(256, 256, 128, 8) == (128, 128)
    assert model_size(256, 144, 128, 8) == (128, 72)
    assert model_size(1000, 10, 128, 8) == (128, 8)
