# SPDX-License-Identifier: Apache-2.0
"""Attention over views that lie on several processes against float64 on one, gloo on the CPU.
No network but a file that the processes meet at."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from suite import Case, compare, inputs_of, stock_of, truth_of, with_gradients

from viewtime_kernels.distributed import sharded_view_time_attention

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here")

# (ranks, cases): several views and times per rank, one of each, batches, strides, wide logits with
# next to all and next to no mass in the own frame, a scale, half precision.
CASES = {
    2: [
        Case(4, 6, 5, dim=16),
        Case(2, 2, 9, dim=16, batch=2, layout="packed"),
        Case(2, 4, 7, dim=16, batch=2, layout="heads_first", own=12.0),
        Case(4, 2, 8, dim=16, own=-12.0, scale=0.3),
        Case(4, 4, 6, dim=16, dtype=torch.bfloat16),
    ],
    4: [Case(8, 4, 5, dim=16, batch=2), Case(4, 8, 3, dim=16, spread=8.0)],
}


def worker(rank: int, meeting: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=4)
    stock = dist.all_to_all_single
    sent = []

    def counted(output, input, group=None, **more):
        ranks = dist.get_world_size(group)
        sent.append(input.numel() * input.element_size() * (ranks - 1) // ranks)
        return stock(output, input, group=group, **more)

    dist.all_to_all_single = counted
    pair = dist.new_group([1, 3])
    made = {ranks: [] for ranks in CASES}
    refusals = []
    x = torch.zeros(1, 5 * 4, 2, 16)
    for group, views, times in ((None, 5, 4), (None, 4, 5), (pair, 4, 4)):
        try:
            if group is None or rank in (0, 2):
                sharded_view_time_attention(x, x, x, views=views, times=times, group=group)
        except ValueError as error:
            refusals.append(str(error))
    for ranks, group in ((4, None), (2, pair)):
        if group is not None and rank not in (1, 3):
            continue
        place = rank if group is None else (1, 3).index(rank)
        for case in CASES[ranks]:
            mine = slice(place * case.tokens // ranks, (place + 1) * case.tokens // ranks)
            q, k, v, grad = (x[:, mine] for x in inputs_of(case))
            given = dict(views=case.views, times=case.times, scale=case.scale, group=group)
            attend = partial(sharded_view_time_attention, **given)
            sent.clear()
            with torch.no_grad():
                attend(q, k, v)
            forward = sum(sent)
            sent.clear()
            parts = with_gradients(attend, q, k, v, grad)
            made[ranks].append((parts, forward, sum(sent) - forward))
    torch.save((made, refusals), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    """What each of 4 processes made: all four together, and the second with the last."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(folder / "meeting"), str(folder)), nprocs=4)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(4)]


@pytest.mark.parametrize("ranks", CASES)
def test_ranks_that_share_the_views_attend_as_one_does(ranks, by_rank):
    members = by_rank if ranks == 4 else [by_rank[1], by_rank[3]]
    made = [made[ranks] for made, _ in members]
    for i, case in enumerate(CASES[ranks]):
        together = [torch.cat(pieces, dim=1) for pieces in zip(*(mine[i][0] for mine in made))]
        for name, mine, stock, exact in zip(
            ("out", "dq", "dk", "dv"), together, stock_of(case), truth_of(case)[0]
        ):
            compare(f"{case}: {name}", mine, stock, exact, case.dtype)


@pytest.mark.parametrize("ranks", CASES)
def test_a_rank_sends_what_the_notes_say(ranks, by_rank):
    """4 and 5 times the bytes of q, and a log-sum-exp each time, but for what stays at home."""
    members = by_rank if ranks == 4 else [by_rank[1], by_rank[3]]
    for made, _ in members:
        for case, (_, forward, backward) in zip(CASES[ranks], made[ranks], strict=True):
            sums = case.batch * case.tokens // ranks * case.heads * (ranks - 1) // ranks
            row = case.dim * case.dtype.itemsize
            assert (forward, backward) == (sums * (4 * row + 4), sums * (5 * row + 4)), case


def test_a_grid_that_the_ranks_do_not_divide_is_refused_by_its_numbers(by_rank):
    for rank, (_, refusals) in enumerate(by_rank):
        assert "4 ranks" in refusals[0] and "5 views" in refusals[0]
        assert "5 times" in refusals[1]
        if rank in (0, 2):
            assert "not a member" in refusals[2]


def test_without_a_process_group_it_says_what_is_missing():
    x = torch.zeros(1, 8, 2, 16)
    with pytest.raises(ValueError, match="init_process_group"):
        sharded_view_time_attention(x, x, x, views=2, times=2)
