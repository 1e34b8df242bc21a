# SPDX-License-Identifier: Apache-2.0
"""The generator's options on their way through a job: windows, memory, and what a warm model keeps.
Never measures quality."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from viewtime import options as option_names
from viewtime import pipeline, warm
from viewtime.options import OptionError, RunOptions
from viewtime_formats.capture import read_capture
from viewtime_formats.errors import ViewtimeError


def filled(capture, out, options, **calls):
    """All frames of the grid that `generate` writes."""
    from viewtime.grid import read_grid

    return read_grid(pipeline.generate(capture, out, options, **calls))


@pytest.fixture
def options(small_models):
    """Without the prior: a model of random weights then makes something of its own."""
    return RunOptions(
        size=32, steps=3, use_prior=False, device="cpu", generator=small_models["generator"]
    )


def test_the_lists_of_names_are_those_of_the_generator():
    from viewtime.generator import sampler, speed

    assert option_names.SOLVERS == sampler.SOLVERS
    assert option_names.OFFLOADS == speed.OFFLOADS


def test_windows_fill_the_whole_grid_and_leave_what_is_known(reference_capture, options, tmp_path):
    from viewtime.grid import grid_from_capture

    seen = []
    in_windows = dataclasses.replace(options, window="2x3", overlap="1x1")
    grid = filled(reference_capture, tmp_path / "out", in_windows, on_progress=seen.append)
    given = grid_from_capture(read_capture(reference_capture), 32)
    assert (grid.known == given.known).all() and grid.known.sum() == 7
    np.testing.assert_allclose(grid.frames[grid.known], given.frames[given.known], atol=1 / 255)
    assert (grid.frames[~grid.known].std(axis=(1, 2, 3)) > 0.01).all()
    # 3 views in 2 windows, 5 times in 2, 3 steps each: one count over all of them.
    steps = [(p.step, p.total) for p in seen if p.stage == "generate" and p.step]
    assert steps == [(n, 12) for n in range(1, 13)]
    whole = filled(reference_capture, tmp_path / "whole", options)
    assert np.abs(whole.frames - grid.frames).max() > 0.01  # they were windows indeed
    one = dataclasses.replace(options, window="9x99")
    same = filled(reference_capture, tmp_path / "one", one)
    np.testing.assert_array_equal(same.frames, whole.frames)


def test_the_preview_grows_with_the_windows_and_a_cancel_is_heard_in_the_second(
    reference_capture, small_models, tmp_path, monkeypatch
):
    from viewtime import preview

    monkeypatch.setattr(preview, "SECONDS_BETWEEN", 0.0)
    pictures, steps = [], []
    options = RunOptions(
        size=32, steps=2, use_prior=False, device="cpu", window="3x3", overlap="1x1", **small_models
    )
    with pytest.raises(pipeline.Cancelled):
        pipeline.run(
            reference_capture, tmp_path / "out", options, on_preview=pictures.append,
            on_progress=lambda p: steps.append(p.step) if p.stage == "generate" else None,
            should_cancel=lambda: 3 in steps,
        )  # fmt: skip
    assert max(steps) == 3 and not (tmp_path / "out").exists()
    grey = [(picture == preview.UNKNOWN).all(axis=-1).mean() for picture in pictures]
    # 8 of 15 cells are unknown; the first window (around the freeze time) knows 4 of them.
    np.testing.assert_allclose(sorted(set(np.round(grey, 3)), reverse=True), [8 / 15, 4 / 15, 0],
                               atol=2e-3)  # fmt: skip
    assert grey == sorted(grey, reverse=True)


def test_too_little_memory_is_told_before_the_first_long_stage(
    reference_capture, options, tmp_path, monkeypatch
):
    from viewtime.generator import load_generator, memory

    generator = load_generator(options.generator)

    def need(views, times):
        found = memory.estimate_memory(generator, views=views, times=times, height=32, width=32)
        return found.peak - found.weights

    monkeypatch.setattr(memory, "free_memory", lambda device: need(3, 3))
    seen = []
    with_prior = dataclasses.replace(options, use_prior=True)
    with pytest.raises(ViewtimeError, match="3 views x 5 times of 32 x 32 px need") as refused:
        filled(reference_capture, tmp_path / "out", with_prior, on_progress=seen.append)
    assert "window 3x3" in str(refused.value)
    assert {p.stage for p in seen} == {"read", "load"} and not (tmp_path / "out").exists()
    in_windows = dataclasses.replace(with_prior, window="3x3")
    assert filled(reference_capture, tmp_path / "out", in_windows).frames.shape[:2] == (3, 5)


def test_a_window_without_a_meaning_is_told_before_the_first_long_stage(
    reference_capture, options, tmp_path
):
    seen = []
    bad = dataclasses.replace(options, use_prior=True, window="1x3")
    with pytest.raises(ViewtimeError, match="windows of 1 with an overlap of 1"):
        filled(reference_capture, tmp_path / "out", bad, on_progress=seen.append)
    assert {p.stage for p in seen} == {"read", "load"}


def test_solver_shift_and_prompts_reach_the_sampler(
    reference_capture, options, tmp_path, monkeypatch
):
    from viewtime.generator import generation

    seen = {}

    def watch(generator, grid, **settings):
        seen.update(settings)
        return grid.frames

    monkeypatch.setattr(generation, "generate", watch)
    chosen = dataclasses.replace(
        options, solver="unipc", shift=3.0, guidance=4.0, negative_prompt="blur"
    )
    filled(reference_capture, tmp_path / "out", chosen)
    names = ("solver", "shift", "guidance", "negative_prompt", "steps", "prior")
    assert [seen[name] for name in names] == ["unipc", 3.0, 4.0, "blur", 3, None]


# ---- what a warm model keeps ---------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_warm(monkeypatch):
    monkeypatch.setattr(warm, "_warm", {})


def test_a_warm_generator_keeps_no_cache_of_an_earlier_job(reference_capture, options, tmp_path):
    before = filled(reference_capture, tmp_path / "1", options).frames
    model = warm._warm["generator"][1]
    cached = filled(reference_capture, tmp_path / "2", dataclasses.replace(options, cache=1e5))
    assert np.abs(cached.frames - before).max() > 1e-3  # the second step and the third were skipped
    after = filled(reference_capture, tmp_path / "3", options).frames
    np.testing.assert_array_equal(after, before)
    assert warm._warm["generator"][1] is model  # and it was not loaded again for that
    assert not model.model.transformer.is_cache_enabled


def test_a_compiled_generator_is_not_given_to_a_job_that_wants_a_plain_one(options, monkeypatch):
    from viewtime.generator import speed

    def mark(generator):
        generator.model.compiled = True

    monkeypatch.setattr(speed, "compile_blocks", mark)
    first = warm.warm_generator(options.generator, "cpu", compile=True)
    assert first.model.compiled
    assert warm.warm_generator(options.generator, "cpu", compile=True, cache=0.1) is first
    plain = warm.warm_generator(options.generator, "cpu")
    assert plain is not first and not hasattr(plain.model, "compiled")
    assert not plain.model.transformer.is_cache_enabled
    assert warm.warm_generator(options.generator, "cpu") is plain


def test_an_offloaded_generator_is_not_given_to_a_job_that_wants_a_plain_one(options, monkeypatch):
    """As on a machine with a GPU: which weights wait where, and for whom."""
    from viewtime import generator as generators

    loaded, load = [], generators.load_generator

    def load_here(name, *, device, weights_on):
        loaded.append((device, weights_on))
        return load(name)

    monkeypatch.setattr(generators, "load_generator", load_here, raising=False)
    monkeypatch.setattr(warm, "resolved", lambda device: device)
    from viewtime.generator import speed

    monkeypatch.setattr(
        speed, "offload", lambda g, mode, device: dataclasses.replace(g, offload=mode)
    )
    away = warm.warm_generator(options.generator, "cuda:1", offload="block")
    assert away.offload == "block" and loaded == [("cuda:1", "cpu")]
    assert warm.warm_generator(options.generator, "cuda:1", offload="block") is away
    assert warm.warm_generator(options.generator, "cuda:1", offload="leaf").offload == "leaf"
    assert warm.warm_generator(options.generator, "cuda:1").offload == "none"
    assert loaded[-1] == ("cuda:1", None)


def test_offload_without_a_gpu_is_refused_in_words(options):
    with pytest.raises(OptionError, match="offload is 'block', but the generator runs on the CPU"):
        warm.warm_generator(options.generator, "cpu", offload="block")
