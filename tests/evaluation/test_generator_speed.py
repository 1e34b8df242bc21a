# SPDX-License-Identifier: Apache-2.0
"""What a cache and windows cost: the figures say what happened, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from viewtime.evaluation.generator_speed import (
    Task,
    cache_costs,
    cache_table,
    window_costs,
    window_table,
)
from viewtime.generator.codec import PixelCodec
from viewtime.generator.errors import GeneratorError
from viewtime.generator.load import Generator
from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    transformer = new_transformer(layers=3, heads=1, head_dim=24, ffn=32)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.05)
    config = GeneratorConfig(
        prediction="sample", prior_features=4, sigma=0.05, t_max=8, text_tokens=0,
        steps_with_prior=1,
    )  # fmt: skip
    return Generator("small", ViewTimeTransformer(transformer, config).eval(), PixelCodec())


def test_a_cache_costs_what_it_skips_and_every_step_is_taken(small):
    task = Task(scenes=2, views=3, times=3, size=32, steps=4)
    config = small.model.config
    off, never, always = cache_costs(small, [1e-6, 1e5], task)
    assert (off.threshold, never.threshold, always.threshold) == (None, 1e-6, 1e5)
    assert off.computed == never.computed == 1 and always.computed == 0.25  # the first step alone
    assert np.isinf(off.to_uncached) and never.to_uncached > 80
    assert 0 < always.to_uncached < 60
    assert always.to_truth != off.to_truth == pytest.approx(never.to_truth, abs=1e-3)
    assert not small.model.transformer.is_cache_enabled and small.model.config is config
    text = cache_table([off, never, always], task)
    assert "| off | 100% |" in text and "| same |" in text and "| 100000 | 25% |" in text


def test_windows_are_judged_beside_the_whole_grid_at_the_same_places(small):
    task = Task(scenes=1, views=3, times=5, size=32, steps=1)
    deep, _ = window_costs(small, [(3, 3)], replace(task, depth=True), overlap=(1, 1))
    whole, parts = window_costs(small, [(3, 3)], task, overlap=(1, 1))
    assert deep.to_truth > whole.to_truth + 0.3  # reprojected pixels are closer than copied frames
    assert whole.window is None and parts.window == whole.at == parts.at == (3, 3)
    assert whole.to_truth != parts.to_truth
    assert np.isnan(parts.seams["views"]["seam"])  # all views are in each window
    for cost in (whole, parts):
        seam = cost.seams["times"]
        assert seam["ratio"] == pytest.approx(seam["seam"] / seam["inside"])
    text = window_table([whole, parts], task)
    assert "whole grid, at the seams of 3x3" in text and text.count("| none |") == 2
    with pytest.raises(GeneratorError, match="a window of 3x5 holds the whole grid of 3 views x 5"):
        window_costs(small, [(3, 5)], task)
