# SPDX-License-Identifier: Apache-2.0
"""Memory and text: what surrounds one forward pass."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from viewtime.generator import Cancelled, GeneratorError, generate
from viewtime.generator.codec import PixelCodec
from viewtime.generator.load import Generator, save_generator
from viewtime.generator.memory import estimate_memory, require_memory
from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer
from viewtime.generator.text import clean_prompt, encode_prompts
from viewtime.generator.windows import generate_in_windows
from viewtime.grid import FrameGrid


@pytest.fixture
def small(make_model):
    return Generator("small", make_model(), PixelCodec())


MEASURE = """
import json, sys, resource
import torch
from viewtime.generator.codec import PixelCodec
from viewtime.generator.conditioning import Conditions
from viewtime.generator.load import Generator
from viewtime.generator.memory import estimate_memory
from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer

views, times, size = 4, 5, 256
transformer = new_transformer(layers=2, heads=12, ffn=3072)
settings = GeneratorConfig(text_tokens=0, references=sys.argv[1])
model = ViewTimeTransformer(transformer, settings)
generator = Generator("measured", model.eval(), PixelCodec())
small = torch.randn(1, 1, 1, 3, 32, 32)
def run(x):
    known = torch.zeros(x.shape[:3], dtype=torch.bool)
    with torch.no_grad():
        model(x, torch.ones(1), Conditions(torch.zeros_like(x), known, torch.zeros(1, 0, 16)))
