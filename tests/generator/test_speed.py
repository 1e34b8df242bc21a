# SPDX-License-Identifier: Apache-2.0
"""The ways to run faster or in less memory: what they leave as it is, and what they undo."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from viewtime.generator import GeneratorError, generate
from viewtime.generator.codec import PixelCodec
from viewtime.generator.load import Generator
from viewtime.generator.speed import compile_blocks, offload, set_cache


@pytest.fixture
def small(make_model):
    return Generator("small", make_model(), PixelCodec())


def test_a_cache_that_never_hits_changes_nothing_and_one_that_does_skips_blocks(small, make_grid):
    grid, _ = make_grid()
    plain = generate(small, grid, prior=None, steps=4)
    ran = []
    last = small.model.transformer.blocks[-1].ffn
    last.register_forward_hook(lambda *_: ran.append(1))
    set_cache(small, 1e-9)
    np.testing.assert_allclose(generate(small, grid, prior=None, steps=4), plain, atol=1e-6)
    assert len(ran) == 4
    set_cache(small, None)
    ran.clear()
    set_cache(small, 1e9)
    generate(small, grid, prior=None, steps=4)
    assert len(ran) == 1
    ran.clear()
    generate(small, grid, prior=None, steps=4)  # nothing is kept from one run to the next
    assert len(ran) == 1
    set_cache(small, None)
    np.testing.assert_allclose(generate(small, grid, prior=None, steps=4), plain, atol=1e-6)


def test_a_cache_takes_the_threshold_that_was_set_last(small):
    """A warm model must not keep the threshold of an earlier job."""
    set_cache(small, 0.1)
    set_cache(small, 0.3)
    assert small.model.transformer._cache_config.threshold == 0.3
    hook = small.model.transformer.blocks[0]._diffusers_hook.get_hook("fbc_leader_block_hook")
    assert hook.threshold == 0.3
    set_cache(small, None)
    assert not small.model.transformer.is_cache_enabled
    with pytest.raises(GeneratorError, match="cache threshold is 0, must be above 0"):
        set_cache(small, 0)


def test_a_cache_is_refused_where_added_layers_would_count_twice(make_model, make_grid):
    added = Generator("added", make_model(architecture="sequential_added"), PixelCodec())
    with pytest.raises(GeneratorError, match="cache: not with the architecture sequential_added"):
        set_cache(added, 0.1)
    assert not added.model.transformer.is_cache_enabled
    set_cache(added, None)
    grid, _ = make_grid()
    assert generate(added, grid, prior=None, steps=2).shape == grid.frames.shape


def test_compiled_blocks_give_the_same_frames_with_a_cancel_and_a_cache(small, make_grid):
    """What hooks into the blocks changes from job to job and must not be compiled with them."""
    grid, _ = make_grid()
    plain = generate(small, grid, prior=None, steps=2)
    compile_blocks(small)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    asked = []

    def cancel():
        asked.append(len(asked))
        return False

    for threshold in (None, 1e-9):
        set_cache(small, threshold)
        with torch._dynamo.config.patch(error_on_recompile=len(asked) > 0):
            made = generate(small, grid, prior=None, steps=2, should_cancel=cancel)
        np.testing.assert_allclose(made, plain, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert len(asked) == 2 * 2 * 2  # before each of 2 blocks, at each of 2 steps, in both runs


def test_without_a_compiler_compile_says_what_is_missing(small, monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(GeneratorError, match="needs a C.. compiler on the CPU"):
        compile_blocks(small)


def test_an_unknown_offload_is_refused_and_a_known_one_gives_the_same(small, make_grid):
    grid, _ = make_grid()
    plain = generate(small, grid, prior=None, steps=1)
    cpu = torch.device("cpu")
    with pytest.raises(GeneratorError, match="offload is 'disk', must be one of none, block, leaf"):
        offload(small, "disk", cpu)
    assert offload(small, "none", cpu) is small
    away = offload(small, "leaf", cpu)
    assert (away.offload, away.device) == ("leaf", cpu)
    np.testing.assert_allclose(generate(away, grid, prior=None, steps=1), plain, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("mode", ["block", "leaf"])
def test_weights_that_wait_off_the_gpu_give_what_weights_on_it_give(mode, make_model, make_grid):
    grid, prior = make_grid()
    cuda = torch.device("cuda")
    here = Generator("here", make_model().to(cuda), PixelCodec())
    away = offload(Generator("away", make_model(), PixelCodec()), mode, cuda)
    assert next(away.model.parameters()).device.type == "cpu" and away.device.type == "cuda"
    for some in (None, prior):
        plain = generate(here, grid, prior=some, steps=2)
        for _ in range(2):  # the second pass takes the order of the first
            made = generate(away, grid, prior=some, steps=2)
            np.testing.assert_allclose(made, plain, atol=1e-5)
