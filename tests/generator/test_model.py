# SPDX-License-Identifier: Apache-2.0
"""The view-time transformer beside the stock one it is made of."""

from __future__ import annotations

import pytest
import torch

from viewtime.generator.architectures import ARCHITECTURES
from viewtime.generator.conditioning import Conditions, _FrameConv
from viewtime.generator.errors import GeneratorError
from viewtime.generator.load import load_generator
from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, hold_back
from viewtime.generator.positions import POSITIONS
from viewtime.generator.sampler import sample
from viewtime_kernels import view_time_mask


def no_conditions(x, text):
    known = torch.zeros(x.shape[:3], dtype=torch.bool)
    return Conditions(reference=torch.zeros_like(x), known=known, text=text)


@pytest.mark.parametrize("views, times", [(1, 5), (5, 1)])
@pytest.mark.parametrize("references", ["added", "kept"])
def test_one_view_without_reference_is_the_stock_model_exactly(
    stock_transformer, views, times, references
):
    x, text, t = torch.randn(2, views, times, 4, 6, 8), torch.randn(2, 7, 8), torch.rand(2)
    with torch.no_grad():
        frames = x.flatten(1, 2).transpose(1, 2)
        stock = stock_transformer(frames, t * 1000, text, return_dict=False)[0]
        stock = stock.transpose(1, 2).reshape(x.shape)
        ours = ViewTimeTransformer(stock_transformer, GeneratorConfig(references=references))(
            x, t, no_conditions(x, text)
        )
    assert (ours - stock).abs().max() == 0.0


def test_a_checkpoint_saved_by_diffusers_loads_as_it_is(stock_transformer, tmp_path):
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    stock_transformer.save_pretrained(tmp_path / "transformer")
    vae.save_pretrained(tmp_path / "vae")
    keys = set(stock_transformer.state_dict())
    x, text = torch.randn(1, 1, 3, 4, 4, 4), torch.randn(1, 3, 8)
    with torch.no_grad():
        stock = stock_transformer(x[:, 0].transpose(1, 2), torch.tensor([500.0]), text).sample
        generator = load_generator(tmp_path)
        ours = generator.model(x, torch.tensor([0.5]), no_conditions(x, text))
    assert set(generator.model.transformer.state_dict()) == keys
    assert (ours[:, 0].transpose(1, 2) - stock).abs().max() == 0.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_weights_in_bfloat16_take_float32_latents_as_they_do_on_a_gpu(
    stock_transformer, tmp_path, architecture, positions
):
    from diffusers import WanTransformer3DModel

    stock_transformer.save_pretrained(tmp_path)
    half = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    # The embedding of the prior stays float32, and so does what architecture and positions add.
    settings = GeneratorConfig(architecture=architecture, positions=positions, prior_features=4)
    x, known = torch.randn(1, 2, 3, 4, 4, 4), torch.tensor([[[1, 1, 1], [1, 0, 0]]]).bool()
    conditions = Conditions(
        torch.randn_like(x), known, torch.randn(1, 5, 8), torch.randn_like(x),
        torch.rand(1, 2, 3, 3, 4, 4),
    )  # fmt: skip
    made = {}
    for name, transformer in (("whole", stock_transformer), ("half", half)):
        model = ViewTimeTransformer(transformer, settings).eval()
        train_a_little(model)
        made[name] = sample(model, conditions, torch.randn(x.shape, generator=torch.Generator()
                            .manual_seed(1)), [1.0, 0.5])  # fmt: skip
    assert made["half"].dtype == torch.float32
    off = (made["half"] - made["whole"]).norm() / made["whole"].norm()
    assert 0 < off < 0.02


def train_a_little(model):
    """What was added starts at zero or as a mean: move it, by the same each time."""
    torch.manual_seed(3)
    added = [layer for layer in model.added_layers.modules() if isinstance(layer, torch.nn.Linear)]
    last = [] if model.view_embedding is None else [model.view_embedding.mlp[-1]]
    for layer in (*added, *last):
        noise = torch.randn(layer.weight.shape) * 0.05
        layer.weight.data += noise.to(layer.weight)


def test_a_token_depends_on_its_row_and_column_and_on_nothing_else(stock_transformer):
    """Through one layer; two layers reach everything, as they should."""
    stock_transformer.blocks = stock_transformer.blocks[:1]
    model = ViewTimeTransformer(stock_transformer, GeneratorConfig())
    x = torch.randn(1, 3, 4, 4, 2, 2, requires_grad=True)
    out = model(x, torch.ones(1), no_conditions(x, torch.zeros(1, 1, 8)))
    (gradient,) = torch.autograd.grad(out[0, 1, 2].sum(), x)
    reached = gradient[0].abs().amax(dim=(2, 3, 4)) > 0
    row_and_column = view_time_mask(3, 4, 1)[1 * 4 + 2].view(3, 4)
    assert torch.equal(reached, row_and_column)


def test_positions_are_those_of_one_long_sequence(stock_transformer):
    expected = stock_transformer.rope(torch.zeros(1, 4, 12, 6, 8))
    model = ViewTimeTransformer(stock_transformer, GeneratorConfig())
    model.grid.set(3, 4)
    for ours, stock in zip(model.transformer.rope(torch.zeros(1, 4, 12, 6, 8)), expected):
        assert torch.equal(ours, stock)
    model.transformer.rope.t_max = 7
    cos, _ = model.transformer.rope(torch.zeros(1, 4, 12, 6, 8))
    long_cos, _ = model.transformer.rope.stock(torch.zeros(1, 4, 21, 6, 8))
    frames = cos.view(3, 4, 12, -1)
    assert torch.equal(frames[2, 3], long_cos.view(21, 12, -1)[2 * 7 + 3])


