# SPDX-License-Identifier: Apache-2.0
"""The reprojection prior against the truth and against the two naive baselines."""

from __future__ import annotations

import numpy as np
import pytest

from viewtime.data.synthetic import sample_grid
from viewtime.evaluation.metrics import mean_psnr
from viewtime.generator.baselines import blend_references, nearest_reference
from viewtime.generator.prior import (
    COLUMN,
    GIVEN,
    HOLE,
    PREDICTED_NOISE,
    ROW,
    STILL,
    only_references,
    reprojection_prior,
)
from viewtime.grid import FrameGrid
from viewtime.progress import Cancelled
from viewtime_formats.errors import CaptureError

VIEWS, TIMES, SIZE = 4, 4, 64


@pytest.fixture(scope="module", params=[(0, 0), (1, 2)])
def moving(request):
    """A dynamic scene, its references for a fixed view and a freeze time, and the prior."""
    fixed_view, freeze_time = request.param
    grid, rig = sample_grid(102, VIEWS, TIMES, SIZE, frame_step=2)
    references = only_references(grid, fixed_view, freeze_time)
    prior = reprojection_prior(references, rig, fixed_view, freeze_time)
    return grid, rig, references, fixed_view, freeze_time, prior


def test_the_prior_beats_both_baselines_by_three_db(moving):
    grid, _, references, fixed_view, freeze_time, prior = moving
    unseen = ~references.known
    baselines = [
        mean_psnr(fill(references, fixed_view, freeze_time), grid.frames, unseen)
        for fill in (nearest_reference, blend_references)
    ]
    assert mean_psnr(prior.frames, grid.frames, unseen) > max(baselines) + 3


def test_known_cells_pass_through_and_the_rest_is_complete(moving):
    grid, _, references, _, _, prior = moving
    known = references.known
    np.testing.assert_array_equal(prior.frames[known], grid.frames[known])
    np.testing.assert_array_equal(prior.depth[known], grid.depth[known])
    assert (prior.source[known] == GIVEN).all() and (prior.source[~known] != GIVEN).all()
    assert np.isfinite(prior.frames).all()
    assert {COLUMN, ROW} <= set(np.unique(prior.source))


def test_holes_are_marked_in_depth_and_mask_alike(moving):
    prior = moving[-1]
    np.testing.assert_array_equal(np.isnan(prior.depth), ~prior.valid)
    np.testing.assert_array_equal(prior.source == HOLE, ~prior.valid)
    assert 0.9 < prior.valid.mean() <= 1


def test_the_priors_depth_is_nearer_to_the_truth_than_the_columns(moving):
    grid, _, references, _, freeze_time, prior = moving
    cells = ~references.known

    def share(depth):
        with np.errstate(invalid="ignore"):
            close = np.abs(depth - grid.depth) < 0.03 * grid.depth
        return (close | (np.isinf(depth) & np.isinf(grid.depth)))[cells].mean()

    column = np.broadcast_to(grid.depth[:, freeze_time, None], grid.depth.shape)
    assert share(prior.depth) > 0.85
    assert 1 - share(prior.depth) < 0.7 * (1 - share(column))


def test_its_evidence_holds_what_each_pixel_was_chosen_from(moving):
    _, rig, references, fixed_view, freeze_time, prior = moving
    evidence, unseen = prior.evidence, ~references.known
    assert not evidence[references.known].any()
    chosen = {COLUMN: 0, ROW: 3, STILL: 6}
    for source, first in chosen.items():
        here = (prior.source == source) & unseen[:, :, None, None]
        colours = np.moveaxis(evidence[:, :, first : first + 3], 2, -1)[here]
        frames = np.moveaxis(prior.frames, 2, -1)[here]
        assert here.any() and np.abs(colours - frames).max() < 2e-3
        assert (evidence[:, :, 9 + first // 3][here] == 1).all()
    assert (evidence[unseen][:, 12] == 1).all()
    settings = {"depth_noise": PREDICTED_NOISE}
    shaken = reprojection_prior(references, rig, fixed_view, freeze_time, **settings)
    assert (shaken.evidence[unseen][:, 12] == 0.5).all()
    lean = reprojection_prior(references, rig, fixed_view, freeze_time, evidence=False)
    assert lean.evidence is None and np.array_equal(lean.frames, prior.frames)
    part = prior.part([2, 0], [1])
    assert np.array_equal(part.frames, prior.frames[[2, 0]][:, [1]])
    assert np.array_equal(part.evidence, prior.evidence[[2, 0]][:, [1]])


def test_it_stops_when_asked(moving):
    _, rig, references, fixed_view, freeze_time, _ = moving
    with pytest.raises(Cancelled):
        reprojection_prior(references, rig, fixed_view, freeze_time, should_cancel=lambda: True)


def test_a_still_scene_gives_the_truth():
    grid, rig = sample_grid(102, VIEWS, 3, SIZE, still=True)
    references = only_references(grid, 0, 1)
    prior = reprojection_prior(references, rig, 0, 1)
    assert mean_psnr(prior.frames, grid.frames, ~references.known) > 38
    assert prior.valid.mean() > 0.998


def test_depth_noise_costs_little(moving):
    grid, rig, references, fixed_view, freeze_time, prior = moving
    rng = np.random.default_rng(0)
    noise = 1 + 0.01 * rng.normal(size=grid.depth.shape)
    noisy = FrameGrid(
        references.frames, references.known, (references.depth * noise).astype(np.float32)
    )
    shaken = reprojection_prior(noisy, rig, fixed_view, freeze_time, depth_noise=0.01)
    unseen = ~references.known
    clean = mean_psnr(prior.frames, grid.frames, unseen)
    assert mean_psnr(shaken.frames, grid.frames, unseen) > clean - 2


def test_other_known_cells_are_passed_through():
    grid, rig = sample_grid(102, 3, 3, 32)
    known = only_references(grid, 0, 0).known
    known[2, 2] = True
    partial = FrameGrid(grid.frames, known, grid.depth)
    prior = reprojection_prior(partial, rig, 0, 0)
    np.testing.assert_array_equal(prior.frames[2, 2], grid.frames[2, 2])


def test_a_prior_without_what_it_needs_says_what():
    grid, rig = sample_grid(102, 3, 3, 32)
    references = only_references(grid, 0, 0)
    without_depth = FrameGrid(references.frames, references.known, None)
    with pytest.raises(CaptureError, match="no depth"):
        reprojection_prior(without_depth, rig, 0, 0)
    with pytest.raises(CaptureError, match="view 0 at time 0 is unknown"):
        reprojection_prior(only_references(grid, 1, 1), rig, 0, 0)
    with pytest.raises(CaptureError, match="freeze time 3"):
        reprojection_prior(references, rig, 0, 3)


def test_the_baselines_copy_and_mix_reference_frames():
    grid, _ = sample_grid(102, 3, 4, 32)
    references = only_references(grid, 0, 0)
    nearest = nearest_reference(references, 0, 0)
    blend = blend_references(references, 0, 0)
    np.testing.assert_array_equal(nearest[1, 3], grid.frames[0, 3])
    np.testing.assert_array_equal(nearest[2, 1], grid.frames[2, 0])
    np.testing.assert_array_equal(nearest[1, 1], grid.frames[1, 0])
    np.testing.assert_allclose(blend[2, 3], (grid.frames[2, 0] + grid.frames[0, 3]) / 2)
    np.testing.assert_array_equal(nearest[references.known], grid.frames[references.known])
