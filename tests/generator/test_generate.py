# SPDX-License-Identifier: Apache-2.0
"""Generating grids: what must hold for any weights."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from viewtime.generator import Cancelled, GeneratorError, generate
from viewtime.generator.codec import PixelCodec, WanCodec
from viewtime.generator.conditioning import Conditions
from viewtime.generator.generation import default_guidance, latent_preview
from viewtime.generator.load import Generator, load_generator, save_generator
from viewtime.generator.naive import naive_prior
from viewtime.generator.sampler import linear_schedule, sample


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
    few, many = [(1, 1)], [(1, 3), (2, 3), (3, 3)]
    nothing = SimpleNamespace(frames=grid.frames * 0, known=grid.known & False, depth=None)
    for these, given, expected in ((grid, prior, few), (grid, None, few), (nothing, None, many)):
        seen = []
        generate(generator, these, prior=given, steps=3, on_step=lambda *x, s=seen: s.append(x[:2]))
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


def test_without_a_prior_it_starts_from_the_references_and_from_noise_without_these(
    make_model, make_grid
):
    grid, _ = make_grid()
    generator = Generator("zero", make_model(zero_output=True), PixelCodec())
    frames = generate(generator, grid, prior=None, steps=2)
    np.testing.assert_allclose(frames, naive_prior(grid.frames, grid.known).frames, atol=1e-5)
    row = SimpleNamespace(frames=grid.frames, known=grid.known.copy(), depth=None)
    row.known[1:] = False
    copied = generate(generator, row, prior=None, steps=2)
    np.testing.assert_allclose(copied, np.repeat(grid.frames[:1], 3, axis=0), atol=1e-5)
    # A black reference is one; no reference is something else.
    black = SimpleNamespace(frames=grid.frames * 0, known=row.known, depth=None)
    nothing = SimpleNamespace(frames=grid.frames * 0, known=row.known & False, depth=None)
    assert not generate(generator, black, prior=None, steps=2).any()
    other = Generator("any", make_model(), PixelCodec())
    from_black, from_noise = (generate(other, g, prior=None, steps=1) for g in (black, nothing))
    assert np.abs(from_black - from_noise).mean() > 0.05


def test_a_model_that_wants_evidence_is_given_it_or_says_so(make_model, make_grid):
    grid, prior = make_grid()
    generator = Generator("choosing", make_model(prior_maps=16, prior_context=4), PixelCodec())
    assert generator.takes_evidence
    with pytest.raises(GeneratorError, match="wants the evidence of its prior"):
        generate(generator, grid, prior=prior, steps=1)
    assert generate(generator, grid, prior=None, steps=1).shape == grid.frames.shape
    with pytest.raises(GeneratorError, match="wants 5 maps of its prior, there are 3 or 16"):
        generate(Generator("odd", make_model(prior_maps=5), PixelCodec()), grid, prior=None)


def test_what_does_not_fit_is_refused_with_numbers(small, make_model, make_grid):
    grid, prior = make_grid(size=20)
    with pytest.raises(GeneratorError, match="20 x 20 px .* multiples of 8 x 8: use 16 x 16"):
        generate(small, grid, prior=None)
    grid, prior = make_grid()
    with pytest.raises(GeneratorError, match="steps is 0"):
        generate(small, grid, prior=prior, steps=0)
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


@pytest.mark.parametrize(
    "index",
    [
        {"boundary_ratio": 0.875},
        {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": None},
        None,
    ],
)
def test_a_checkpoint_of_two_experts_is_refused_and_those_that_work_are_named(
    small, tmp_path, index
):
    """Wan2.2-T2V-A14B: its second transformer takes over below a boundary of the noise."""
    save_generator(tmp_path, small.model)
    if index is None:
        (tmp_path / "transformer_2").mkdir()
    else:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(GeneratorError, match="two transformers.*Wan2.1-T2V-14B, Wan2.2-TI2V-5B"):
        load_generator(tmp_path)


def test_an_index_that_names_no_second_transformer_is_fine(small, tmp_path):
    """As Wan2.2-TI2V-5B has it."""
    save_generator(tmp_path, small.model)
    index = {"boundary_ratio": None, "expand_timesteps": True, "transformer_2": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert load_generator(tmp_path).model.config == small.model.config


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
    with pytest.raises(GeneratorError, match="6 frames per view .* use 5 or 9"):
        generate(wan_generator, grid, prior=None, steps=1)
    with pytest.raises(GeneratorError, match="6 frames per view .* use 5 or 9"):
        wan_generator.codec.encode(torch.rand(1, 6, 3, 16, 16))


def test_a_moment_frozen_in_the_middle_of_a_clip_leads_and_is_not_kept(wan_generator, make_grid):
    """The rule for latents that mix 4 frames: exact only where all frames so far are known."""
    codec = wan_generator.codec
    frames, known = torch.rand(3, 9, 3, 16, 16), torch.zeros(3, 9, dtype=torch.bool)
    known[0] = True  # the fixed view
    known[1, 6] = True  # a freeze-time frame within latent 2, which mixes frames 5 to 8
    known[2, :7] = True  # frames 0 to 6: latents 0 and 1 are whole, latent 2 is not
    latents, is_known, exact = codec.encode_known(frames, known)
    assert is_known.tolist() == [[True] * 3, [False, False, True], [True] * 3]
    assert exact.tolist() == [[True] * 3, [False] * 3, [True, True, False]]
    assert torch.equal(latents[0], codec.encode(frames[:1])[0])
    still = frames[1:2, 6:7].expand(1, 9, 3, 16, 16)
    assert torch.equal(latents[1, 2], codec.encode(still)[0, 2])
    assert torch.equal(latents[2, :2], codec.encode(frames[2:3, :5])[0])

    grid, _ = make_grid(views=2, times=5, size=32)
    grid.known[1] = [False, False, True, False, False]
    made = generate(wan_generator, grid, prior=None, steps=1)
    assert np.array_equal(made[grid.known], grid.frames[grid.known])  # pixels are always kept


def test_a_budget_decides_how_many_views_go_through_the_vae_at_once(wan_generator):
    codec = wan_generator.codec
    assert codec.views_at_once(32, 32) == 1
    codec.budget = 3 * codec.bytes_per_view(32, 32) + 1
    assert codec.views_at_once(32, 32) == 3 and codec.views_at_once(64, 64) == 1
    latents, calls = torch.randn(4, 2, 4, 4, 4), []
    decode = codec.vae.decode
    codec.vae.decode = lambda z: calls.append(len(z)) or decode(z)
    together = codec.decode(latents)
    assert calls == [3, 1] and not codec.vae.use_tiling
    codec.limit(codec.bytes_per_view(32, 32) - 1)
    assert codec.views_at_once(32, 32) == 1 and codec.vae.use_tiling
    codec.limit(None)
    torch.testing.assert_close(codec.decode(latents), together)


def test_views_that_know_the_same_frames_go_through_the_vae_at_once(wan_generator):
    codec, calls = wan_generator.codec, []
    frames, known = torch.rand(5, 9, 3, 16, 16), torch.zeros(5, 9, dtype=torch.bool)
    known[0] = known[:, 0] = True  # a row and a column at the first time
    known[1:4, 6] = known[1, 3] = True  # and frames within latents 1 and 2
    one_by_one = codec.encode_known(frames, known)
    encode = codec.vae.encode
    codec.vae.encode = lambda x: calls.append((x.shape[0], x.shape[2])) or encode(x)
    codec.budget = 3 * codec.bytes_per_view(16, 16)
    together = codec.encode_known(frames, known)
    # The row; the column, by three; one latent 1, three latents 2, each frame standing still.
    assert sorted(calls) == [(1, 1), (1, 5), (1, 9), (3, 1), (3, 9)]
    for some, alone in zip(together, one_by_one):
        torch.testing.assert_close(some, alone)


def test_cancelling_is_asked_for_within_the_vae(wan_generator, make_grid):
    """Encoding and decoding take minutes at full size: at each latent's frames it is asked."""
    grid, _ = make_grid(views=2, times=5, size=32)
    codec, asked, parts = wan_generator.codec, [], []
    for part in (codec.vae.encoder, codec.vae.decoder):
        part.register_forward_pre_hook(lambda *_: parts.append(len(asked)))

    def give_up(after):
        asked.clear()
        parts.clear()

        def cancel():
            asked.append(1)
            return len(asked) == after

        return cancel

    plain = generate(wan_generator, grid, prior=None, steps=1, should_cancel=give_up(0))
    total, work = len(asked), list(parts)
    assert total == len(work) + 1  # and before the one block at the one step
    for after in (2, total - 1):
        with pytest.raises(Cancelled):
            generate(wan_generator, grid, prior=None, steps=1, should_cancel=give_up(after))
        assert len(asked) == after
    again = generate(wan_generator, grid, prior=None, steps=1)
    assert np.array_equal(again, plain)  # and nothing is left of what was broken off


