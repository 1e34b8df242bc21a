# SPDX-License-Identifier: Apache-2.0
"""The optimised baseline: its field, its refusals, and that it fits, with a rasteriser for the CPU
in the place of gsplat's (whose densification runs as it is)."""

import dataclasses
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch

from viewtime.cli import main
from viewtime.data.synthetic import sample_grid
from viewtime.evaluation import reconstructor_optimised as optimised
from viewtime.evaluation.reconstructor import picture_score
from viewtime.gaussians.tensors import CameraTensors, GaussianTensors, render_tensors
from viewtime.generator import generation
from viewtime.grid import FrameGrid
from viewtime_formats.errors import CaptureError, ViewtimeError

TINY = optimised.Fitting(
    steps=60, still=25, points=400, features=4, resolutions=(8,), times=4, width=16,
    means_rate=2e-3, colours_rate=5e-2, planes_rate=1e-2, field_rate=1e-3,
)  # fmt: skip


def on_cpu(means, quats, scales, opacities, colors, viewmats, Ks, width, height, packed):
    """gsplat.rasterization's signature and answer by our own rasteriser."""
    assert not packed
    cameras = CameraTensors(viewmats, Ks, width, height)
    shown = render_tensors(
        GaussianTensors(means, scales, quats, opacities, colors), cameras,
        background=(0.0, 0.0, 0.0), dilation=0.3, near=0.01,
    )  # fmt: skip
    local = means @ viewmats[0, :3, :3].T + viewmats[0, :3, 3]
    flat = (local @ Ks[0].T)[:, :2] / local[:, 2:].clamp(min=1e-3)
    means2d = flat[None]
    radii = torch.ones(1, len(means), 2, dtype=torch.int32)
    info = {"means2d": means2d, "width": width, "height": height, "n_cameras": 1,
            "radii": radii, "gaussian_ids": None}  # fmt: skip
    return shown.color + 0.0 * means2d.sum(), shown.alpha, info


@pytest.fixture(scope="module")
def scene():
    return sample_grid(10_000_004, 4, 3, 16, frame_step=4.0)


def test_nothing_is_deformed_at_first_and_each_time_may_differ_later():
    field = optimised.Deformation(TINY, torch.zeros(3), 2.0)
    means = torch.randn(7, 3)
    assert all((change == 0).all() for change in field(means, 0.3))
    for head in field.heads:
        torch.nn.init.normal_(head.weight)
    with torch.no_grad():
        for plane in field.planes:
            plane.uniform_(0.1, 1.0)
    early, late = field(means, -1.0)[0], field(means, 1.0)[0]
    assert early.shape == (7, 3) and (early - late).abs().max() > 1e-4


def test_it_fits_what_it_is_shown_and_only_that(scene):
    grid, rig = scene
    cells = np.ones((4, 3), bool)
    before = optimised.fit(
        grid.frames, rig, cells, dataclasses.replace(TINY, steps=0), rasterise=on_cpu
    )
    blind = np.where(cells[..., None, None, None], grid.frames, 0)
    seen = []
    after = optimised.fit(
        blind, rig, cells, TINY, rasterise=on_cpu, on_step=lambda i, n: seen.append((i, n))
    )
    scores = [
        picture_score(optimised.draw(f, rig, rasterise=on_cpu), grid.frames)["psnr"]
        for f in (before, after)
    ]
    assert scores[1] > scores[0] + 3.0 and seen[-1] == (60, 60)
    moved = after.field(after.gaussians["means"], 1.0)[0]
    assert moved.abs().max() > 0
    hidden = grid.frames.copy()
    hidden[1, 1:] = np.nan  # not to be looked at
    cells[1, 1:] = False
    fitted = optimised.fit(
        hidden, rig, cells, dataclasses.replace(TINY, steps=30), rasterise=on_cpu
    )
    assert all(torch.isfinite(p).all() for p in fitted.gaussians.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_in_words(scene, capsys):
    grid, rig = scene
    with pytest.raises(ViewtimeError, match="needs a CUDA GPU"):
        optimised.fit(grid.frames, rig, np.ones((4, 3), bool), TINY)
    with pytest.raises(ViewtimeError, match="needs a CUDA GPU"):
        optimised.system_diagnosis(None, None, grid, rig)
    assert main(["evaluate", "reconstructor", "--table", "S6", "--folder", "nowhere"]) != 0
    assert "needs a CUDA GPU" in capsys.readouterr().err


def test_a_grid_of_which_nothing_is_given_is_refused(scene):
    grid, rig = scene
    with pytest.raises(ValueError, match="no cell"):
        optimised.fit(grid.frames, rig, np.zeros((4, 3), bool), TINY, rasterise=on_cpu)


def test_table_s6_runs_through_all_three_ways(scene, monkeypatch):
    from viewtime.reconstructor.config import ReconstructorConfig
    from viewtime.reconstructor.model import Reconstructor

    grid, rig = sample_grid(10_000_004, 12, 2, 16, frame_step=4.0)
    monkeypatch.setattr(optimised, "gsplat_rasteriser", lambda: on_cpu)
    fit = optimised.fit
    given = []

    def on_cpu_fit(frames, rig, cells, fitting):
        given.append((cells.copy(), len(rig)))
        return fit(frames, rig, cells, fitting, rasterise=on_cpu)

    monkeypatch.setattr(optimised, "fit", on_cpu_fit)

    def filled(generator, references, **_):
        known = references.known[..., None, None, None]
        return np.where(known, references.frames, np.float32(0.5))

    monkeypatch.setattr(
        generation, "generate", create_autospec(generation.generate, side_effect=filled)
    )
    torch.manual_seed(0)
    model = Reconstructor(ReconstructorConfig.small(
        dim=32, depth=4, heads=2, camera_heads=2, head_channels=(8, 8, 8, 8), head_features=8,
        size=16,
    )).eval()  # fmt: skip
    found = optimised.system_diagnosis(
        model, None, grid, rig, fitting=dataclasses.replace(TINY, steps=4)
    )
    assert list(found) == ["4DGS", "generator + 4DGS", "generator + feed-forward"]
    assert all(np.isfinite(score["psnr"]) for score in found.values())
    lines = optimised.table([("balloon", found), ("skating", found)]).splitlines()
    assert lines[2].startswith("| 4DGS | mean of 2 |") and len(lines) == 2 + 3 * 3
    sparse, dense = given
    assert sparse[1] == dense[1] == 8 and sparse[0].sum() == 8 + 2 - 1 and dense[0].all()
    few = FrameGrid(grid.frames[:5], grid.known[:5])
    with pytest.raises(CaptureError, match="the scene has 5"):
        optimised.system_diagnosis(model, None, few, rig)
