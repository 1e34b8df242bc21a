# SPDX-License-Identifier: Apache-2.0
"""The torch operators: opcheck, whole-graph compilation, autocast, checkpointing, the choice.
Numbers against float64 are in the backends' tests; here a plain call is the truth."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from suite import PATTERNS, Case, inputs_of, with_gradients
from torch.utils.checkpoint import checkpoint

import viewtime_kernels
from viewtime_kernels import (
    backends,
    explain_backend,
    first_use,
    inclusion_exclusion,
    view_time_attention,
)

CASE = Case(2, 3, 10, batch=2, dim=16)


def attend(q, k, v, **more):
    return view_time_attention(q, k, v, views=2, times=3, **more)


@pytest.mark.parametrize(
    "pattern, dtype", [("view_time", torch.bfloat16), *((p, torch.float32) for p in PATTERNS)]
)
def test_opcheck_passes_for_both_operators(pattern, dtype):
    q, k, v, grad = inputs_of(Case(2, 3, 5, pattern, dtype, heads=2, dim=8))
    problem = pattern, 2, 3, 0.4, "auto"
    leaves = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.viewtime.attention.default, (*leaves, *problem))
    with torch.no_grad():
        out, lse = torch.ops.viewtime.attention(q, k, v, *problem)
    given = [x.detach() for x in (grad, q, k, v, out, lse)]
    torch.library.opcheck(torch.ops.viewtime.attention_backward.default, (*given, *problem))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph_forward_and_backward(dynamic):
    def block(q, k, v):
        out, lse = attend(q * 2, k, v, return_lse=True)
        return out.sin() + lse.transpose(1, 2)[..., None]

    q, k, v, grad = inputs_of(CASE)
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for mine, plain in zip(
        with_gradients(compiled, q, k, v, grad), with_gradients(block, q, k, v, grad)
    ):
        torch.testing.assert_close(mine, plain)


def test_the_choice_is_made_when_it_runs_and_never_while_tracing(monkeypatch):
    seen, choose = [], backends.choose
    monkeypatch.setattr(
        backends, "choose", lambda *x, **grid: seen.append(type(x[0])) or choose(*x, **grid)
    )
    q, k, v, grad = inputs_of(CASE)
    with_gradients(torch.compile(attend, fullgraph=True, backend="aot_eager"), q, k, v, grad)
    assert seen == [torch.Tensor, torch.Tensor]  # once forward, once backward


def test_compiles_as_one_graph_under_autocast_and_checkpointing():
    def block(q, k, v):
        return checkpoint(attend, q * 2, k, v, use_reentrant=False).relu()

    q, k, v, grad = inputs_of(CASE)
    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        mine = with_gradients(compiled, q, k, v, grad)
        plain = with_gradients(block, q, k, v, grad)
    assert mine[0].dtype == torch.bfloat16 and mine[1].dtype == torch.float32
    for a, b in zip(mine, plain):
        torch.testing.assert_close(a, b)


def test_checkpointing_gives_the_same_gradients_and_saves_nothing_inside():
    q, k, v, grad = inputs_of(CASE)
    plain = with_gradients(attend, q, k, v, grad)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        attend(*(x.detach().requires_grad_() for x in (q, k, v)))
    assert len(saved) == 5  # q, k, v, out, lse
    again = with_gradients(lambda *x: checkpoint(attend, *x, use_reentrant=False), q, k, v, grad)
    for a, b in zip(plain, again):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_autocast_treats_it_as_torchs_own_attention(dtype):
    q, k, v, grad = (x.to(dtype) for x in inputs_of(CASE))
    stock = lambda *x: F.scaled_dot_product_attention(*x)  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        mine = with_gradients(attend, q, k, v, grad)
        theirs = with_gradients(stock, q, k, v, grad)
        assert [x.dtype for x in mine] == [x.dtype for x in theirs]
        if dtype == torch.float32:  # what autocast makes one may come in several dtypes
            mixed = attend(q, k, v.bfloat16())
            torch.testing.assert_close(mixed, mine[0], rtol=0, atol=0)


def test_a_second_derivative_is_refused_in_words():
    q, k, v, _ = inputs_of(CASE)
    q.requires_grad_()
    (dq,) = torch.autograd.grad(attend(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(dq.sum(), q)


def test_the_log_sum_exp_is_one_for_merging_with_other_keys():
    """Two softmaxes over halves of the keys, merged by their log-sum-exps, are the whole one."""
    q, k, v, grad = inputs_of(Case(1, 4, 12, dtype=torch.float64, dim=8))

    def halves(q, k, v):
        parts = []
        for keys in (slice(0, 24), slice(24, 48)):
            k_h, v_h = (torch.cat((x[:, keys],) * 2, dim=1) for x in (k, v))
            parts.append(view_time_attention(q, k_h, v_h, views=1, times=4, return_lse=True))
        lse = torch.stack([lse for _, lse in parts])
        weights = lse.softmax(dim=0).transpose(2, 3)[..., None]
        return sum(out * w for (out, _), w in zip(parts, weights))

    whole = lambda *x: view_time_attention(*x, views=1, times=4)  # noqa: E731
    for a, b in zip(with_gradients(halves, q, k, v, grad), with_gradients(whole, q, k, v, grad)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# The choice. On a machine without a GPU, fake tensors stand for one.


@pytest.fixture
def fake_h100(monkeypatch):
    """bfloat16 tensors that say they are on an sm_90, and backends that record what they get."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(first_use, "_outcomes", {})
    real, wrong, checked = importlib.import_module, {}, []

    def backend(name):
        def forward(q, k, v, **problem):
            checked.append(name)
            out, lse = inclusion_exclusion.forward(q, k, v, **problem)
            return out + wrong.get(name, 0.0), lse

        return SimpleNamespace(
            unsupported=lambda q, k, v, **_: "only D = 16" if q.shape[-1] != 16 else None,
            forward=forward,
            backward=inclusion_exclusion.backward,
        )

    made = {f"viewtime_kernels.{n}": backend(n) for n in ("hopper", "triton_kernels")}
    monkeypatch.setattr(
        backends.importlib, "import_module", lambda name: made[name] if name in made else real(name)
    )
    # The check is to run on the CPU here, whatever the inputs say.
    compare = first_use._compare
    monkeypatch.setattr(
        first_use,
        "_compare",
        lambda b, peer, like, pattern: compare(
            b, peer, torch.empty(like.shape, dtype=like.dtype), pattern
        ),
    )
    x = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16, shape=(1, 60, 2, 16))
    backends.load.cache_clear()
    yield SimpleNamespace(x=x, wrong=wrong, checked=checked, made=made)
    backends.load.cache_clear()


