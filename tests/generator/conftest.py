# SPDX-License-Identifier: Apache-2.0
"""Small random models and grids for the generator's tests."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch


@pytest.fixture
def stock_transformer():
    """A stock Wan transformer of random weights, as a checkpoint would give it."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2,
    ).eval()  # fmt: skip


@pytest.fixture
def make_model():
    """Random pixel-space models like the bundled one, but tiny."""
    from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer

    def make(seed=0, zero_output=False, **settings):
        torch.manual_seed(seed)
        transformer = new_transformer(layers=2, heads=1, head_dim=24, ffn=32)
        if not zero_output:
            torch.nn.init.normal_(transformer.proj_out.weight, std=0.02)
        settings = {"prediction": "sample", "prior_features": 8, "sigma": 0.05, "t_max": 8,
                    "text_tokens": 0, **settings}  # fmt: skip
        return ViewTimeTransformer(transformer, GeneratorConfig(**settings)).eval()

    return make


@pytest.fixture
def make_grid():
    """Grids of noise with the fixed view 0 and the freeze-time column 0 known, and a prior."""

    def make(views=3, times=3, size=16, seed=0):
        rng = np.random.default_rng(seed)
        frames = rng.random((views, times, 3, size, size), dtype=np.float32)
        known = np.zeros((views, times), bool)
        known[0] = known[:, 0] = True
        prior = SimpleNamespace(
            frames=rng.random(frames.shape, dtype=np.float32),
            valid=rng.random((views, times, size, size)) > 0.3,
            source=rng.integers(0, 4, (views, times, size, size), dtype=np.uint8),
            evidence=None,
        )
        given = np.where(known[..., None, None, None], frames, 0)
        return SimpleNamespace(frames=given, known=known, depth=None), prior

    return make
