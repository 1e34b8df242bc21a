# SPDX-License-Identifier: Apache-2.0
"""View-time attention against the float64 masked softmax, forward and backward.

A form may err at most twice as much as torch's own masked attention does in the same dtype.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from viewtime_kernels import (
    parts,
    reference_attention,
    time_attention,
    view_attention,
    view_time_attention,
    view_time_mask,
)
from viewtime_kernels.parts import Plain

GRIDS = [(1, 4, 6), (4, 1, 6), (3, 4, 1), (2, 3, 7), (4, 3, 9), (5, 2, 16), (2, 2, 33)]
ATOL = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def random_qkv(grid, dtype, *, batch=2, heads=3, dim=16, spread=1.0, seed=0):
    v, t, s = grid
    generator = torch.Generator().manual_seed(seed)
    q, k, value, grad = torch.randn(4, batch, v * t * s, heads, dim, generator=generator)
    return [x.to(dtype) for x in (q * spread, k * spread, value, grad)]


def stock_attention(q, k, v, mask):
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)
    return out.transpose(1, 2)


def with_gradients(function, q, k, v, grad):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_as_good_as_stock(ours, stock, exact, dtype):
    for name, mine, theirs, truth in zip(("out", "dq", "dk", "dv"), ours, stock, exact):
        assert mine.dtype == dtype
        err, err_stock = (mine - truth).abs().max(), (theirs - truth).abs().max()
        bound = 2 * err_stock + ATOL[dtype] * (1 + truth.abs().max())
        assert err <= bound, f"{name}: {err:.3g} over {bound:.3g} (stock errs {err_stock:.3g})"


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_matches_the_masked_softmax_forward_and_backward(grid, dtype):
    q, k, v, grad = random_qkv(grid, dtype)
    mask = view_time_mask(*grid)
    ours = with_gradients(
        lambda *x: view_time_attention(*x, views=grid[0], times=grid[1]), q, k, v, grad
    )
    stock = with_gradients(lambda *x: stock_attention(*x, mask), q, k, v, grad)
    exact = with_gradients(
        lambda *x: reference_attention(*x, mask=mask), *(x.double() for x in (q, k, v, grad))
    )
    assert_as_good_as_stock(ours, stock, exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spread", [0.01, 12.0])
def test_stays_exact_when_one_frame_takes_all_the_mass_and_when_none_does(spread, dtype):
    grid = (3, 3, 8)
    q, k, v, grad = random_qkv(grid, dtype, spread=spread)
    mask = view_time_mask(*grid)
    ours = with_gradients(lambda *x: view_time_attention(*x, views=3, times=3), q, k, v, grad)
    stock = with_gradients(lambda *x: stock_attention(*x, mask), q, k, v, grad)
    exact = with_gradients(
        lambda *x: reference_attention(*x, mask=mask), *(x.double() for x in (q, k, v, grad))
    )
    assert_as_good_as_stock(ours, stock, exact, dtype)


def test_takes_any_strides_and_a_scale_of_ones_own():
    grid = (3, 4, 5)
    packed = torch.randn(2, 60, 3, 2, 16, dtype=torch.float64)  # as a fused qkv projection gives
    q, k, v = (packed[:, :, i] for i in range(3))
    grad = torch.randn(16, 2, 60, 2, dtype=torch.float64).permute(1, 2, 3, 0)
    ours = with_gradients(
        lambda *x: view_time_attention(*x, views=3, times=4, scale=0.7), q, k, v, grad
    )
    exact = with_gradients(
        lambda *x: reference_attention(*x, mask=view_time_mask(*grid), scale=0.7), q, k, v, grad
    )
    for mine, truth in zip(ours, exact):
        torch.testing.assert_close(mine, truth, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        view_time_attention(q, k, v, views=3, times=4, scale=0.7), ours[0], rtol=0, atol=0
    )


def test_gradients_pass_gradcheck():
    q, k, v, _ = random_qkv((2, 3, 3), torch.float64, batch=1, heads=2, dim=4)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(
        lambda *x: view_time_attention(*x, views=2, times=3), leaves, atol=1e-7
    )


def test_plain_products_serve_where_no_flash_kernel_does(monkeypatch):
    grid = (3, 2, 5)
    q, k, v, grad = random_qkv(grid, torch.float64)
    function = lambda *x: view_time_attention(*x, views=3, times=2)  # noqa: E731
    flash = with_gradients(function, q, k, v, grad)
    monkeypatch.setattr(parts, "part_for", lambda x: Plain)
    plain = with_gradients(function, q, k, v, grad)
    for a, b in zip(flash, plain):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "function, sees",
    [
        (view_attention, lambda v, t: v[:, None] == v[None]),
        (time_attention, lambda v, t: t[:, None] == t[None]),
    ],
    ids=["rows", "columns"],
)
def test_rows_and_columns_alone_are_what_their_names_say(function, sees):
    frame = torch.arange(3 * 4 * 5) // 5
    q, k, v, grad = random_qkv((3, 4, 5), torch.float64)
    mask = sees(frame // 4, frame % 4)
    ours = with_gradients(lambda *x: function(*x, views=3, times=4), q, k, v, grad)
    exact = with_gradients(lambda *x: reference_attention(*x, mask=mask), q, k, v, grad)
    for mine, truth in zip(ours, exact):
        torch.testing.assert_close(mine, truth, rtol=0, atol=1e-12)


def test_the_mask_has_the_density_of_a_row_and_a_column_counted_once():
    mask = view_time_mask(8, 16, 3)
    assert mask.double().mean().item() == pytest.approx((8 + 16 - 1) / (8 * 16))
    assert torch.equal(mask, mask.T)


def test_refusals_name_the_values():
    x = torch.zeros(1, 10, 2, 8)
    cases = [
        (dict(q=x, k=x, v=x, views=3, times=2), "10 tokens .* 3 x 2 = 6"),
        (dict(q=x, k=x[:, :5], v=x, views=1, times=2), r"k has shape \(1, 5, 2, 8\)"),
        (dict(q=x, k=x, v=x.double(), views=1, times=2), "v is torch.float64 .* torch.float32"),
        (dict(q=x, k=x.to("meta"), v=x, views=1, times=2), "k is on meta but q is on cpu"),
        (dict(q=x, k=x, v=x, views=0, times=2), "got 0 and 2"),
        (dict(q=x[0], k=x, v=x, views=1, times=2), r"got shape \(10, 2, 8\)"),
        (dict(q=x.long(), k=x.long(), v=x.long(), views=1, times=2), "torch.int64"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            view_time_attention(**arguments)


def test_nothing_but_torch_is_imported():
    code = (
        "import sys, torch; before = set(sys.modules); import viewtime_kernels;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names);"
        "assert new <= {'viewtime_kernels', 'torch'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
