# SPDX-License-Identifier: Apache-2.0
"""Chunks for a memory budget: the estimate against what is really live, and unchanged answers."""

import dataclasses
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.load import without_data
from viewtime.reconstructor.memory import (
    WHOLE,
    Chunks,
    Shape,
    estimate_gb,
    fitting_times,
    plan_chunks,
)
from viewtime.reconstructor.model import Reconstructor

FAKE = FakeTensorMode()
# The paper's widths with few layers: what is live at once hardly depends on how many there are.
PAPER = ReconstructorConfig(
    depth=2,
    dino_depth=1,
    head_layers=(0, 0, 1, 1),
    point_head=False,
    track_head=False,
    temporal="layer",
    gaussian_head="residual",
)
LARGE, MANY = Shape(1, 2, 5, 350, 518), Shape(1, 6, 5, 154, 224)


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, also of tensors without data."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def count(self, storage) -> None:
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += storage.nbytes()
        weakref.finalize(storage, self.gone, key, storage.nbytes())

    def gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def measured_gb(model: Reconstructor, shape: Shape, budget: float | None, half: bool) -> float:
    """Peak of a forward pass without data, with attention that keeps no matrix."""
    with FAKE, Live() as live, torch.no_grad():
        for parameter in model.parameters():
            live.count(parameter.untyped_storage())
        size = (shape.batch, shape.times, shape.views, 3, shape.height, shape.width)
        frames = torch.empty(size)
        dtype = torch.bfloat16 if half else None
        model(frames, trunk_dtype=dtype, memory_budget_gb=budget)
    return live.peak / 1e9


@pytest.fixture(scope="module")
def paper() -> Reconstructor:
    with FAKE:
        return Reconstructor(PAPER).eval()


@pytest.fixture(autouse=True)
def flash(monkeypatch):
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(v)
    )


def weights_of(model: Reconstructor) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("shape, half", [(LARGE, False), (MANY, True)])
def test_the_estimate_is_what_is_live_at_the_peak(paper, shape, half):
    estimate = estimate_gb(PAPER, shape, WHOLE, weights_of(paper), half=half)
    measured = measured_gb(paper, shape, None, half)
    assert measured <= 1.02 * estimate
    assert estimate <= 1.4 * measured


@pytest.mark.parametrize("kind, shape", [("none", LARGE), ("residual", MANY), ("anysplat", LARGE)])
def test_a_budget_is_kept(kind, shape):
    config = dataclasses.replace(PAPER, gaussian_head=kind, point_head=kind == "none")
    with FAKE:
        model = Reconstructor(config).eval()
    weights = weights_of(model)
    whole = estimate_gb(config, shape, WHOLE, weights)
    least = estimate_gb(config, shape, Chunks(1, 1, 1, 1), weights)
    budget = 0.7 * least + 0.3 * whole
    chunks = plan_chunks(config, shape, budget, weights)
    assert chunks != WHOLE and estimate_gb(config, shape, chunks, weights) <= budget
    assert measured_gb(model, shape, budget, False) <= 1.02 * budget


def test_budgets_that_cannot_be_are_refused_with_the_least_that_can():
    shape = Shape(1, 16, 8, 350, 518)
    least = estimate_gb(PAPER, shape, Chunks(1, 1, 1, 1), 10**9)
    with pytest.raises(ValueError, match=f"2 GB for 1 x 16 times.*at least {least:.2f} GB"):
        plan_chunks(PAPER, shape, 2.0, 10**9)
    assert plan_chunks(PAPER, shape, least + 0.01, 10**9)
    assert plan_chunks(PAPER, shape, 1000.0, 10**9) == WHOLE
    model = Reconstructor(ReconstructorConfig.small(dim=32, heads=2, camera_heads=2))
    with pytest.raises(ValueError, match="no_grad"):
        model(torch.rand(1, 1, 2, 3, 16, 16), memory_budget_gb=1.0)


def test_as_many_timesteps_see_each_other_as_a_budget_allows():
    shape, weights = Shape(1, 40, 4, 154, 224), 10**9
    for chunked, chunks in ((True, Chunks(1, 1, 1, 1)), (False, WHOLE)):

        def needed(times: int) -> float:
            return estimate_gb(PAPER, dataclasses.replace(shape, times=times), chunks, weights)  # noqa: B023

        def fitting(budget: float) -> int:
            return fitting_times(PAPER, shape, budget, weights, chunked=chunked)  # noqa: B023

        assert [fitting(needed(n) + 1e-6) for n in (1, 7, 40)] == [1, 7, 40]
        assert fitting(needed(1) - 1e-3) == 0 and fitting(1000.0) == 40


def test_the_papers_grids_fit_its_goals_by_the_estimate():
    # 350 x 518, trunk in 16 bit: 8 views x 16 times in 40 GB, 16 x 16 in 60 GB.
    config = ReconstructorConfig(
        point_head=False, track_head=False, temporal="layer", gaussian_head="residual"
    )
    weights = weights_of(without_data(config))
    for views, goal in ((8, 40.0), (16, 60.0)):
        shape = Shape(1, 16, views, 350, 518)
        assert estimate_gb(config, shape, WHOLE, weights, half=True) < goal


def test_chunks_do_not_change_answers(monkeypatch):
    monkeypatch.undo()  # real attention
    torch.manual_seed(0)
    config = ReconstructorConfig.small(
        dim=32, heads=2, camera_heads=2, temporal="layer", gaussian_head="residual"
    )
    model = Reconstructor(config).eval()
    for parameter in model.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.2)
    frames = torch.rand(2, 3, 2, 3, 16, 24)
    with torch.no_grad():
        whole = model(frames)
        model._chunks = lambda *_: Chunks(5, 2, 3, 4)  # type: ignore[method-assign]
        parts = model(frames)
    for field in ("depth", "confidence", "surface", "gaussians"):
        torch.testing.assert_close(getattr(parts, field), getattr(whole, field))
    torch.testing.assert_close(parts.poses[-1], whole.poses[-1])