def choose(gpu):
    return backends.choose(gpu.x, gpu.x, gpu.x, pattern="view_time", views=2, times=3)


def test_a_hopper_gets_the_hopper_kernels_after_one_check(fake_h100):
    assert choose(fake_h100).name == "hopper"
    assert choose(fake_h100).name == "hopper"
    assert fake_h100.checked == ["hopper"]
    fake_h100.x.dtype = torch.float16
    choose(fake_h100)
    assert fake_h100.checked == ["hopper", "hopper"]


def test_a_kernel_that_is_wrong_is_passed_over_with_the_numbers(fake_h100):
    fake_h100.wrong["hopper"] = 0.02
    with pytest.warns(RuntimeWarning, match=r"'hopper' failed .* out is off by 0\.\d+ .* 0\.02"):
        choice = choose(fake_h100)
    assert choice.name == "triton" and "out is off by" in choice.others["hopper"]
    fake_h100.wrong["triton_kernels"] = float("nan")
    first_use._outcomes.clear()
    with pytest.warns(RuntimeWarning):
        assert choose(fake_h100).name == "inclusion_exclusion"


def test_a_kernel_that_does_not_build_is_passed_over(fake_h100):
    def forward(*_, **__):
        raise AssertionError("warp specialisation")

    fake_h100.made["viewtime_kernels.hopper"].forward = forward
    with pytest.warns(RuntimeWarning, match="it raised AssertionError: warp specialisation"):
        assert choose(fake_h100).name == "triton"


def test_what_a_backend_does_not_take_goes_to_the_next_and_is_explained(fake_h100, monkeypatch):
    fake_h100.x.shape = (1, 60, 2, 24)
    choice = choose(fake_h100)
    assert choice.name == "inclusion_exclusion" and fake_h100.checked == []
    assert choice.others["hopper"] == choice.others["triton"] == "only D = 16"
    fake_h100.x.shape = (1, 60, 2, 16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    choice = choose(fake_h100)
    assert choice.name == "triton" and "sm_89" in choice.others["hopper"]


def test_nothing_is_checked_while_a_graph_is_captured(fake_h100, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    choice = choose(fake_h100)
    assert choice.name == "inclusion_exclusion" and "captured" in choice.others["hopper"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert choose(fake_h100).name == "hopper"


def test_the_choice_on_a_cpu_is_stated_with_a_reason_for_each_other_backend():
    q, k, v, _ = inputs_of(CASE)
    choice = explain_backend(q, k, v, views=2, times=3)
    assert choice.name == "inclusion_exclusion"
    assert set(choice.others) == {"hopper", "triton", "flex", "reference"}
    assert str(choice).count("\n") == 4


def test_where_nothing_fits_each_backend_says_why():
    x = torch.zeros(1, 6, 1, 8, dtype=torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="nothing serves") as caught:
        attend(x, x, x)
    for name in ("hopper", "triton", "flex", "reference", "inclusion_exclusion: it takes float64"):
        assert f"not {name}" in str(caught.value)


def test_a_backend_that_is_named_is_used_or_refused():
    q, k, v, _ = inputs_of(Case(2, 3, 1100, heads=1, dim=8))
    with pytest.raises(ValueError, match="'reference' .* at most 6144 tokens, not 6600"):
        attend(q, k, v, backend="reference")
    with pytest.raises(ValueError, match="got 'cuda'"):
        attend(q, k, v, backend="cuda")
    assert viewtime_kernels.Choice is type(explain_backend(q, k, v, views=2, times=3))
