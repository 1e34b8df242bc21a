# SPDX-License-Identifier: Apache-2.0
"""Text, memory, windows and the ways to run faster: what surrounds one forward pass."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viewtime.generator import GeneratorError, generate
from viewtime.generator.codec import PixelCodec
from viewtime.generator.load import Generator, save_generator
from viewtime.generator.memory import estimate_memory, require_memory
from viewtime.generator.speed import cache_first_block, compile_blocks, no_cache, offload
from viewtime.generator.text import clean_prompt, encode_prompts
from viewtime.generator.windows import generate_in_windows, seam_error, spans


@pytest.fixture
def small(make_model):
    return Generator("small", make_model(), PixelCodec())


@dataclass(frozen=True)
class Grid:
    frames: np.ndarray
    known: np.ndarray
    depth: np.ndarray | None = None


def referenced(views, times, size=16):
    frames = np.random.default_rng(0).random((views, times, 3, size, size), dtype=np.float32)
    known = np.zeros((views, times), bool)
    known[0] = known[:, 0] = True
    return Grid(np.where(known[..., None, None, None], frames, 0), known)


# ---- windows -------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(2, 20), st.integers(1, 5))
def test_windows_cover_all_and_overlap_enough(count, window, overlap):
    if overlap >= window:
        return
    found = spans(count, window, overlap)
    assert found[0].start == 0 and found[-1].stop == count
    assert all(len(span) == min(count, window) for span in found)
    assert all(b.start <= a.stop - overlap and b.stop > a.stop for a, b in zip(found, found[1:]))


def test_windows_without_overlap_are_refused():
    with pytest.raises(GeneratorError, match="windows of 4 with an overlap of 4: .* from 1 to 3"):
        spans(9, 4, 4)


def test_one_window_is_the_plain_way_and_several_anchor_on_what_was_made(small):
    grid = referenced(4, 7)
    plain = generate(small, grid, prior=None, steps=2, seed=5)
    whole = generate_in_windows(
        small, grid, prior=None, steps=2, seed=5, views_at_once=4, times_at_once=7
    )
    assert np.array_equal(plain, whole)
    progress = []
    parts = generate_in_windows(
        small, grid, prior=None, steps=2, seed=5, views_at_once=3, times_at_once=4,
        overlap_times=2, on_step=lambda done, total, _: progress.append((done, total)),
    )  # fmt: skip
    assert np.array_equal(parts[grid.known], grid.frames[grid.known])
    assert not (parts[~grid.known] == 0).all(axis=(1, 2, 3)).any()  # every cell was made
    assert progress[0] == (1, 12) and progress[-1] == (12, 12)
    # The first window is the same as that part of the grid alone.
    first = Grid(grid.frames[:3, :4], grid.known[:3, :4])
    assert np.array_equal(parts[:3, :4], generate(small, first, prior=None, steps=2, seed=5))


def test_a_seam_is_where_windows_meet_and_nowhere_else():
    truth = np.zeros((1, 6, 3, 2, 2))
    frames = truth.copy()
    frames[:, 4:] += 0.5  # a jump between times 3 and 4
    at_seam = seam_error(frames, truth, [range(0, 4), range(2, 6)])
    assert at_seam["seam"] == 0.5 and at_seam["inside"] == 0
    elsewhere = seam_error(frames, truth, [range(0, 3), range(2, 6)])
    assert elsewhere["seam"] == 0 and elsewhere["inside"] > 0


# ---- memory --------------------------------------------------------------------------------------

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
model = ViewTimeTransformer(transformer, GeneratorConfig(text_tokens=0))
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
def test_the_estimate_bounds_what_a_forward_pass_takes():
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    peak, estimate = json.loads(answer.stdout)
    assert 0.3 * estimate < peak < 1.1 * estimate


def test_too_much_is_refused_with_what_would_fit(small):
    size = dict(views=8, height=256, width=256)
    need = estimate_memory(small, times=9, **size)
    free = need.peak - need.weights
    assert require_memory(small, times=9, free=free, **size) == need
    with pytest.raises(GeneratorError, match=r"8 views x 9 times of 256 x 256 px need .* 5 times"):
        require_memory(small, times=9, free=int(free * 0.7), **size)
    with pytest.raises(GeneratorError, match="not even one time fits: take fewer views"):
        require_memory(small, times=9, free=1000, **size)


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


def test_a_prompt_changes_what_is_generated(with_text, make_model, make_grid, tmp_path):
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
    grid, _ = make_grid()
    settings = dict(prior=None, steps=2, guidance=1.0)
    cat, runs = (generate(generator, grid, prompt=p, **settings) for p in ("a red cat", "runs"))
    assert np.abs(cat - runs).max() > 1e-4
    guided = generate(generator, grid, prior=None, steps=2, guidance=4.0, prompt="a red cat")
    assert np.abs(cat - guided).max() > 1e-4


# ---- speed ---------------------------------------------------------------------------------------


def test_a_cache_that_never_hits_changes_nothing_and_one_that_does_skips_blocks(small, make_grid):
    grid, _ = make_grid()
    plain = generate(small, grid, prior=None, steps=4)
    ran = []
    last = small.model.transformer.blocks[-1].ffn
    last.register_forward_hook(lambda *_: ran.append(1))
    cache_first_block(small, 1e-9)
    np.testing.assert_allclose(generate(small, grid, prior=None, steps=4), plain, atol=1e-6)
    assert len(ran) == 4
    no_cache(small)
    ran.clear()
    cache_first_block(small, 1e9)
    generate(small, grid, prior=None, steps=4)
    assert len(ran) == 1
    ran.clear()
    generate(small, grid, prior=None, steps=4)  # nothing is kept from one run to the next
    assert len(ran) == 1
    no_cache(small)
    np.testing.assert_allclose(generate(small, grid, prior=None, steps=4), plain, atol=1e-6)


def test_compiled_blocks_give_the_same_frames(small, make_grid):
    grid, _ = make_grid()
    plain = generate(small, grid, prior=None, steps=1)
    compile_blocks(small)
    np.testing.assert_allclose(generate(small, grid, prior=None, steps=1), plain, atol=1e-4)


def test_an_unknown_offload_is_refused_and_a_known_one_gives_the_same(small, make_grid):
    grid, _ = make_grid()
    plain = generate(small, grid, prior=None, steps=1)
    with pytest.raises(GeneratorError, match="offload is 'disk', must be one of none, block, leaf"):
        offload(small, "disk", torch.device("cpu"))
    offload(small, "leaf", torch.device("cpu"))
    np.testing.assert_allclose(generate(small, grid, prior=None, steps=1), plain, atol=1e-6)
