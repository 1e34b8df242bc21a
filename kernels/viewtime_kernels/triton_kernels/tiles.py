# SPDX-License-Identifier: Apache-2.0
"""Which tokens a tile visits, in which order: the one iterator of forward, dQ and dK/dV.

Integer arithmetic alone; it never touches a tensor. Every function runs as Triton code and, through
its `.fn`, as plain Python, which is how the tests walk the whole schedule without a GPU.

Tokens lie in (view, time, space) order. A *home* tile is BLOCK consecutive tokens of one view's
row (times * space tokens), so it may touch several frames. What it visits (its keys in the forward
and dQ kernels, its queries in dK/dV: the mask is symmetric) is

  1. the row part: all tokens of its own view, which lie side by side;
  2. the column part: for each time that the home tile touches, the frame of that time in every
     other view. Home tokens of another time ignore it (a test per row, never per score).

Both parts are cut into full tiles first (`FULL`), which need no mask; what is left over at the end
of the row and of each column frame comes in a second, short loop of smaller tiles (`TAIL`).
"""

import triton
import triton.language as tl

# Patterns, as compile-time integers.
VIEW_TIME = tl.constexpr(0)
VIEW = tl.constexpr(1)
TIME = tl.constexpr(2)


@triton.jit
def home_tile(program, views, times, space, BLOCK: tl.constexpr):
    """The home tile of a program: (batch * heads + head, view, first token in the row, first time,
    number of times touched). Tiles of a row come first, then views, then heads: programs that run
    together share the keys of one head in the L2 cache."""
    row = times * space
    tiles = (row + BLOCK - 1) // BLOCK
    tile = program % tiles
    view = program // tiles % views
    head = program // (tiles * views)
    first = tile * BLOCK
    last = first + BLOCK - 1
    last = last if last < row else row - 1
    time = first // space
    return head, view, first, time, last // space - time + 1


@triton.jit
def full_tiles(touched, views, times, space, BLOCK: tl.constexpr, PATTERN: tl.constexpr):
    """How many full tiles a home tile visits: (in the row, in each column frame, in all)."""
    in_row = times * space // BLOCK if PATTERN != TIME else 0
    others = views if PATTERN == TIME else views - 1
    in_frame = space // BLOCK if PATTERN != VIEW else 0
    return in_row, in_frame, in_row + touched * others * in_frame


@triton.jit
def tail_tiles(
    touched, views, times, space, BLOCK: tl.constexpr, TAIL: tl.constexpr, PATTERN: tl.constexpr
):
    """How many tail tiles a home tile visits: (in the row, in each column frame, in all)."""
    in_row = (times * space % BLOCK + TAIL - 1) // TAIL if PATTERN != TIME else 0
    others = views if PATTERN == TIME else views - 1
    in_frame = (space % BLOCK + TAIL - 1) // TAIL if PATTERN != VIEW else 0
    return in_row, in_frame, in_row + touched * others * in_frame


@triton.jit
def visited_tile(
    index, in_row, in_frame, row_skip, frame_skip, view, time, views, times, space,
    BLOCK: tl.constexpr, STRADDLE: tl.constexpr, PATTERN: tl.constexpr,
):  # fmt: skip
    """The index-th visited tile: (its first token, the end of its run of tokens, its time).

    in_row and in_frame say how many tiles the row and each column frame hold; row_skip and
    frame_skip, how many tokens come before them (0 for full tiles, what the full tiles took for
    tails). The time is -1 in the row part, which every home token sees.
    """
    row = times * space
    start = view * row + row_skip + index * BLOCK
    end = view * row + row
    seen = -1
    if PATTERN != VIEW:
        others = views if PATTERN == TIME else views - 1
        beyond = index - in_row
        per_frame = in_frame if in_frame > 0 else 1
        frame = beyond // per_frame
        inside = beyond - frame * per_frame
        if STRADDLE:
            column = time + frame // others
            other = frame % others
        else:
            column = time
            other = frame
        if PATTERN == VIEW_TIME:
            passed = 1 if other >= view else 0
            other = other + passed
        base = (other * times + column) * space
        is_row = index < in_row
        start = start if is_row else base + frame_skip + inside * BLOCK
        end = end if is_row else base + space
        seen = seen if is_row else column
    return start, end, seen
