# SPDX-License-Identifier: Apache-2.0
"""FlexAttention's mask of blocks against the mask it stands for, and the compiled call on a CPU.
Its backward needs a GPU and is not tested here."""

from __future__ import annotations

import pytest
import torch
from suite import PATTERNS, Case, compare, inputs_of, mask_of, masked_attention, stock_of, truth_of

from viewtime_kernels import flex, view_time_attention

CPU = torch.device("cpu")
# (views, times, space, block): blocks within frames, over several, over all of a view, uneven ones
GRIDS = [
    (3, 4, 16, (8, 8)), (3, 4, 12, (8, 8)), (2, 5, 3, (8, 16)), (4, 3, 1, (4, 2)),
    (3, 3, 5, (16, 16)), (1, 4, 7, (8, 4)), (5, 1, 6, (8, 8)), (2, 9, 144, (128, 64)),
]  # fmt: skip


def blocks_of(mask):
    """(touched, full) as bool tables from FlexAttention's lists."""
    tables = []
    for count, index in (
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        count, index = count[0, 0], index[0, 0]
        table = torch.zeros(index.shape, dtype=torch.bool)
        for row in range(index.shape[0]):
            table[row, index[row, : count[row]].long()] = True
        tables.append(table)
    assert not (tables[0] & tables[1]).any()
    return tables[0] | tables[1], tables[1]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blocks_are_those_that_the_mask_touches(grid, pattern):
    views, times, space, (rows, columns) = grid
    mask = flex.block_mask(pattern, views, times, space, (rows, columns), CPU)
    touched, full = blocks_of(mask)
    dense = mask_of(Case(views, times, space, pattern))
    n = dense.shape[0]
    index = torch.arange(n)
    assert torch.equal(mask.mask_mod(0, 0, index[:, None], index[None]), dense)
    padded = torch.zeros(touched.shape[0] * rows, touched.shape[1] * columns, dtype=torch.bool)
    padded[:n, :n] = dense
    tiles = padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))  # (I, rows, J, columns)
    assert torch.equal(touched, tiles.any(dim=3).any(dim=1))
    every = tiles.all(dim=3).all(dim=1)
    assert not (full & ~every).any()
    # What is masked for nothing spans two views; nowhere else.
    frame = index // space
    one_view = torch.tensor([len((f // times).unique()) == 1 for f in frame.split(rows)])
    k_one_view = torch.tensor([len((f // times).unique()) == 1 for f in frame.split(columns)])
    assert torch.equal(
        (full ^ every) & one_view[:, None] & k_one_view[None], torch.zeros_like(full)
    )


def test_the_mask_is_made_of_blocks_and_kept():
    """At the paper's size one value per pair of tokens would be 5.4 GB."""
    mask = flex.block_mask("view_time", 8, 16, 576, (128, 128), CPU)
    assert mask.kv_indices.shape == (1, 1, 576, 576)
    assert flex.block_mask("view_time", 8, 16, 576, (128, 128), CPU) is mask
    touched, full = blocks_of(mask)
    ideal = (8 + 16 - 1) * 576 * 8 * 16 * 576
    assert touched.sum().item() * 128 * 128 / ideal == pytest.approx(1.064, abs=2e-3)
    assert 1 - full.sum().item() / touched.sum().item() == pytest.approx(0.12, abs=2e-3)


def test_compiled_on_a_cpu_it_is_as_exact_as_masked_attention():
    case = Case(3, 4, 21, heads=2, dim=32, batch=2, layout="packed")  # blocks of 64 over 3 frames
    q, k, v, _ = inputs_of(case)
    with torch.no_grad():
        out = view_time_attention(q, k, v, views=3, times=4, backend="flex")
    compare("out", out, stock_of(case)[0], truth_of(case)[0][0], case.dtype)
    torch.testing.assert_close(out, masked_attention(case, q, k, v))


def test_on_a_cpu_it_refuses_gradients_and_the_log_sum_exp():
    q, k, v, _ = inputs_of(Case(2, 2, 8))
    with pytest.raises(ValueError, match="no backward on a CPU"):
        view_time_attention(q.requires_grad_(), k, v, views=2, times=2, backend="flex")
    with torch.no_grad(), pytest.raises(ValueError, match="no log-sum-exp on a CPU"):
        view_time_attention(q, k, v, views=2, times=2, backend="flex", return_lse=True)