run(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = torch.randn(1, views, times, 3, size, size)
run(x)
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
estimate = estimate_memory(generator, views=views, times=times, height=size, width=size)
print(json.dumps([peak, estimate.forward]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource is of Unix")
@pytest.mark.parametrize("references", ["added", "clean"])
def test_the_estimate_bounds_what_a_forward_pass_takes(references):
    """A timestep per token, as clean references have it, is a modulation per token, too."""
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, references],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, estimate = json.loads(answer.stdout)
    assert 0.3 * estimate < peak < 1.1 * estimate


def test_too_much_is_refused_with_the_option_that_would_fit(small):
    size = dict(height=256, width=256)

    def need(views, times, **size):
        found = estimate_memory(small, views=views, times=times, **size)
        return found.peak - found.weights

    def check(free, window=None):
        return require_memory(small, views=8, times=9, free=free, window=window, **size)

    estimate = estimate_memory(small, views=8, times=9, **size)
    assert check(need(8, 9, **size)) == estimate
    with pytest.raises(GeneratorError, match=r"8 views x 9 times of 256 x 256 px need") as refused:
        check(need(8, 6, **size))
    assert "a window of 8 x 6 would fit (window 8x6)" in str(refused.value)
    check(need(8, 6, **size), window=(8, 6))  # the advice is right
    with pytest.raises(GeneratorError, match=r"8 views x 7 times at once, need about"):
        check(need(8, 6, **size), window=(8, 7))
    # Not even the smallest window: smaller frames. What is said then fits, and a patch more not.
    with pytest.raises(GeneratorError, match=r"\(size 128, window 2x2\)"):
        check(need(2, 2, height=128, width=128))
    with pytest.raises(GeneratorError, match="nothing smaller fits either"):
        check(1000)


def test_offloaded_weights_are_counted_where_they_are():
    model = ViewTimeTransformer(
        new_transformer(layers=4, heads=1, head_dim=24, ffn=32), GeneratorConfig(text_tokens=0)
    )
    here = Generator("four", model, PixelCodec())
    size = dict(views=2, times=2, height=16, width=16)
    whole, away = (estimate_memory(g, **size) for g in (here, replace(here, offload="block")))
    blocks = sum(p.numel() * 4 for p in model.transformer.blocks.parameters())
    # Two of the four are there at once: one at work and the next one on its way.
    assert whole.weights - away.weights == blocks // 2 and away.forward == whole.forward


# ---- text ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_text(tmp_path_factory):
    """text_encoder/ and tokenizer/ as a Wan checkpoint has them, tiny and random."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    folder = tmp_path_factory.mktemp("checkpoint")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "cat", "runs"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    UMT5EncoderModel(UMT5Config(
        vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
    )).save_pretrained(folder / "text_encoder")  # fmt: skip
    return folder


def test_prompts_become_embeddings_that_end_in_zeros(with_text):
    cpu = torch.device("cpu")
    text = encode_prompts(with_text, ["a red cat", "a  &amp;amp; runs\n cat", ""], cpu, length=12)
    assert text.shape == (3, 12, 8)
    assert (text[0, :4].abs().amax(-1) > 0).all() and (text[0, 4:] == 0).all()
    assert (text[2, 1:] == 0).all()  # the empty prompt is the end mark alone
    alone = encode_prompts(with_text, ["a red cat"], cpu, length=12)
    torch.testing.assert_close(alone[0], text[0])
    assert clean_prompt("a  &amp;amp; runs\n cat") == "a & runs cat"


def test_a_text_encoder_of_pickles_is_refused(with_text, tmp_path):
    (tmp_path / "text_encoder").mkdir()
    torch.save({}, tmp_path / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(GeneratorError, match="text_encoder: no .safetensors weights"):
        encode_prompts(tmp_path, ["a"], torch.device("cpu"))


@pytest.fixture
def told(with_text, make_model, tmp_path):
    """A generator with a text encoder whose cross-attention is not silent."""
    import shutil

    torch.manual_seed(1)
    model = make_model(prior_features=0, prediction="velocity")
    for block in model.transformer.blocks:
        for parameter in block.attn2.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    from viewtime.generator.load import load_generator

    save_generator(tmp_path, model)
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(with_text / name, tmp_path / name)
    config = json.loads((tmp_path / "text_encoder" / "config.json").read_text())
    assert config["d_model"] == 8
    generator = load_generator(tmp_path)
    assert generator.takes_text
    # The tiny encoder is 8 wide, the tiny transformer takes 16: bring it to that.
    stock = generator.model.transformer
    stock.condition_embedder.text_embedder.linear_1 = torch.nn.Linear(8, 24)
    return generator


def test_a_prompt_changes_what_is_generated(told, make_grid):
    grid, _ = make_grid()
    settings = dict(prior=None, steps=2, guidance=1.0)
    cat, runs = (generate(told, grid, prompt=p, **settings) for p in ("a red cat", "runs"))
    assert np.abs(cat - runs).max() > 1e-4
    guided = generate(told, grid, prior=None, steps=2, guidance=4.0, prompt="a red cat")
    assert np.abs(cat - guided).max() > 1e-4


def test_cancelling_is_asked_for_around_the_text_encoder(told, make_grid, monkeypatch):
    grid, _ = make_grid()
    for answers, loaded in (([True], 0), ([False, True], 1)):
        encoded, told_to = [], iter(answers)
        monkeypatch.setattr(
            Generator, "encode_text", lambda _, prompts, n=encoded: n.append(1) or torch.zeros(1)
        )
        with pytest.raises(Cancelled):
            generate(told, grid, prior=None, should_cancel=lambda told_to=told_to: next(told_to))
        assert len(encoded) == loaded


def test_a_second_pass_at_each_step_is_made_where_prompts_differ_alone(told, make_grid):
    grid = FrameGrid(**vars(make_grid()[0]))
    grid.known[1:] = False  # nothing but the fixed view: guidance is on by default
    passes = []
    told.model.transformer.register_forward_hook(lambda *_: passes.append(1))
    for prompts, expected in (
        (dict(), 2),
        (dict(prompt=" runs", negative_prompt="runs"), 2),
        (dict(guidance=5.0), 2),
        (dict(prompt="runs"), 4),
        (dict(negative_prompt="runs"), 4),
        (dict(prompt="runs", window=(2, 3)), 8),
        (dict(window=(2, 3)), 4),
    ):
        passes.clear()
        make = generate_in_windows if "window" in prompts else generate
        make(told, grid, prior=None, steps=2, **prompts)
        assert len(passes) == expected, prompts