def test_a_preview_of_latents_has_the_grid_of_the_latents_and_colours():
    shown = latent_preview(torch.randn(2, 3, 16, 4, 6))
    assert shown.shape == (2, 3, 3, 4, 6) and 0 <= shown.min() < shown.max() <= 1


def test_pixels_of_a_prior_lead_a_model_that_takes_none(make_model, make_grid):
    """Training-free: where the prior is valid, the frames stay near it; elsewhere they are free.

    The model's velocity is zero, so that nothing else moves a pixel.
    """
    grid, prior = make_grid()
    still = make_model(prior_features=0, prediction="velocity", zero_output=True)
    plain = Generator("plain", still, PixelCodec())
    led = generate(plain, grid, prior=prior, steps=8)
    free = generate(plain, grid, prior=None, steps=8)
    made = ~grid.known[:, :, None, None] & np.ones_like(prior.valid)
    away_led, away_free = (np.abs(x - prior.frames).mean(axis=2) for x in (led, free))
    assert away_led[made & prior.valid].mean() < 0.7 * away_free[made & prior.valid].mean()
    assert away_led[made & ~prior.valid].mean() > 0.8 * away_free[made & ~prior.valid].mean()


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_both_solvers_follow_a_straight_flow_to_its_end(make_model, solver):
    """A model that knows the clean latents gives a constant velocity; any solver must get there."""
    model = make_model(prior_features=0)
    clean = torch.randn(1, 2, 2, 3, 16, 16)
    model.predict = lambda x, t, conditions, **_: clean
    known = torch.zeros(1, 2, 2, dtype=torch.bool)
    conditions = Conditions(torch.zeros_like(clean), known, torch.zeros(1, 0, 16))
    out = sample(model, conditions, torch.randn_like(clean), linear_schedule(4), solver=solver)
    torch.testing.assert_close(out, clean, atol=2e-3, rtol=0)
    with pytest.raises(GeneratorError, match="solver is 'heun', must be one of euler, unipc"):
        sample(model, conditions, clean, [1.0], solver="heun")


