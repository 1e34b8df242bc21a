# SPDX-License-Identifier: Apache-2.0
"""The tile schedules of the GPU kernels, walked as plain Python over every program: each query
meets each key that it may see exactly once, and no other."""

import pytest
import torch
from suite import Case, mask_of

pytest.importorskip("triton", reason="Triton exists for Linux only")

from viewtime_kernels.hopper import schedule
from viewtime_kernels.hopper.configs import rests
from viewtime_kernels.triton_kernels import tiles
from viewtime_kernels.triton_kernels.launch import CODES, canonical, tail_block

GRIDS = [(2, 2, 1), (3, 4, 5), (2, 3, 16), (4, 2, 33), (3, 3, 48)]


def walk(case: Case, home: int, loops) -> torch.Tensor:
    """(N, N) counts of how often each token meets each other. loops(touched): an iterable of
    (tiles in the row, in each frame, in all, row skip, frame skip, block)."""
    views, times, space = case.views, case.times, case.space
    pattern = CODES[case.pattern]
    row = times * space
    straddle = space % home != 0 and (case.pattern != "view" or row % home != 0)
    met = torch.zeros(case.tokens, case.tokens, dtype=torch.int32)
    programs = -(-row // home) * views
    for program in range(programs):
        head, view, first, time, touched = tiles.home_tile.fn(program, views, times, space, home)
        assert head == 0 and (straddle or touched == 1 or case.pattern == "view")
        mine = range(view * row + first, view * row + min(first + home, row))
        for in_row, in_frame, count, row_skip, frame_skip, block in loops(touched):
            for i in range(count):
                start, end, seen = tiles.visited_tile.fn(
                    i, in_row, in_frame, row_skip, frame_skip, view, time, views, times, space,
                    block, straddle, pattern,
                )  # fmt: skip
                stop = min(start + block, end)
                assert 0 <= start < stop <= case.tokens
                for token in mine:
                    if not straddle or seen < 0 or token // space % times == seen:
                        met[token, start:stop] += 1
    return met


@pytest.mark.parametrize("pattern", ("view_time", "view", "time"))
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("home, block", [(32, 16), (16, 32), (64, 64)])
def test_full_tiles_and_tails_meet_what_the_mask_says(grid, pattern, home, block):
    case = Case(*grid, pattern)
    views, times, space = grid
    code = CODES[pattern]
    tail = tail_block(block, pattern, times, space)

    def loops(touched):
        counts = tiles.full_tiles.fn(touched, views, times, space, block, code)
        yield *counts, 0, 0, block
        if tail:
            counts = tiles.tail_tiles.fn(touched, views, times, space, block, tail, code)
            row = times * space
            yield *counts, row // block * block, space // block * block, tail

    assert torch.equal(walk(case, home, loops), mask_of(case).int())


@pytest.mark.parametrize("pattern", ("view_time", "view", "time"))
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("home, block", [(48, 32)])
def test_the_ring_meets_what_the_mask_says(grid, pattern, home, block):
    case = Case(*grid, pattern)

    def loops(touched):
        yield *schedule.ring_tiles.fn(touched, *grid, block, CODES[pattern]), 0, 0, block

    assert torch.equal(walk(case, home, loops), mask_of(case).int())


@pytest.mark.parametrize("pattern", ("view_time", "view", "time"))
@pytest.mark.parametrize("views, times", [(1, 1), (1, 4), (4, 1), (3, 2)])
def test_the_canonical_grid_means_the_same(pattern, views, times):
    better, *grid = canonical(pattern, views, times)
    assert torch.equal(mask_of(Case(*grid, 3, better)), mask_of(Case(views, times, 3, pattern)))


def test_tiles_at_the_papers_sizes_waste_nothing():
    """V8 T16: at S = 576 and 2304, tiles hold exactly the keys that are seen; the Hopper ring's
    128 keys hang over by 64 in 7 of 23 frames at S = 576."""
    for space, block in ((576, 64), (576, 128), (2304, 128)):
        _, _, full = tiles.full_tiles.fn(1, 8, 16, space, block, 0)
        tail = tail_block(block, "view_time", 16, space)
        tails = tiles.tail_tiles.fn(1, 8, 16, space, block, tail, 0)[2] if tail else 0
        assert full * block + tails * tail == 23 * space
    from viewtime_kernels.hopper.configs import choose

    config = choose(128, "view_time", 16, 576)
    assert 576 % config.block_m == 0 and rests(config, "view_time", 16, 576) == (0, 64)
    assert schedule.ring_tiles.fn(1, 8, 16, 576, 128, 0)[2] * 128 == 23 * 576 + 7 * 64
