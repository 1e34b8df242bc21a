# SPDX-License-Identifier: Apache-2.0
"""Models small enough to run the whole pipeline in a second. Never the bundled ones."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def small_models(tmp_path_factory) -> dict[str, str]:
    """Random weights of the real architectures, small: what comes out is noise, but all of it."""
    import torch

    from viewtime.generator.load import save_generator
    from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer
    from viewtime.reconstructor.config import ReconstructorConfig
    from viewtime.reconstructor.load import save_reconstructor
    from viewtime.reconstructor.model import Reconstructor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    transformer = new_transformer(layers=2, heads=1, head_dim=24, ffn=32)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.02)
    config = GeneratorConfig(
        prediction="sample", prior_features=8, sigma=0.05, t_max=8, text_tokens=0
    )
    save_generator(folder / "generator", ViewTimeTransformer(transformer, config))
    small = ReconstructorConfig.small(dim=32, depth=4, heads=2, head_channels=(8, 8, 8, 8))
    save_reconstructor(folder / "reconstructor", Reconstructor(small))
    return {
        "generator": str(folder / "generator"),
        "reconstructor": str(folder / "reconstructor"),
    }
