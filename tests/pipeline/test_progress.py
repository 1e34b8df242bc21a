# SPDX-License-Identifier: Apache-2.0
"""Time left of a whole run, estimates of runs, and pictures of the grid. Never runs a job."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewtime.estimate import Measured, Work, _how, estimate
from viewtime.options import RunOptions
from viewtime.preview import LONGEST_SIDE, UNKNOWN, GridPreview
from viewtime.progress import Reporter

WORK = Work("generated", 4, 9, 128, 128, 24, 4, True, "auto", "bundled", "bundled")
SECONDS = {"read": 1.0, "load": 5.0, "prior": 2.0, "generate": 8.0, "reconstruct": 4.0}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def reporter(plan, clock):
    seen = []
    return Reporter(seen.append, lambda: False, plan, clock=clock), seen


def test_the_time_left_is_the_present_stages_own_and_the_plans_for_those_to_come():
    clock = Clock()
    report, seen = reporter({"read": 2.0, "generate": 10.0, "reconstruct": 20.0}, clock)
    report.stage("read", 0, "")
    assert (seen[-1].fraction, seen[-1].job_eta_seconds) == (0.0, 32.0)
    clock.now = 2.0
    report.stage("generate", 4, "")
    assert (seen[-1].fraction, seen[-1].job_eta_seconds) == (pytest.approx(2 / 32), 30.0)
    clock.now = 22.0  # twice as slow as planned, which one step shows
    report.step(2, 4, "")
    assert seen[-1].eta_seconds == 20.0
    assert seen[-1].job_eta_seconds == 40.0
    assert seen[-1].fraction == pytest.approx(22 / 62)
    clock.now = 42.0
    report.stage("reconstruct", 1, "")
    clock.now = 50.0
    report.step(1, 1, "")
    assert (seen[-1].fraction, seen[-1].job_eta_seconds) == (1.0, 0.0)


@given(
    st.lists(st.tuples(st.sampled_from(sorted(SECONDS)), st.floats(0, 100)), max_size=20),
    st.dictionaries(st.sampled_from(sorted(SECONDS)), st.floats(0, 100)),
)
def test_the_fraction_never_falls_and_never_leaves_its_range(events, plan):
    clock = Clock()
    report, seen = reporter(plan, clock)
    for name, seconds in events:
        report.stage(name, 3, "")
        clock.now += seconds
        report.step(1, 3, "")
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions) and all(0 <= f <= 1 for f in fractions)
    assert all(p.job_eta_seconds is None or p.job_eta_seconds >= 0 for p in seen)


def test_a_measured_job_is_scaled_stage_by_stage_with_the_work():
    past = Measured(WORK, SECONDS, 2_000_000_000)
    larger = replace(WORK, width=256, steps=8, has_prior=True)
    found = estimate(larger, [past])
    assert found.basis == "measured"
    assert found.stages == {
        "read": 2.0,
        "load": 5.0,  # loading models does not grow with the frames
        "prior": 4.0,
        "generate": 32.0,
        "reconstruct": 8.0,
    }
    assert found.seconds == pytest.approx(51.0)
    assert 2_000_000_000 < found.memory_bytes < 4_000_000_000


def test_the_most_alike_job_counts_and_other_models_do_not():
    small = Measured(replace(WORK, width=16, height=16), {n: 100.0 for n in SECONDS}, None)
    alike = Measured(WORK, SECONDS, None)
    other = Measured(replace(WORK, generator="/large"), {n: 999.0 for n in SECONDS}, None)
    assert estimate(WORK, [small, alike, other]).stages == SECONDS
    assert estimate(replace(WORK, device="cpu"), [small, alike]).basis == "formula"


def test_what_is_given_is_not_generated_and_takes_no_prior():
    whole = estimate(replace(WORK, missing=0, has_prior=False))
    assert set(whole.stages) == {"read", "load", "reconstruct"}
    captured = estimate(replace(WORK, route="captured", missing=0, generator="", reconstructor=""))
    assert set(captured.stages) == {"read", "reconstruct"} and captured.basis == "formula"


def test_the_formula_grows_with_every_part_of_the_work():
    base = estimate(WORK)
    for change in ({"views": 8}, {"times": 17}, {"width": 256}, {"steps": 8}):
        assert estimate(replace(WORK, **change)).seconds > base.seconds


def frames(views, times, height=32, width=32):
    rng = np.random.default_rng(0)
    return rng.random((views, times, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize(("views", "times"), [(1, 1), (4, 9), (6, 120), (40, 5), (1, 600)])
def test_a_picture_is_small_and_has_every_view(views, times):
    shown = []
    preview = GridPreview(shown.append, views, times, 320, 180, clock=Clock())
    for view in range(views):
        for at in range(times):
            preview.put(view, at, np.full((3, 180, 320), (view + 1) / (views + 1), np.float32))
    preview.flush()
    (picture,) = shown
    assert picture.dtype == np.uint8 and max(picture.shape) <= LONGEST_SIDE
    rows = picture.shape[0] // views
    for view in range(views):
        band = picture[view * rows : (view + 1) * rows]
        assert np.all(band == int((view + 1) / (views + 1) * 255 + 0.5))


def test_unknown_cells_are_grey_and_a_second_passes_between_two_pictures():
    shown, clock = [], Clock()
    preview = GridPreview(shown.append, 2, 4, 32, 32, clock=clock)
    known = np.zeros((2, 4), bool)
    known[0] = True
    preview.put_grid(frames(2, 4), known)
    preview.flush()
    clock.now = 0.9
    assert not preview.due()
    preview.flush()
    assert len(shown) == 1
    clock.now = 1.0
    preview.flush()
    assert len(shown) == 2
    half = shown[0].shape[0] // 2
    assert shown[0][:half].std() > 10 and np.all(shown[0][half:] == UNKNOWN)


def test_nobody_looks_and_nothing_is_done():
    preview = GridPreview(None, 2, 4, 32, 32)
    preview.put_grid(frames(2, 4))
    preview.flush()
    assert not preview.due()


def test_a_job_is_measured_by_those_that_were_done_the_same_way():
    plain = Measured(WORK, SECONDS, None)
    cached = Measured(replace(WORK, how="cache=0.1"), {**SECONDS, "generate": 3.0}, None)
    assert estimate(cached.work, [plain, cached]).stages["generate"] == 3.0
    assert estimate(WORK, [plain, cached]).stages["generate"] == 8.0
    assert estimate(replace(WORK, how="window=2x5"), [plain, cached]).basis == "formula"
    assert _how(RunOptions()) == ""
    assert _how(RunOptions(cache=0.1, window="4x5", steps=9)) == "window=4x5 cache=0.1"
