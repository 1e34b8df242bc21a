# SPDX-License-Identifier: Apache-2.0
"""Ways to run a big model faster or in less memory, each diffusers' or torch's own.

None is on by default. What they change in the result is said at each.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import torch

from viewtime.generator.errors import GeneratorError
from viewtime.generator.load import Generator

OFFLOADS = ("none", "block", "leaf")


def compile_blocks(generator: Generator) -> None:
    """Regional torch.compile: each transformer block, once for all, and for good.

    The first step takes minutes longer, results differ in the last bits. It is the blocks' forward
    that is compiled, not their call: what hooks into a block (a cancel, a cache, offloading) runs
    outside, as it changes from one job to the next.
    Raises GeneratorError where there is no compiler for the model's device.
    """
    _require_compiler(generator.device)
    for block in generator.model.transformer.blocks:
        block.forward = torch.compile(block.forward, fullgraph=True)


def _require_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise GeneratorError(
                "compile is true, which needs triton on a GPU; it is not installed"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise GeneratorError(
            "compile is true, which needs a C++ compiler on the CPU (such as g++); none was found: "
            "install one, or leave compile out"
        ) from error


def set_cache(generator: Generator, threshold: float | None) -> None:
    """FirstBlockCache: skip all blocks but the first at steps where the first changes little.

    threshold: relative change below which a step is skipped, 0.05 is diffusers' default; None
    computes every step, as it is without a cache. What was set before is undone. Its cost in
    quality is measured by `viewtime evaluate generator --cache`.
    Raises GeneratorError for a threshold that is not above 0, a model of one block, or one whose
    added layers run before each block, skipped or not: they would count twice.
    """
    from diffusers import FirstBlockCacheConfig

    transformer: Any = generator.model.transformer
    if threshold is not None:
        if not threshold > 0:
            raise GeneratorError(f"cache threshold is {threshold}, must be above 0")
        if len(transformer.blocks) < 2:
            raise GeneratorError("cache: this model has one block, so there is nothing to skip")
        if generator.model.config.architecture == "sequential_added":
            raise GeneratorError(
                "cache: not with the architecture sequential_added, whose added layers run at "
                "steps that are skipped, too; leave the cache out"
            )
    if transformer.is_cache_enabled:
        transformer.disable_cache()
    if threshold is not None:
        transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))


def offload(generator: Generator, mode: str, device: torch.device) -> Generator:
    """Keep the transformer's weights in the computer's memory and bring them to the device as they
    are needed: "block" by block, or "leaf" by layer (least memory); "none" leaves all there.

    Returns the generator to use from then on; the given one's model is changed for good. Same
    results, slower. Raises GeneratorError for another mode.
    """
    if mode not in OFFLOADS:
        raise GeneratorError(f"offload is {mode!r}, must be one of {', '.join(OFFLOADS)}")
    if mode == "none":
        return generator
    transformer: Any = generator.model.transformer
    for name, part in generator.model.named_children():
        if name != "transformer":
            part.to(device)
    transformer.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=f"{mode}_level",
        num_blocks_per_group=1 if mode == "block" else None,
        use_stream=device.type == "cuda",
    )
    return replace(generator, runs_on=device, offload=mode)
