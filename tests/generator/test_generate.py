# SPDX-License-Identifier: Apache-2.0
"""Generating grids: what must hold for any weights."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from viewtime.generator import Cancelled, GeneratorError, generate
from viewtime.generator.codec import PixelCodec, WanCodec
from viewtime.generator.load import Generator, load_generator, save_generator
from viewtime.generator.sampler import linear_schedule


@pytest.fixture
def small(make_model):
    return Generator("small", make_model(), PixelCodec())


@pytest.mark.parametrize("with_prior", [True, False])
def test_known_cells_come_back_bit_for_bit_and_the_rest_in_range(small, make_grid, with_prior):
    grid, prior = make_grid()
    frames = generate(small, grid, prior=prior if with_prior else None, steps=2)
    assert frames.dtype == np.float32 and frames.shape == grid.frames.shape
    assert np.array_equal(frames[grid.known], grid.frames[grid.known])
    assert frames.min() >= 0 and frames.max() <= 1
    assert np.ptp(frames[~grid.known]) > 0.1


def test_the_seed_decides_the_frames(small, make_grid):
    grid, prior = make_grid()
    once, again = (generate(small, grid, prior=prior, steps=2, seed=3) for _ in range(2))
    other = generate(small, grid, prior=prior, steps=2, seed=4)
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_every_step_reports_a_preview_that_ends_in_the_result(small, make_grid):
    grid, prior = make_grid()
    seen = []
    frames = generate(
        small, grid, prior=prior, steps=3, on_step=lambda *report: seen.append(report)
    )
    assert [(step, total) for step, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_allclose(seen[-1][2], frames, atol=1e-5)


def test_with_a_prior_no_more_steps_are_taken_than_do_good(make_model, make_grid):
    grid, prior = make_grid()
    generator = Generator("one", make_model(steps_with_prior=1), PixelCodec())
    for given, expected in ((prior, [(1, 1)]), (None, [(1, 3), (2, 3), (3, 3)])):
        seen = []
        generate(generator, grid, prior=given, steps=3, on_step=lambda *x, s=seen: s.append(x[:2]))
        assert seen == expected


def test_cancelling_stops_within_the_step(small, make_grid):
    grid, prior = make_grid()
    calls = []

    def cancel_at_the_second_block():
        calls.append(time.monotonic())
        return len(calls) == 2

    steps = []
    with pytest.raises(Cancelled):
        generate(small, grid, prior=prior, steps=4, on_step=lambda *x: steps.append(x),
                 should_cancel=cancel_at_the_second_block)  # fmt: skip
    assert len(calls) == 2 and not steps
    generate(small, grid, prior=prior, steps=1)  # and leaves the model as it was
    assert len(calls) == 2


def test_an_untrained_model_with_a_prior_returns_the_prior(make_model, make_grid):
    grid, prior = make_grid()
    generator = Generator("zero", make_model(zero_output=True), PixelCodec())
    for steps in (1, 3):
        frames = generate(generator, grid, prior=prior, steps=steps)
        missing = ~grid.known
        np.testing.assert_allclose(frames[missing], prior.frames[missing], atol=1e-5)


def test_what_does_not_fit_is_refused_with_numbers(small, make_model, make_grid):
    grid, prior = make_grid(size=20)
    with pytest.raises(GeneratorError, match="20 x 20 px .* multiples of 8 x 8: use 16 x 16"):
        generate(small, grid, prior=None)
    grid, prior = make_grid()
    with pytest.raises(GeneratorError, match="steps is 0"):
        generate(small, grid, prior=prior, steps=0)
    plain = Generator("plain", make_model(prior_features=0), PixelCodec())
    with pytest.raises(GeneratorError, match="plain takes no prior"):
        generate(plain, grid, prior=prior)
    grid.frames = grid.frames[:, :2]
    grid.known = grid.known[:, :2]
    with pytest.raises(GeneratorError, match=r"prior has frames \(3, 3, 3, 16, 16\)"):
        generate(small, grid, prior=prior)


def test_saved_and_loaded_again_it_generates_the_same(small, make_grid, tmp_path):
    grid, prior = make_grid()
    save_generator(tmp_path, small.model)
    loaded = load_generator(tmp_path)
    assert loaded.model.config == small.model.config
    state, loaded_state = small.model.state_dict(), loaded.model.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[key], loaded_state[key]) for key in state)
    expected = generate(small, grid, prior=prior, steps=2)
    again = generate(loaded, grid, prior=prior, steps=2)  # other memory, other alignment
    np.testing.assert_allclose(again, expected, atol=1e-5)


def test_pickles_and_lying_configs_are_refused(small, tmp_path):
    save_generator(tmp_path, small.model)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"sample"', '"x"'))
    with pytest.raises(GeneratorError, match="'x', must be one of velocity, sample"):
        load_generator(tmp_path)
    (tmp_path / "config.json").write_text(config.replace("sigma_invalid", "sigma_bad"))
    with pytest.raises(GeneratorError, match="unknown generator settings: sigma_bad"):
        load_generator(tmp_path)
    (tmp_path / "config.json").write_text(config)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save({}, tmp_path / "transformer" / "diffusion_pytorch_model.bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(GeneratorError, match="transformer|safetensors|header"):
        load_generator(tmp_path)
    weights.unlink()
    with pytest.raises(GeneratorError, match="no .safetensors weights"):
        load_generator(tmp_path)


def test_the_schedule_spends_no_step_at_the_end():
    assert linear_schedule(4) == [1.0, 0.75, 0.5, 0.25]


@pytest.fixture
def wan_generator(tmp_path):
    """The VAE route, saved by diffusers and loaded by us."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    torch.manual_seed(0)
    AutoencoderKLWan(
        base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[2.0] * 4
    ).save_pretrained(tmp_path / "vae")
    WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=24, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=1,
    ).save_pretrained(tmp_path / "transformer")  # fmt: skip
    return load_generator(tmp_path)


