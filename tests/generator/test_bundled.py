# SPDX-License-Identifier: Apache-2.0
"""The bundled small generator does on a scene it never saw what its card says."""

from __future__ import annotations

import pytest

from viewtime.evaluation.generator import fill, held_out_scene, known_cells
from viewtime.evaluation.metrics import mean_psnr
from viewtime.generator import load_generator
from viewtime.reconstructor.load import load_reconstructor


@pytest.fixture(scope="module")
def scores():
    """PSNR by mode and method over the unseen cells of a held-out scene."""
    generator, reconstructor = load_generator("bundled"), load_reconstructor("bundled")
    scene = held_out_scene(6, views=3, times=3, size=128)

    def of(mode):
        made = fill(generator, scene, mode, steps=4, reconstructor=reconstructor)
        unseen = ~known_cells(mode, scene)
        return {n: mean_psnr(frames, scene.grid.frames, unseen) for n, frames in made.items()}

    return of


@pytest.mark.parametrize("mode, above_prior", [("depth", 0.0), ("predicted", 0.3)])
def test_it_beats_its_prior_and_by_far_both_naive_baselines(scores, mode, above_prior):
    found = scores(mode)
    assert found["model"] > found["prior"] + above_prior
    assert found["model"] > max(found["nearest"], found["blend"]) + 3


@pytest.mark.parametrize("mode, above_start", [("both", 0.0), ("row", 0.5)])
def test_without_depth_it_is_better_than_the_copies_it_starts_from(scores, mode, above_start):
    found = scores(mode)
    assert found["model"] > found["start"] + above_start


def test_freeze_time_frames_alone_stay_still(scores):
    """They say nothing of how things move, see `hold_back`."""
    found = scores("column")
    assert found["model"] == pytest.approx(found["copy"], abs=0.01)