def test_positions_outside_the_table_are_refused_by_number(stock_transformer):
    model = ViewTimeTransformer(stock_transformer, GeneratorConfig(t_max=300))
    x = torch.zeros(1, 4, 2, 4, 2, 2)
    model(x, torch.ones(1), no_conditions(x, torch.zeros(1, 1, 8)))
    model.transformer.rope.t_max = 400
    with pytest.raises(GeneratorError, match="4 views x 2 times .* need 1202 .* has 1024"):
        model(x, torch.ones(1), no_conditions(x, torch.zeros(1, 1, 8)))
    model.transformer.rope.t_max = 1
    with pytest.raises(GeneratorError, match="positions for 1 times per view, the grid has 2"):
        model(x, torch.ones(1), no_conditions(x, torch.zeros(1, 1, 8)))


def test_no_reference_is_not_a_black_one(stock_transformer):
    model = ViewTimeTransformer(stock_transformer, GeneratorConfig())
    x, text = torch.randn(1, 2, 2, 4, 2, 2), torch.zeros(1, 1, 8)
    none = no_conditions(x, text)
    known = none.known.clone()
    known[:, 0] = True
    with torch.no_grad():
        without = model(x, torch.ones(1), none)
        black = model(x, torch.ones(1), Conditions(torch.zeros_like(x), known, text))
        noise = model(x, torch.ones(1), Conditions(torch.randn_like(x), none.known, text))
    assert (without - black).abs().max() > 1e-4
    assert torch.equal(without, noise)  # what is not known is never looked at


def test_without_text_the_short_way_equals_the_long_one(make_model):
    model = make_model()
    for block in model.transformer.blocks:
        torch.nn.init.normal_(block.attn2.to_out[0].bias)
    x = torch.randn(1, 2, 2, 3, 16, 16)
    conditions = no_conditions(x, torch.zeros(1, 0, 16))
    with torch.no_grad():
        short = model(x, torch.ones(1), conditions)
        for block in model.transformer.blocks:
            block.attn2.set_processor(block.attn2.processor.stock)
        long = model(x, torch.ones(1), conditions)
    torch.testing.assert_close(short, long, rtol=0, atol=1e-6)


def test_the_fine_path_sees_each_frame_alone_as_a_flat_convolution_does():
    conv, x = _FrameConv(5, 4), torch.randn(2, 5, 3, 8, 6)
    torch.testing.assert_close(conv(x), torch.nn.Conv3d.forward(conv, x))


def test_an_untrained_small_model_is_its_prior(make_model):
    model = make_model(zero_output=True)
    x, prior = torch.randn(1, 2, 2, 3, 16, 16), torch.randn(1, 2, 2, 3, 16, 16)
    conditions = Conditions(
        torch.zeros_like(x), torch.zeros(1, 2, 2, dtype=torch.bool), torch.zeros(1, 0, 16),
        prior=prior, maps=torch.ones(1, 2, 2, 3, 16, 16),
    )  # fmt: skip
    with torch.no_grad():
        assert torch.equal(model.predict(x, torch.ones(1), conditions), prior)
        velocity = model(x, torch.tensor([0.5]), conditions)
    torch.testing.assert_close(x - 0.5 * velocity, prior)


def test_a_correction_is_held_back_by_the_motion_that_references_show():
    """Against the formula in float64, by all pairs of times; views never seen stay as they are."""
    known = torch.zeros(1, 3, 4, dtype=torch.bool)
    known[0, 0], known[0, 1, 2] = True, True  # a clip, one frozen view, one view never seen
    reference = torch.randn(1, 3, 4, 3, 8, 6)
    reference[0, 0] = reference[0, 0, 0] + 0.1 * torch.randn(4, 3, 8, 6)
    correction = (
        torch.randn(1, 3, 4, 3, 8, 6) * torch.tensor([1e-3, 0.1, 1.0, 10.0])[:, None, None, None]
    )
    conditions = Conditions(reference=reference, known=known, text=torch.zeros(1, 0, 4))
    held = hold_back(correction, conditions)
    clip = reference[0, 0].double()
    pairs = [(clip[a] - clip[b]).square().mean() for a in range(4) for b in range(4) if a != b]
    motion = torch.stack(pairs).mean()
    for t in range(4):
        energy = correction[0, 1, t].double().square().mean()
        expected = correction[0, 1, t].double() * motion / (motion + energy)
        torch.testing.assert_close(held[0, 1, t].double(), expected, rtol=1e-5, atol=1e-9)
    assert torch.equal(held[0, 2], correction[0, 2])
    assert (held[0, 1, 0] / correction[0, 1, 0]).min() > 0.99  # faint: kept
    assert (held[0, 1, 3] / correction[0, 1, 3]).max() < 1e-3  # against all reason: dropped


def test_nothing_moves_where_no_reference_does():
    known = torch.zeros(2, 2, 3, dtype=torch.bool)
    known[0, 0], known[:, :, 1] = True, True  # a still clip and frozen frames; frozen frames alone
    reference = torch.randn(2, 2, 1, 3, 8, 8).expand(-1, -1, 3, -1, -1, -1)
    conditions = Conditions(reference=reference, known=known, text=torch.zeros(2, 0, 4))
    held = hold_back(torch.randn(2, 2, 3, 3, 8, 8), conditions)
    torch.testing.assert_close(held, torch.zeros_like(held), atol=1e-5, rtol=0)