def test_guidance_moves_away_from_the_negative_text(make_model):
    model = make_model(prior_features=0, prediction="velocity")
    x = torch.randn(1, 2, 2, 3, 16, 16)
    model.predict = lambda x, t, conditions, **_: x * 0 + conditions.text.mean()
    known = torch.zeros(1, 2, 2, dtype=torch.bool)
    conditions = Conditions(torch.zeros_like(x), known, torch.full((1, 4, 16), 2.0))
    negative = torch.full((1, 4, 16), 1.0)
    out = sample(model, conditions, x, [1.0], guidance=3.0, negative=negative)
    torch.testing.assert_close(out, x - (1.0 + 3.0 * (2.0 - 1.0)))
    with pytest.raises(GeneratorError, match="guidance is 3.0, which needs a negative text"):
        sample(model, conditions, x, [1.0], guidance=3.0)


def test_guidance_is_off_with_both_references_and_on_with_one(tmp_path):
    known = np.zeros((3, 5), bool)
    known[0] = True
    told = SimpleNamespace(takes_text=True)
    assert default_guidance(told, known) == 5.0
    known[:, 0] = True
    assert default_guidance(told, known) == 1.0
    assert default_guidance(SimpleNamespace(takes_text=False), known[:1]) == 1.0


def test_a_shifted_schedule_is_wans():
    assert linear_schedule(4, shift=3.0) == pytest.approx([1.0, 0.9, 0.75, 0.5])


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
