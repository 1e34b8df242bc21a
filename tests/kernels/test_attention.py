# SPDX-License-Identifier: Apache-2.0
"""The public functions as a caller meets them: defaults, strides, refusals, what gets imported.
How exact each backend is stands in the backends' own tests."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from suite import PATTERNS, Case, attend, inputs_of, truth_of, with_gradients

import viewtime_kernels
from viewtime_kernels import reference_attention, view_time_attention, view_time_mask
from viewtime_kernels.reference import pattern_mask


@pytest.mark.parametrize("pattern", PATTERNS)
def test_by_default_it_is_the_masked_softmax_at_one_over_root_d(pattern):
    case = Case(3, 4, 5, pattern, torch.float64, batch=2, dim=16)
    q, k, v, grad = inputs_of(case)
    function = getattr(viewtime_kernels, f"{pattern}_attention")
    ours = with_gradients(lambda *x: function(*x, views=3, times=4), q, k, v, grad)
    mask = pattern_mask(pattern, 3, 4, 5)
    defined = with_gradients(lambda *x: reference_attention(*x, mask=mask), q, k, v, grad)
    for mine, true in zip(ours, defined):
        torch.testing.assert_close(mine, true, rtol=0, atol=1e-12)
    out, lse = attend("auto", case, q, k, v)
    torch.testing.assert_close(out, ours[0], rtol=0, atol=0)
    torch.testing.assert_close(lse, truth_of(case)[1], rtol=0, atol=1e-12)


def test_it_takes_any_strides_of_inputs_and_gradient():
    q, k, v, grad = inputs_of(Case(3, 4, 5, dtype=torch.float64, batch=2, dim=16))
    # The head dim is the slowest axis here, which no stock kernel reads.
    odd = [x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0) for x in (q, k, v, grad)]
    assert odd[0].stride(-1) != 1
    for backend in ("inclusion_exclusion", "reference"):
        function = lambda *x: view_time_attention(*x, views=3, times=4, backend=backend)  # noqa: B023, E731
        for mine, plain in zip(
            with_gradients(function, *odd), with_gradients(function, q, k, v, grad)
        ):
            torch.testing.assert_close(mine, plain, rtol=0, atol=1e-12)


def test_results_are_laid_out_as_they_are_promised():
    q, k, v, _ = inputs_of(Case(3, 4, 5, dtype=torch.bfloat16, batch=2, layout="heads_first"))
    with torch.inference_mode():
        for times, views in ((4, 3), (12, 1), (1, 12)):
            out, lse = view_time_attention(q, k, v, views=views, times=times, return_lse=True)
            assert out.shape == q.shape and out.dtype == torch.bfloat16 and out.is_contiguous()
            assert lse.shape == (2, 2, 60) and lse.dtype == torch.float32 and lse.is_contiguous()


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
        (dict(q=x, k=x, v=x, views=1, times=-5), "got 1 and -5"),
        (dict(q=x[0], k=x, v=x, views=1, times=2), r"got shape \(10, 2, 8\)"),
        (dict(q=x[:0], k=x[:0], v=x[:0], views=1, times=2), r"empty, got shape \(0, 10, 2, 8\)"),
        (dict(q=x.long(), k=x.long(), v=x.long(), views=1, times=2), "torch.int64"),
    ]
    for arguments, message in cases:
        for function in (view_time_attention, viewtime_kernels.explain_backend):
            with pytest.raises(ValueError, match=message):
                function(**arguments)
    with pytest.raises(ValueError, match="one of view_time, view, time, got 'rows'"):
        viewtime_kernels.explain_backend(x, x, x, views=1, times=2, pattern="rows")


def test_nothing_but_torch_is_imported():
    """Triton is for backends that a GPU asks for; FlexAttention's front is a part of torch."""
    code = (
        "import sys, torch, torch.nn.attention.flex_attention, torch.library;"
        "before = set(sys.modules); import viewtime_kernels;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names);"
        "assert new <= {'viewtime_kernels', 'torch'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
