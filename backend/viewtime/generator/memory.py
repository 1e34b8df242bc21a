# SPDX-License-Identifier: Apache-2.0
"""How much memory a generation will take, before it is begun.

Estimates from sizes alone; nothing is allocated. They are upper bounds for one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from viewtime.generator.codec import WanCodec
from viewtime.generator.errors import GeneratorError
from viewtime.generator.load import Generator

GIB = 1 << 30


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes: weights on the device; the forward pass of the transformer beside them; the decoding
    of frames. peak is what is needed at once, as decoding follows the last forward pass."""

    weights: int
    forward: int
    decode: int

    @property
    def peak(self) -> int:
        return self.weights + max(self.forward, self.decode)


def estimate_memory(
    generator: Generator, *, views: int, times: int, height: int, width: int
) -> MemoryEstimate:
    """What generating views x times frames of height x width pixels takes.

    A transformer block holds, per token of width C in the weights' dtype: tokens, queries, keys,
    values, the three partial outputs of the fused attention, its result and the feed-forward's
    inner layer; and two float32 copies, of the norms and of the residual.
    """
    model, codec = generator.model, generator.codec
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    latent_times = times
    if isinstance(codec, WanCodec):
        latent_times = 1 + (times - 1) // codec.temporal
        weights += sum(p.numel() * p.element_size() for p in codec.vae.parameters())
    config = model.transformer.config
    c = config.num_attention_heads * config.attention_head_dim
    rows, columns = generator.frame_multiple
    tokens = views * latent_times * (height // rows) * (width // columns)
    size = next(model.transformer.blocks.parameters()).element_size()
    in_dtype = tokens * size * (9 * c + 2 * config.ffn_dim)
    pixels = views * times * height * width * 3
    # Latents, velocity and the fine path for the prior are float32 and as big as the frames.
    features = model.config.prior_features
    fine = 0
    if features:
        fine = views * latent_times * height * width // codec.spatial**2 * 4 * (2 * features + 16)
    forward = in_dtype + tokens * 4 * 2 * c + fine + 2 * pixels * 4 // codec.spatial**2
    decode = pixels * 4
    if isinstance(codec, WanCodec):
        decode += codec.views_at_once(height, width) * codec.bytes_per_view(height, width)
    return MemoryEstimate(weights, forward, decode)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device; on the CPU, of the whole machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def require_memory(
    generator: Generator, *, views: int, times: int, height: int, width: int, free: int
) -> MemoryEstimate:
    """The estimate, if it fits into `free` bytes beside the weights, which are there already.

    Raises:
        GeneratorError: names what is needed, what is free, and how many times would fit.
    """
    estimate = estimate_memory(generator, views=views, times=times, height=height, width=width)
    if estimate.peak - estimate.weights <= free:
        return estimate
    fitting = [t for t in range(1, times, 4) if _extra(generator, views, t, height, width) <= free]
    advice = (
        f"{fitting[-1]} times would fit at once: generate in windows of that many"
        if fitting
        else "not even one time fits: take fewer views or smaller frames"
    )
    raise GeneratorError(
        f"{views} views x {times} times of {width} x {height} px need about "
        f"{(estimate.peak - estimate.weights) / GIB:.1f} GB beside the model, "
        f"{free / GIB:.1f} GB are free; {advice}"
    )


def _extra(generator: Generator, views: int, times: int, height: int, width: int) -> int:
    estimate = estimate_memory(generator, views=views, times=times, height=height, width=width)
    return estimate.peak - estimate.weights
