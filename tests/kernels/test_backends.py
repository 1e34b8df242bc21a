# SPDX-License-Identifier: Apache-2.0
"""The reference and inclusion-exclusion through the shared sweep; the stock calls they rest on."""

from __future__ import annotations

import pytest
import torch
from suite import Case, check_forward, check_gradients, inputs_of, sweep, truth_of
from torch._subclasses.fake_tensor import FakeTensorMode

from viewtime_kernels import inclusion_exclusion, parts, reference, view_time_attention

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("case", sweep(DTYPES, (64, 128)), ids=str)
def test_inclusion_exclusion_is_as_exact_as_masked_attention(case):
    check_forward(inclusion_exclusion, case)
    check_gradients("inclusion_exclusion", case)


@pytest.mark.parametrize("case", sweep((torch.float32, torch.float64), (64,), paper=False), ids=str)
def test_the_reference_is_the_masked_softmax(case):
    check_forward(reference, case)
    check_gradients("reference", case)


@pytest.mark.parametrize("case", sweep((torch.float32,), (24,), paper=False), ids=str)
def test_plain_products_in_chunks_serve_where_no_flash_kernel_does(case, monkeypatch):
    """Chunks of a few queries each, so that their seams are in the test."""
    monkeypatch.setattr(parts, "part_for", lambda x: parts.Plain)
    monkeypatch.setattr(parts, "CHUNK_BYTES", 40_000)
    check_forward(inclusion_exclusion, case)
    check_gradients(inclusion_exclusion, case)


@pytest.mark.parametrize("pattern", ["view_time", "view", "time"])
@pytest.mark.parametrize("backend", ["reference", "inclusion_exclusion"])
def test_gradients_of_output_and_log_sum_exp_pass_gradcheck(backend, pattern):
    case = Case(2, 3, 2, pattern, torch.float64, heads=2, dim=4)
    leaves = [x.requires_grad_() for x in inputs_of(case)[:3]]
    assert torch.autograd.gradcheck(
        lambda *x: torch.ops.viewtime.attention(*x, pattern, 2, 3, 0.5, backend), leaves, atol=1e-7
    )


@pytest.mark.parametrize("own, least, most", [(12.0, 0.97, 1.0), (-12.0, 0.0, 0.03)])
def test_the_sweep_holds_own_frames_with_nearly_all_and_nearly_no_mass(own, least, most):
    """A test of the sweep: the share of the own frame is what the cases say it is."""
    case = next(c for c in sweep() if c.own == own)
    q, k, _, _ = inputs_of(case)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * case.dim**-0.5
    frame = torch.arange(case.tokens) // case.space
    inside = scores.masked_fill(frame[:, None] != frame, -torch.inf).logsumexp(dim=-1)
    share = (inside - truth_of(case)[1]).exp().mean().item()
    assert least <= share <= most


def test_float16_is_not_emulated_on_a_cpu_without_it(monkeypatch):
    x = torch.zeros(1, 4, 1, 8, dtype=torch.float16)
    monkeypatch.setattr(parts, "_cpu_multiplies_float16", lambda: False)
    assert parts.working_dtype(x) == torch.float32
    monkeypatch.setattr(parts, "_cpu_multiplies_float16", lambda: True)
    assert parts.working_dtype(x) == torch.float16
    assert parts.working_dtype(x.bfloat16()) == torch.bfloat16


@pytest.mark.parametrize("part", [parts.CudaFlash, parts.Cudnn])
def test_the_calls_for_cuda_fit_torchs_own_signatures(part):
    """On shapes alone: nothing here says that the numbers are right on a GPU."""
    with FakeTensorMode():
        like = dict(device="cuda", dtype=torch.bfloat16)
        q, k, v, grad = (torch.empty(3, 20, 2, 64, **like).transpose(1, 2) for _ in range(4))
        out, lse = part.forward(q, k, v, 0.125)
        assert out.shape == q.shape and lse.shape == (3, 2, 20) and lse.dtype == torch.float32
        for made in part.backward(grad, q, k, v, out, lse, 0.125):
            assert made.shape == q.shape and made.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "capability, dtype, dim, length, part",
    [
        ((9, 0), torch.bfloat16, 128, 64, parts.Cudnn),
        ((9, 0), torch.bfloat16, 256, 64, parts.CudaFlash),
        ((9, 0), torch.float16, 64, 1, parts.CudaFlash),
        ((8, 0), torch.float16, 64, 64, parts.CudaFlash),
        ((9, 0), torch.bfloat16, 12, 64, parts.Plain),
        ((9, 0), torch.float32, 64, 64, parts.Plain),
    ],
)
def test_cuda_groups_go_to_the_kernel_that_takes_them(
    capability, dtype, dim, length, part, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    with FakeTensorMode():
        x = torch.empty(2, 2, length, dim, device="cuda", dtype=dtype)
    assert parts.part_for(x) is part


def test_nothing_of_the_size_n_squared_is_held():
    """131,072 tokens: one bool per pair would be 17 GB, and no single tensor may be over 40 MB."""
    views, times, space = 256, 256, 2
    biggest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal biggest
            made = func(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(made):
                if isinstance(x, torch.Tensor):
                    biggest = max(biggest, x.untyped_storage().nbytes())
            return made

    q, k, v = (torch.randn(1, views * times * space, 1, 8).requires_grad_() for _ in range(3))
    with Watch():
        out = view_time_attention(q, k, v, views=views, times=times)
        torch.autograd.grad(out.sum(), (q, k, v))
    assert 0 < biggest <= 40e6
    assert torch.isfinite(out).all()
