# SPDX-License-Identifier: Apache-2.0
"""The bundled reconstructor: it is small, says what it is, and knows more than a flat guess."""

import numpy as np
import torch

from viewtime.data.synthetic import sample_grid
from viewtime.evaluation import reconstructor
from viewtime.grid import FrameGrid
from viewtime.models import bundled_path, read_card
from viewtime.reconstructor.lift import agreed, predict, reconstruct
from viewtime.reconstructor.load import load_reconstructor
from viewtime.training.reconstructor import HELD_OUT, make_batch
from viewtime.training.reconstructor_loss import absolute_relative_error


def test_it_is_small_and_its_card_is_whole():
    weights = bundled_path("reconstructor-small") / "model.safetensors"
    assert weights.stat().st_size <= 6 << 20
    card = read_card("reconstructor-small")
    assert "synthetic" in card["training_data"] and "Gaussian head" in card["limits"]


def test_it_beats_a_flat_depth_on_scenes_it_never_saw():
    model = load_reconstructor()
    errors, flat = [], []
    with torch.no_grad():
        for n in range(3):
            batch = make_batch([HELD_OUT + 50 + n], 4, 1, 96, with_rays=True)
            depth = model(batch.frames, batch.rays).depth
            errors.append(absolute_relative_error(depth, batch.depth))
            flat.append(absolute_relative_error(torch.ones_like(depth), batch.depth))
    assert np.mean(errors) < 0.85 * np.mean(flat)


def test_with_a_rig_the_views_agree_on_the_true_depth():
    grid, rig = sample_grid(HELD_OUT + 101, 5, 1, 96)
    found = agreed(predict(load_reconstructor(), grid.frames, rig), grid.frames, 0)
    seen = np.isfinite(grid.depth[:, 0]) & np.isfinite(found)
    error = np.abs(found - grid.depth[:, 0])[seen] / grid.depth[:, 0][seen]
    assert np.median(error) < 0.05


def test_its_pictures_between_the_views_are_far_above_a_plane():
    """The goal over 16 scenes is 3 dB; these two are enough to see it lost."""
    found = reconstructor.evaluate(load_reconstructor(), scenes=2, size=64)
    for methods in found.values():
        assert methods["cameras given"]["psnr"] > methods["constant depth"]["psnr"] + 3


def test_splats_are_judged_at_the_dilation_they_were_made_for():
    grid, rig = sample_grid(HELD_OUT + 102, 2, 1, 32)
    bare, model = FrameGrid(grid.frames, grid.known), load_reconstructor()
    assert reconstructor.dilation_of(reconstruct(model, bare, rig)) == reconstructor.FINE
    learned = reconstruct(model, bare, rig, gaussians="learned")
    assert reconstructor.dilation_of(learned) == reconstructor.USUAL
