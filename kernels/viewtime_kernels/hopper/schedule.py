# SPDX-License-Identifier: Apache-2.0
"""The order in which the Hopper kernel visits tiles of keys, and where each lies in its ring.

Integer arithmetic alone, as Triton code and, through `.fn`, as plain Python. It never masks.

Unlike the Triton kernels, all tiles go through one loop, for the ring must not run dry between two:
each run of tokens (the row, then each column frame) is cut into tiles of BLOCK, and the last tile
of a run may hang over its end. The overhang holds other tokens (or zeros past the tensor), whose
scores the consumers replace by minus infinity, in that tile alone.
"""

import triton
import triton.language as tl

from viewtime_kernels.triton_kernels.tiles import TIME, VIEW


@triton.jit
def ring_tiles(touched, views, times, space, BLOCK: tl.constexpr, PATTERN: tl.constexpr):
    """How many tiles a home tile visits: (in the row, in each column frame, in all)."""
    in_row = (times * space + BLOCK - 1) // BLOCK if PATTERN != TIME else 0
    others = views if PATTERN == TIME else views - 1
    in_frame = (space + BLOCK - 1) // BLOCK if PATTERN != VIEW else 0
    return in_row, in_frame, in_row + touched * others * in_frame


@triton.jit
def ring_slot(index, STAGES: tl.constexpr):
    """Where the index-th tile lies: (its stage, its lap's parity).

    A stage is filled once per lap. Its `full` barrier completes phase number `lap` when the lap's
    tile has arrived, so consumers wait for parity lap & 1. Its `empty` barrier completes phase
    number `lap` when all consumers have let go of the lap's tile; the producer, before it fills
    the stage for a lap, waits for the phase before: parity (lap & 1) ^ 1, which a fresh barrier
    counts as done, so that the first lap does not wait.
    """
    lap = index // STAGES
    return index - lap * STAGES, lap & 1
