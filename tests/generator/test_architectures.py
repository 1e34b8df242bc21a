# SPDX-License-Identifier: Apache-2.0
"""The paper's alternatives (Fig. 3, appendix B) as choices of one model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from viewtime.generator.architectures import ARCHITECTURES
from viewtime.generator.codec import PixelCodec
from viewtime.generator.conditioning import Conditions, to_video
from viewtime.generator.errors import GeneratorError
from viewtime.generator.generation import generate, make_conditions
from viewtime.generator.load import Generator, load_generator, read_config, save_generator
from viewtime.generator.model import REFERENCES, GeneratorConfig, ViewTimeTransformer
from viewtime.generator.positions import POSITIONS
from viewtime.generator.sampler import sample


def unconditioned(x):
    known = torch.zeros(x.shape[:3], dtype=torch.bool)
    return Conditions(torch.zeros_like(x), known, torch.zeros(x.shape[0], 1, 8))


def reached(model, views=3, times=4, cell=(1, 2)):
    """(V, T) bool: the cells of the input that a cell of the output depends on."""
    x = torch.randn(1, views, times, 4, 2, 2, requires_grad=True)
    out = model(x, torch.ones(1), unconditioned(x))
    (gradient,) = torch.autograd.grad(out[0, cell[0], cell[1]].sum(), x)
    return gradient[0].abs().amax(dim=(2, 3, 4)) > 0


def save_vae(folder):
    from diffusers import AutoencoderKLWan

    AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4,
                     latents_std=[1.0] * 4).save_pretrained(folder / "vae")  # fmt: skip


def save_stock(folder, transformer):
    """A checkpoint's folder as diffusers saves it, with nothing of ours."""
    transformer.save_pretrained(folder / "transformer")
    save_vae(folder)


def one_layer(transformer):
    transformer.blocks = transformer.blocks[:1]
    return transformer


ROW = torch.zeros(3, 4, dtype=torch.bool)
ROW[1] = True
COLUMN = torch.zeros(3, 4, dtype=torch.bool)
COLUMN[:, 2] = True


@pytest.mark.parametrize("architecture, seen", [
    ("fused", ROW | COLUMN),
    ("sequential", ROW),
    ("sequential_added", ROW),  # what is added starts at zero
    ("parallel", ROW | COLUMN),
    ("parallel_average", ROW | COLUMN),
])  # fmt: skip
def test_who_sees_whom_in_one_layer(stock_transformer, architecture, seen):
    model = ViewTimeTransformer(
        one_layer(stock_transformer), GeneratorConfig(architecture=architecture)
    )
    assert torch.equal(reached(model), seen)


def test_two_interleaved_layers_reach_the_whole_grid_and_one_cannot(stock_transformer):
    model = ViewTimeTransformer(stock_transformer, GeneratorConfig(architecture="sequential"))
    assert reached(model).all()


def test_an_added_layer_sees_the_column_once_it_is_trained(stock_transformer):
    model = ViewTimeTransformer(
        one_layer(stock_transformer), GeneratorConfig(architecture="sequential_added")
    )
    torch.nn.init.normal_(model.added_layers[0].out.weight, std=0.1)
    # The column before the block, the row within it: together the whole grid.
    assert reached(model).all()


