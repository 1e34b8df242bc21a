# SPDX-License-Identifier: Apache-2.0
"""Ways to run a big model faster or in less memory; each is one call to diffusers or torch.

None is on by default. What they change in the result is said at each.
"""

from __future__ import annotations

from typing import Any

import torch

from viewtime.generator.errors import GeneratorError
from viewtime.generator.load import Generator

OFFLOADS = ("none", "block", "leaf")


def compile_blocks(generator: Generator) -> None:
    """Regional torch.compile: each transformer block, once for all. The first step takes minutes
    longer, results differ in the last bits."""
    generator.model.transformer.compile_repeated_blocks(fullgraph=True)


def cache_first_block(generator: Generator, threshold: float = 0.05) -> None:
    """FirstBlockCache: skip all blocks but the first at steps where the first changes little.

    threshold: relative change below which a step is skipped; 0.05 is diffusers' default. Its cost
    in quality is measured by `viewtime evaluate generator --cache`.
    """
    from diffusers import FirstBlockCacheConfig

    if not threshold > 0:
        raise GeneratorError(f"cache threshold is {threshold}, must be above 0")
    if not generator.model.transformer.is_cache_enabled:
        generator.model.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))


def no_cache(generator: Generator) -> None:
    if generator.model.transformer.is_cache_enabled:
        generator.model.transformer.disable_cache()


def offload(generator: Generator, mode: str, device: torch.device) -> None:
    """Keep the transformer's weights in the computer's memory and bring them to the device as they
    are needed: "block" by block, or "leaf" by layer (least memory); "none" leaves all there.

    Same results, slower. Raises GeneratorError for another mode.
    """
    if mode not in OFFLOADS:
        raise GeneratorError(f"offload is {mode!r}, must be one of {', '.join(OFFLOADS)}")
    if mode == "none":
        return
    transformer: Any = generator.model.transformer
    transformer.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=f"{mode}_level",
        num_blocks_per_group=1 if mode == "block" else None,
        use_stream=device.type == "cuda",
    )
