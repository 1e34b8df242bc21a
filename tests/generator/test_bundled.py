# SPDX-License-Identifier: Apache-2.0
"""The bundled small generator does on a scene it never saw what its card says."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from viewtime.evaluation.metrics import mean_psnr
from viewtime.generator import generate, load_generator
from viewtime.generator.baselines import blend_references, nearest_reference
from viewtime.generator.prior import ROW
from viewtime.grid import FrameGrid
from viewtime.training.examples import HELD_OUT_SEED, grid_example


def test_it_beats_its_prior_and_by_far_both_naive_baselines():
    made = grid_example(
        HELD_OUT_SEED + 1, views=3, times=3, size=128, frame_step=3.0, fixed_view=0, freeze_time=0
    )
    given = made.known[..., None, None, None].astype(np.float32)
    grid, unseen = FrameGrid(made.truth * given, made.known), ~made.known
    prior = SimpleNamespace(
        frames=made.prior,
        valid=made.maps[:, :, 0] > 0,
        source=np.where(made.maps[:, :, 1] > 0, ROW, 0),
    )
    frames = generate(load_generator("bundled"), grid, prior=prior)

    def score(x):
        return mean_psnr(x, made.truth, unseen)

    assert score(frames) > score(made.prior)
    assert score(frames) > score(nearest_reference(grid, 0, 0)) + 3
    assert score(frames) > score(blend_references(grid, 0, 0)) + 3
