# SPDX-License-Identifier: Apache-2.0
"""The bundled small generator does on scenes it never saw what its card says."""

from __future__ import annotations

import pytest

from viewtime.evaluation.generator import fill, held_out_scene, known_cells
from viewtime.evaluation.metrics import mean_psnr
from viewtime.generator import load_generator


@pytest.fixture(scope="module")
def generator():
    return load_generator("bundled")


def scores(generator, mode):
    """PSNR of each method over the unseen cells of a held-out scene."""
    scene = held_out_scene(1, views=3, times=3, size=128)
    unseen = ~known_cells(mode, scene)
    made = fill(generator, scene, mode, steps=4)
    return {name: mean_psnr(frames, scene.grid.frames, unseen) for name, frames in made.items()}


def test_with_depth_it_beats_its_prior_and_by_far_both_naive_baselines(generator):
    found = scores(generator, "depth")
    assert found["model"] > found["prior"]
    assert found["model"] > max(found["nearest"], found["blend"]) + 3