def test_the_parallel_layer_starts_as_the_mean_of_its_branches(stock_transformer):
    x = torch.randn(1, 2, 3, 4, 2, 2)
    mixing = ViewTimeTransformer(stock_transformer, GeneratorConfig(architecture="parallel"))
    with torch.no_grad():
        by_layer = mixing(x, torch.ones(1), unconditioned(x))
        state = mixing.transformer.state_dict()
    from diffusers import WanTransformer3DModel

    twin = WanTransformer3DModel.from_config(stock_transformer.config).eval()
    mean = ViewTimeTransformer(twin, GeneratorConfig(architecture="parallel_average"))
    mean.transformer.load_state_dict(state)
    with torch.no_grad():
        by_mean = mean(x, torch.ones(1), unconditioned(x))
    torch.testing.assert_close(by_layer, by_mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_choice_saves_and_loads_and_leaves_the_stock_keys_alone(
    stock_transformer, tmp_path, architecture, positions
):
    keys = set(stock_transformer.state_dict())
    config = GeneratorConfig(architecture=architecture, positions=positions, text_tokens=1)
    model = ViewTimeTransformer(stock_transformer, config).eval()
    with torch.no_grad():
        for parameter in [*model.added_layers.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.05)
        if model.view_embedding is not None:
            torch.nn.init.normal_(model.view_embedding.mlp[-1].weight, std=0.5)
    assert set(model.transformer.state_dict()) == keys
    save_generator(tmp_path, model)
    save_vae(tmp_path)
    again = load_generator(tmp_path).model
    x = torch.randn(1, 2, 3, 4, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            again(x, torch.ones(1), unconditioned(x)),
            model(x, torch.ones(1), unconditioned(x)),
        )
    fresh = load_generator(tmp_path, config=GeneratorConfig(text_tokens=1)).model
    assert set(fresh.transformer.state_dict()) == keys


def test_a_view_embedding_tells_views_apart_that_their_positions_do_not(stock_transformer):
    """With learned positions the rotary table knows times alone; the sum confuses diagonals."""
    x = torch.randn(1, 1, 1, 4, 2, 2).expand(1, 2, 2, 4, 2, 2).contiguous()

    def made(kind, train=False):
        from diffusers import WanTransformer3DModel

        twin = WanTransformer3DModel.from_config(stock_transformer.config).eval()
        twin.load_state_dict(stock_transformer.state_dict())
        model = ViewTimeTransformer(twin, GeneratorConfig(positions=kind))
        if train:
            torch.nn.init.normal_(model.view_embedding.mlp[-1].weight, std=2.0)
        # Inputs that differ from cell to cell, but alike along the diagonal.
        varied = x + torch.tensor([[0.0, 1.0], [1.0, 2.0]])[None, :, :, None, None, None]
        with torch.no_grad():
            return model(varied, torch.ones(1), unconditioned(x))[0]

    summed, flat = made("sum"), made("flat")
    torch.testing.assert_close(summed[0, 1], summed[1, 0])
    assert (flat[0, 1] - flat[1, 0]).abs().max() > 1e-5
    fresh, trained = made("learned"), made("learned", train=True)
    assert (fresh - trained).abs().max() > 1e-5


def test_references_as_clean_tokens_have_no_noise_and_a_time_of_their_own(stock_transformer):
    """TI2V-5B takes a timestep per token; a reference's is 0 and it enters as it is."""
    model = ViewTimeTransformer(stock_transformer, GeneratorConfig(references="clean"))
    x, reference = torch.randn(2, 1, 2, 3, 4, 4, 4).unbind()
    known = torch.zeros(1, 2, 3, dtype=torch.bool)
    known[0, 0] = True
    conditions = Conditions(reference, known, torch.zeros(1, 1, 8))
    t = torch.tensor([0.7])
    seen = []
    stock = model.transformer.forward
    model.transformer.forward = lambda **given: seen.append(given) or stock(**given)
    with torch.no_grad():
        model(x, t, conditions)
    (given,) = seen
    frames = given["hidden_states"].transpose(1, 2).unflatten(1, (2, 3))
    assert torch.equal(frames[:, 0], reference[:, 0]) and torch.equal(frames[:, 1], x[:, 1])
    timestep = given["timestep"].unflatten(1, (2, 3, 4))  # 4 tokens per cell
    assert (timestep[:, 0] == 0).all() and (timestep[:, 1] == 700).all()
    # Without references the per-token way is the stock one.
    from diffusers import WanTransformer3DModel

    twin = WanTransformer3DModel.from_config(stock_transformer.config).eval()
    twin.load_state_dict(stock_transformer.state_dict())
    added = ViewTimeTransformer(twin, GeneratorConfig())
    model.transformer.forward = stock
    with torch.no_grad():
        ours, expected = (m(x, t, unconditioned(x)) for m in (model, added))
    torch.testing.assert_close(ours, expected)


def tokens_of_sampling(model, conditions, noise, schedule):
    """What the blocks get at each step: (B, tokens, width)."""
    seen = []
    first = model.transformer.blocks[0]
    hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made = sample(model, conditions, noise, schedule)
    hook.remove()
    return seen, made


def test_kept_references_are_seen_as_noised_as_all_else_and_as_nothing_more(stock_transformer):
    """The training-free mode: a stock model never learnt what an added embedding means."""
    model = ViewTimeTransformer(stock_transformer, GeneratorConfig(references="kept"))
    reference, noise = torch.randn(2, 1, 2, 3, 4, 4, 4).unbind()
    known = torch.zeros(1, 2, 3, dtype=torch.bool)
    known[0, 0] = known[0, :, 1] = True
    conditions = Conditions(reference, known, torch.zeros(1, 1, 8))
    embed = model.transformer.patch_embedding
    seen, made = tokens_of_sampling(model, conditions, noise, [1.0, 0.6, 0.2])
    assert len(seen) == 3
    for tokens, t in zip(seen, torch.tensor([1.0, 0.6, 0.2])):
        noised = to_video((1 - t) * reference + t * noise)
        expected = torch.nn.functional.conv3d(noised, embed.weight, embed.bias, embed.stride)
        cells = expected.flatten(3).permute(0, 2, 3, 1).unflatten(1, (2, 3))
        assert torch.equal(tokens.view_as(cells)[known], cells[known])
    assert torch.equal(made[known], reference[known])


def test_a_folder_without_our_settings_keeps_its_references_and_fine_tuning_adds_them(
    stock_transformer, tmp_path
):
    save_stock(tmp_path, stock_transformer)
    generator = load_generator(tmp_path)
    assert generator.model.config == GeneratorConfig(references="kept")
    assert read_config(tmp_path / "config.json") == GeneratorConfig()
    save_generator(tmp_path, generator.model)
    assert load_generator(tmp_path).model.config.references == "kept"


def test_a_moment_within_a_latent_leads_a_model_that_is_not_told_of_it(stock_transformer, tmp_path):
    """Latent 1 mixes frames 1 to 4; that of frame 2 standing still replaces it while noise is
    high, and is let go of at the end. Valid reprojected pixels come before it."""
    save_stock(tmp_path, stock_transformer)
    generator = load_generator(tmp_path)
    frames = np.random.default_rng(0).random((2, 5, 3, 32, 32), dtype=np.float32)
    known = np.zeros((2, 5), bool)
    known[0] = known[1, 2] = True
    grid = SimpleNamespace(frames=frames, known=known, depth=None)
    conditions = make_conditions(generator, grid, None)
    assert conditions.kept.shape == (1, 2, 2, 1, 4, 4)
    assert conditions.kept[0, :, :, 0].flatten(2).all(-1).tolist() == [[False] * 2, [False, True]]
    seen, _ = tokens_of_sampling(
        generator.model, conditions, torch.randn(1, 2, 2, 4, 4, 4), [1.0, 0.5]
    )
    free = replace(conditions, kept=None)
    alone, _ = tokens_of_sampling(generator.model, free, torch.randn(1, 2, 2, 4, 4, 4), [1.0, 0.5])
    assert not torch.equal(seen[1].view(2, 2, -1)[1, 1], alone[1].view(2, 2, -1)[1, 1])
    valid = np.zeros((2, 5, 32, 32), bool)
    valid[1, :, :16] = True
    prior = SimpleNamespace(
        frames=frames[::-1].copy(), valid=valid, source=valid.astype(np.uint8), evidence=None
    )
    led = make_conditions(generator, grid, prior)
    assert led.kept[0, 1, 1].all() and led.kept[0, 1, 0, 0, :2].all()
    assert not led.kept[0, 1, 0, 0, 2:].any()
    still = conditions.reference[0, 1, 1]
    assert torch.equal(led.kept_latents[0, 1, 1, :, 2:], still[:, 2:])
    assert not torch.equal(led.kept_latents[0, 1, 1, :, :2], still[:, :2])


def test_a_name_that_is_no_choice_is_refused_with_the_choices():
    with pytest.raises(GeneratorError, match="architecture is 'serial', must be one of fused, seq"):
        GeneratorConfig(architecture="serial")
    with pytest.raises(GeneratorError, match="positions is 'x', must be one of flat, sum, learned"):
        GeneratorConfig(positions="x")
    with pytest.raises(
        GeneratorError, match="references is 'x', must be one of added, clean, kept"
    ):
        GeneratorConfig(references="x")


@pytest.mark.parametrize("name, settings", [
    ("T2V-1.3B", dict(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960,
                      num_layers=30, in_channels=16, out_channels=16)),
    ("T2V-14B", dict(num_attention_heads=40, attention_head_dim=128, ffn_dim=13824,
                     num_layers=40, in_channels=16, out_channels=16)),
    ("TI2V-5B", dict(num_attention_heads=24, attention_head_dim=128, ffn_dim=14336,
                     num_layers=30, in_channels=48, out_channels=48)),
])  # fmt: skip
def test_wans_own_sizes_are_taken_unchanged(name, settings):
    """On the meta device: no key is added, none renamed, and the parameters are Wan's number."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        stock = WanTransformer3DModel(**settings)
    keys = {key: value.shape for key, value in stock.state_dict().items()}
    model = ViewTimeTransformer(stock, GeneratorConfig())
    assert {k: v.shape for k, v in model.transformer.state_dict().items()} == keys
    total = sum(p.numel() for p in model.parameters())
    expected = {"T2V-1.3B": 1.419e9, "T2V-14B": 14.288e9, "TI2V-5B": 5.000e9}[name]
    assert total == pytest.approx(expected, rel=1e-3)
    generator = Generator(name, model, PixelCodec())
    assert generator.frame_multiple == (2, 2)


@pytest.fixture
def ti2v(tmp_path):
    """A folder like TI2V-5B's, tiny: the residual VAE that folds 2 x 2 pixels into channels and
    makes one latent of 16 x 16 pixels, and a transformer for it."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    torch.manual_seed(0)
    AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=6, num_res_blocks=1, is_residual=True, patch_size=2,
        in_channels=12, out_channels=12, scale_factor_spatial=16, latents_mean=[0.1] * 6,
        latents_std=[2.0] * 6, temperal_downsample=[False, True, True],
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=24, in_channels=6,
        out_channels=6, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=1,
    ).save_pretrained(tmp_path / "transformer")  # fmt: skip
    return tmp_path


@pytest.mark.parametrize("references", REFERENCES)
def test_the_vae_of_wan_2_2_generates_from_a_row_and_a_column(ti2v, make_grid, references):
    config = GeneratorConfig(references=references, text_tokens=1)
    generator = load_generator(ti2v, config=config)
    assert generator.frame_multiple == (32, 32)
    grid, _ = make_grid(views=2, times=5, size=64)
    conditions = make_conditions(generator, grid, None)
    assert conditions.reference.shape == (1, 2, 2, 6, 4, 4)
    assert conditions.known[0].tolist() == [[True, True], [True, False]]
    frames = generate(generator, grid, prior=None, steps=2)
    assert frames.shape == grid.frames.shape and np.isfinite(frames).all()
    assert np.array_equal(frames[grid.known], grid.frames[grid.known])
    with pytest.raises(GeneratorError, match="48 x 48 px .* multiples of 32 x 32: use 64 x 64"):
        generate(generator, make_grid(views=2, times=5, size=48)[0], prior=None)
