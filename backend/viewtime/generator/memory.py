# SPDX-License-Identifier: Apache-2.0
"""How much memory a generation will take, before it is begun, and what would fit instead.

Estimates from sizes alone; nothing is allocated. They are upper bounds for one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from viewtime.generator.codec import WanCodec
from viewtime.generator.errors import GeneratorError
from viewtime.generator.load import Generator
from viewtime.generator.windows import smallest_window

GIB = 1 << 30


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes: weights on the device; the forward pass of the transformer beside them; the decoding
    of frames; the text encoder, which is there before the first step. peak is what is needed at
    once, as these three follow one another."""

    weights: int
    forward: int
    decode: int
    text: int = 0

    @property
    def peak(self) -> int:
        return self.weights + max(self.forward, self.decode, self.text)


def estimate_memory(
    generator: Generator, *, views: int, times: int, height: int, width: int
) -> MemoryEstimate:
    """What generating views x times frames of height x width pixels takes.

    A transformer block holds, per token of width C in the weights' dtype: tokens, queries, keys,
    values, the three partial outputs of the fused attention, its result and the feed-forward's
    inner layer; and two float32 copies, of the norms and of the residual. Clean references have a
    timestep per token: its embedding and six modulations, made once in the weights' dtype and again
    in float32 by each block, with one more for what they scale.
    """
    model, codec = generator.model, generator.codec
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if generator.offload != "none":  # two blocks at once: one at work, the next on its way
        blocks = model.transformer.blocks
        there = sum(p.numel() * p.element_size() for p in blocks.parameters())
        weights -= there - min(2 * there // len(blocks), there)
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
        per_pixel = 2 * features + 13 + model.config.prior_maps + model.config.prior_context
        fine = views * latent_times * height * width // codec.spatial**2 * 4 * per_pixel
    per_token = 7 * c * (size + 4) if model.config.references == "clean" else 0
    forward = (
        in_dtype + tokens * (4 * 2 * c + per_token) + fine + 2 * pixels * 4 // codec.spatial**2
    )
    decode = pixels * 4
    if isinstance(codec, WanCodec):
        decode += codec.views_at_once(height, width) * codec.bytes_per_view(height, width)
    return MemoryEstimate(weights, forward, decode, _text_bytes(generator))


def _text_bytes(generator: Generator) -> int:
    """Bytes of the text encoder's weights once they are loaded (see `text`); 0 without one."""
    if not generator.takes_text:
        return 0
    assert generator.folder is not None
    size = 4 if generator.device.type == "cpu" else 2
    return (
        sum(_numbers(file) for file in generator.folder.glob("text_encoder/*.safetensors")) * size
    )


def _numbers(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device; on the CPU, of the whole machine."""
    if device.type == "cuda":
        # What this process keeps of earlier jobs, but does not use, can be taken too.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil

    return psutil.virtual_memory().available


def require_memory(
    generator: Generator,
    *,
    views: int,
    times: int,
    height: int,
    width: int,
    free: int,
    window: tuple[int, int] | None = None,
) -> MemoryEstimate:
    """The estimate, if it fits into `free` bytes beside the weights, which are there already.

    views, times: of the grid; window: (views, times) made at once, None for all of it.

    Raises:
        GeneratorError: names what is needed, what is free, and the option that would fit.
    """
    size = {"height": height, "width": width}
    made = views, times
    if window is not None:
        made = min(window[0], views), min(window[1], times)
    estimate = estimate_memory(generator, views=made[0], times=made[1], **size)
    need = estimate.peak - estimate.weights
    if need <= free:
        return estimate
    said = "" if window is None else f", {made[0]} views x {made[1]} times at once,"
    if estimate.text > free:
        advice = (
            f"the text encoder alone takes {_gib(estimate.text)} of it: choose the device "
            '"cpu", or a generator without text_encoder/'
        )
    else:
        advice = _advice(generator, made, height, width, free)
    raise GeneratorError(
        f"{views} views x {times} times of {width} x {height} px{said} need about "
        f"{_gib(need)} beside the model, {_gib(free)} are free; {advice}"
    )


def _advice(generator: Generator, made: tuple[int, int], height: int, width: int, free: int) -> str:
    """What would fit: the biggest window of the frames, or the biggest frames."""
    least = smallest_window(generator, *made)

    def fits(views: int, times: int, height: int, width: int) -> bool:
        found = estimate_memory(generator, views=views, times=times, height=height, width=width)
        return found.peak - found.weights <= free

    step = _time_step(generator)
    fitting = [
        (views, times)
        for views in range(least[0], made[0] + 1)
        for times in range(least[1], made[1] + 1, step)
        if fits(views, times, height, width)
    ]
    if fitting:
        # Nearly as many cells at once as can be, and of those the most views: they are few, and
        # what leads from one to the next is less than from one moment to the next.
        most = max(views * times for views, times in fitting)
        views, times = max(shape for shape in fitting if 4 * shape[0] * shape[1] >= 3 * most)
        return f"a window of {views} x {times} would fit (window {views}x{times})"
    rows, columns = generator.frame_multiple
    for lower in range(height // rows - 1, 0, -1):
        narrow = max(round(lower * rows * width / height / columns), 1) * columns
        if fits(*least, lower * rows, narrow):
            return (
                f"frames {lower * rows} px high would fit, {least[0]} x {least[1]} at once "
                f"(size {lower * rows}, window {least[0]}x{least[1]})"
            )
    return "nothing smaller fits either: free some memory, or take a smaller generator"


def _time_step(generator: Generator) -> int:
    return generator.codec.temporal if isinstance(generator.codec, WanCodec) else 1


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GB" if count >= GIB // 10 else f"{count / (1 << 20):.1f} MB"
