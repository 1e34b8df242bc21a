# SPDX-License-Identifier: Apache-2.0
"""How much is computed at once: chunk sizes for a memory budget, and the estimate behind them.

Chunks change rounding at most. Estimates are of what tensors take; a CUDA context, workspaces of
its libraries and fragmentation come on top.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from viewtime.reconstructor.config import ReconstructorConfig

GB = 1e9
_BLOCK = {False: 12.5, True: 9.5}
"""Peak of one attention block in floats per token and channel, with its input and output, by
whether it computes in 16 bit. Measured; a test holds the whole estimate to the measured peak."""


@dataclass(frozen=True)
class Chunks:
    """How many of each go through the model at once; 0 is all of them.

    frames: sequences of the patch embedding and frame attention. timesteps: of global attention.
    tokens: sequences of temporal attention, each over all times. head_frames: of the dense heads.
    """

    frames: int = 0
    timesteps: int = 0
    tokens: int = 0
    head_frames: int = 8


WHOLE = Chunks()
"""What runs without a budget: the trunk at once, the heads eight frames at a time, as upstream."""


@dataclass(frozen=True)
class Shape:
    """A grid of frames: (B, T, V, 3, height, width)."""

    batch: int
    times: int
    views: int
    height: int
    width: int

    @property
    def frames(self) -> int:
        return self.batch * self.times * self.views


def estimate_gb(
    config: ReconstructorConfig,
    shape: Shape,
    chunks: Chunks,
    weights: int,
    *,
    half: bool = False,
) -> float:
    """Peak memory in GB (1e9 bytes) of a forward pass without gradients.

    weights: bytes of the parameters. half: the trunk computes in 16 bit (autocast).
    """
    return max(
        fixed + unit * min(size or total, total)
        for fixed, unit, size, total in _stages(config, shape, chunks, weights, half)
    )


def plan_chunks(
    config: ReconstructorConfig,
    shape: Shape,
    budget_gb: float,
    weights: int,
    *,
    half: bool = False,
) -> Chunks:
    """The largest chunks with which the estimate stays within budget_gb.

    Raises ValueError, with the least that would do, when no chunks are small enough.
    """
    sizes = []
    for fixed, unit, _, total in _stages(config, shape, WHOLE, weights, half):
        fitting = int((budget_gb - fixed) / unit)
        sizes.append(0 if fitting >= total else fitting)
        if fitting < 1:
            least = estimate_gb(config, shape, Chunks(1, 1, 1, 1), weights, half=half)
            raise ValueError(
                f"memory budget of {budget_gb:g} GB for {shape.batch} x {shape.times} times x "
                f"{shape.views} views of {shape.width}x{shape.height}: at least {least:.2f} GB "
                "is needed"
            )
    chunks = Chunks(*sizes)
    return replace(chunks, head_frames=min(chunks.head_frames or 8, 8))


def fitting_times(
    config: ReconstructorConfig,
    shape: Shape,
    budget_gb: float,
    weights: int,
    *,
    half: bool = False,
    chunked: bool = True,
) -> int:
    """The most timesteps, up to those of shape, that budget_gb lets see each other; 0 where not
    even one fits. chunked: in as small chunks as it takes; else without a plan, as WHOLE does."""

    def too_many(times: int) -> bool:
        now = replace(shape, times=times)
        if not chunked:
            return estimate_gb(config, now, WHOLE, weights, half=half) > budget_gb
        try:
            plan_chunks(config, now, budget_gb, weights, half=half)
        except ValueError:
            return True
        return False

    return bisect_left(range(1, shape.times + 1), True, key=too_many)  # the estimate only grows


def _stages(
    c: ReconstructorConfig, shape: Shape, chunks: Chunks, weights: int, half: bool
) -> list[tuple[float, float, int, int]]:
    """(fixed GB, GB per unit, units at once, units) of frame, global, temporal and head stages."""
    rows, columns = shape.height // c.patch, shape.width // c.patch
    tokens = c.first_patch + rows * columns
    token = 4.0 * c.dim / GB  # of the residual stream, which stays in 32 bit
    stream = shape.frames * tokens * token
    kept = 2 * len(c.kept_layers) * stream
    images = 3 * 4.0 * shape.frames * shape.height * shape.width / GB
    block = _BLOCK[half] * token
    base = weights / GB + images + kept + stream
    # The last kept layer is being written while its blocks run; dense maps are not there yet.
    pixels = 4.0 * shape.height * shape.width / GB
    outputs = 2 + (4 if c.point_head else 0) + c.gaussian_channels + (1 if c.surface else 0)
    heads = weights / GB + images + kept + outputs * pixels * shape.frames
    return [
        (base, block * tokens, chunks.frames, shape.frames),
        (
            base,
            block * tokens * shape.views,
            chunks.timesteps,
            shape.batch * shape.times,
        ),
        (base, block * shape.times, chunks.tokens, shape.views * tokens),
        (heads, _head_gb(c, shape, rows, columns), chunks.head_frames, shape.frames),
    ]


def _head_gb(c: ReconstructorConfig, shape: Shape, rows: int, columns: int) -> float:
    """Peak of the widest DPT head per frame: its last maps, or its fusion blocks."""
    places, pixels = rows * columns, shape.height * shape.width
    half = c.head_features // 2
    adds_picture = c.gaussian_head == "anysplat" or c.surface
    last = pixels * ((4 if adds_picture else 2) * half + 2 * c.gaussian_channels + 4)
    fusion = places * c.head_features * (64 * 2 + 16 * 4)
    return 4.0 * max(last, fusion) / GB
