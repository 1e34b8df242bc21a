# SPDX-License-Identifier: Apache-2.0
"""What a generator's forward pass and training step should take: arithmetic, never a measurement.

    python benchmarks/estimates.py

prints the table of docs/training.md. One multiplication and one addition are 2 FLOP.
"""

from __future__ import annotations

from dataclasses import dataclass

RATE = 400e12
"""FLOP/s that a step is assumed to run at: half of what an H100 or H200 makes of one big bfloat16
product (about 800), which is what attention kernels and the work between products leave of it."""
VIEWS, FRAMES, HEIGHT, WIDTH = 8, 29, 144, 256
"""The grid of the paper's first phase of training."""


@dataclass(frozen=True)
class Size:
    """A WanTransformer3DModel: `heads` heads of `head_dim` channels, feed-forward of `ffn`."""

    layers: int
    heads: int
    head_dim: int
    ffn: int
    channels: int = 16
    text_dim: int = 4096
    patch: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def self_attention(self) -> int:
        """Parameters of all self-attention layers: four products with biases, two norms."""
        c = self.width
        return self.layers * (4 * (c * c + c) + 2 * c)

    @property
    def parameters(self) -> int:
        """All parameters."""
        c, f, patch = self.width, self.ffn, self.patch**2 * self.channels
        block = 4 * (c * c + c) + 2 * c  # cross-attention
        block += 2 * c + 2 * c * f + f + c + 6 * c  # its norm, feed-forward, modulation
        text = self.text_dim * c + c + c * c + c
        time = 256 * c + c + c * c + c + 6 * (c * c + c)
        ends = patch * c + c + c * patch + patch + 2 * c
        return self.self_attention + self.layers * block + text + time + ends


WAN_1_3B = Size(layers=30, heads=12, head_dim=128, ffn=8960)
WAN_14B = Size(layers=40, heads=40, head_dim=128, ffn=13824)
# The paper's: 32 layers, 4096 wide, feed-forward of four times that. A Wan of these sizes has 8.7
# billion parameters; the rest of the paper's 11 modulate layers and multiply no token.
LIKE_11B = Size(layers=32, heads=32, head_dim=128, ffn=16384)


@dataclass(frozen=True)
class Work:
    """FLOP of one forward pass over a grid: products of all layers, of their self-attention's four
    projections, and attention itself (fused view-time attention, and over the text)."""

    tokens: int
    products: float
    projections: float
    attention: float

    @property
    def forward(self) -> float:
        return self.products + self.attention


def forward_work(
    size: Size, views: int, times: int, space: int, *, text: int = 512, sequential: bool = False
) -> Work:
    """One forward pass over views x times (latents) of `space` tokens each.

    A query sees (times + views - 1) * space keys when fused. sequential: by turns its row and its
    column, half as many on average.
    """
    c, tokens = size.width, views * times * space
    keys = (times + views) / 2 * space if sequential else (times + views - 1) * space
    projections = 2.0 * tokens * 4 * c * c * size.layers
    across = (2.0 * tokens * 2 + 2.0 * text * 2) * c * c * size.layers
    feed_forward = 2.0 * tokens * 2 * c * size.ffn * size.layers
    attention = 4.0 * tokens * (keys + text) * c * size.layers
    return Work(tokens, projections + across + feed_forward, projections, attention)


@dataclass(frozen=True)
class Training:
    """One step over one grid. Bytes: weights (float32), what training adds to them, activations.
    flop of the step; seconds at RATE."""

    weights: float
    state: float
    activations: float
    flop: float

    @property
    def bytes(self) -> float:
        return self.weights + self.state + self.activations

    @property
    def seconds(self) -> float:
        return self.flop / RATE


def training(
    size: Size, views: int, times: int, space: int, *, text: int = 512, averaged: bool = True
) -> Training:
    """One step over one grid where self-attention alone trains, with activation checkpointing.

    Weights are float32; computing is bfloat16 (autocast), which keeps a 2-byte copy of what trains.
    Gradient, two moments and the average: 4 bytes each per trained parameter. Activations: the
    input of each block in bfloat16; what one block keeps for its backward, 48 bytes per token and
    channel and 2 per feed-forward channel (counted by saved-tensor hooks on a small model); and the
    temporaries of that backward, 16 and 4.

    FLOP: forward twice (checkpointing), gradients of activations through all products once, of
    weights through the trained ones once, and 2.5 times attention.
    """
    work, c = forward_work(size, views, times, space, text=text), size.width
    trained = size.self_attention
    state = trained * (2 + 4 + 8 + (4 if averaged else 0))
    block = work.tokens * ((48 + 16) * c + (2 + 4) * size.ffn)
    activations = size.layers * work.tokens * c * 2 + block
    flop = 2 * work.forward + work.products + work.projections + 2.5 * work.attention
    return Training(4.0 * size.parameters, state, activations, flop)


def latent_times(frames: int) -> int:
    """Latents in time of a clip of 1 + 4k frames."""
    return 1 + (frames - 1) // 4


def space_tokens(height: int, width: int) -> int:
    """Tokens of one latent frame: 8 pixels to a latent, 2 latents to a token, each way."""
    return (height // 16) * (width // 16)


def table() -> list[str]:
    """The Markdown table of docs/training.md."""
    lines = [
        "| base | frames | tokens | weights | training's state | activations | together "
        "| one grid's step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, size in (("Wan 2.1 1.3B", WAN_1_3B), ("Wan 2.1 14B", WAN_14B)):
        for frames in (FRAMES, 61):
            times, space = latent_times(frames), space_tokens(HEIGHT, WIDTH)
            one = training(size, VIEWS, times, space)
            parts = (one.weights, one.state, one.activations, one.bytes)
            cells = [name, f"{VIEWS} x {frames}", f"{VIEWS * times * space:,}"]
            cells += [f"{part / 1e9:.1f} GB" for part in parts]
            cells.append(f"{one.flop / 1e15:.2f} PFLOP, {one.seconds:.1f} s")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