def test_the_vae_route_generates_from_a_row_and_a_column(wan_generator, make_grid):
    assert isinstance(wan_generator.codec, WanCodec)
    grid, _ = make_grid(views=2, times=5, size=32)
    frames = generate(wan_generator, grid, prior=None, steps=1)
    assert frames.shape == grid.frames.shape
    assert np.array_equal(frames[grid.known], grid.frames[grid.known])


def test_each_view_is_encoded_alone(wan_generator):
    codec, frames = wan_generator.codec, torch.rand(3, 5, 3, 16, 16)
    together = codec.encode(frames)
    assert together.shape == (3, 2, 4, 2, 2)
    assert torch.equal(together[1:2], codec.encode(frames[1:2]))
    assert torch.equal(together[:, :1], codec.encode(frames[:, :1]))  # causal: frame 0 alone


def test_lengths_the_vae_would_cut_silently_are_refused(wan_generator, make_grid):
    grid, _ = make_grid(views=2, times=6, size=32)
    with pytest.raises(GeneratorError, match="view 0 has 6 known .* 1 \\+ 4k|use 5 or 9"):
        generate(wan_generator, grid, prior=None, steps=1)
    with pytest.raises(GeneratorError, match="6 frames per view .* use 5 or 9"):
        wan_generator.codec.encode(torch.rand(1, 6, 3, 16, 16))
    grid, _ = make_grid(views=2, times=5, size=32)
    grid.known[1] = [False, False, True, False, False]
    with pytest.raises(GeneratorError, match="view 1 at time 2 .* put freeze-time .* at time 0"):
        generate(wan_generator, grid, prior=None, steps=1)


def test_a_latent_is_as_valid_as_its_worst_pixel(wan_generator):
    maps = torch.ones(1, 5, 2, 16, 16)
    maps[0, 3, 1, 9, 2] = 0
    latent = wan_generator.codec.shrink(maps)
    assert latent.shape == (1, 2, 2, 2, 2)
    assert latent.sum() == 15 and latent[0, 1, 1, 1, 0] == 0


def test_the_function_is_found_whatever_was_imported_before():
    import viewtime.generator.generation
    import viewtime.generator.load  # noqa: F401
    import viewtime.generator.sampler  # noqa: F401
    from viewtime.generator import generate as found

    assert found is viewtime.generator.generation.generate
