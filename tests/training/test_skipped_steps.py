# SPDX-License-Identifier: Apache-2.0
"""A step whose gradient is not finite changes nothing, is told, and is not repeated for ever."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from safetensors.torch import load_file

from viewtime.training import common, fine_tuning, generator, reconstructor_stages
from viewtime.training.reconstructor_recipe import Recipe

TINY = {
    "dim": 16, "depth": 4, "heads": 2, "camera_heads": 2, "head_channels": [8, 8, 8, 8],
    "head_features": 8, "size": 16, "gaussian_head": "residual",
}  # fmt: skip


def reconstructor(folder, steps=4, **other):
    stage = {"kind": "static", "steps": steps, "views": 2, "novel": 1, "warm_up": 1}
    return reconstructor_stages.train(Recipe.from_dict({
        "folder": str(folder), "stages": [stage], "model": TINY, "height": 16, "width": 16,
        "precision": "no", "held_out": 1, "average": 0.9, "log_every": 1, "checkpoint_every": 2,
        "static": ["objects"], **other,
    }))  # fmt: skip


def small_generator(folder, steps=4):
    return generator.train(generator.Recipe(
        folder=str(folder), layers=1, heads=1, ffn=32, features=4, context=4, size=32, tokens=64,
        steps=steps, warm_up=1, checkpoint_every=2, log_every=1, evaluate_every=100, held_out=1,
        bfloat16=False, beside=False,
    ))  # fmt: skip


def fine_tuned(folder, steps=4):
    return fine_tuning.train(fine_tuning.FineTuning.from_dict({
        "base": "fresh", "fresh": {"layers": 1, "heads": 1, "head_dim": 24, "ffn": 32},
        "folder": str(folder), "phases": [{"frames": 2, "steps": steps}], "views": 2, "height": 16,
        "width": 16, "batch": 1, "warm_up": 1, "precision": "no", "log_every": 1,
        "checkpoint_every": 2, "sample_every": 100, "sample_steps": 1,
        "mixture": {"shares": {"objects": 1.0}},
    }))  # fmt: skip


# The training, where its loss is computed (once a step), its log, and its checkpoint.
TRAININGS = [
    (reconstructor, (reconstructor_stages, "photometric_loss"), "1-static/"),
    (small_generator, (generator, "loss_of"), ""),
    (fine_tuned, (fine_tuning, "flow_loss"), ""),
]


def spoil(monkeypatch, place, steps, *, first=1, kill=0):
    """Make the loss of these steps nan; the process is killed at step `kill`."""
    count, loss_of = itertools.count(first), getattr(*place)

    def spoilt(*args, **named):
        step, found = next(count), loss_of(*args, **named)
        if step == kill:
            raise KeyboardInterrupt
        if step not in steps:
            return found
        return (found[0] * math.nan, found[1]) if isinstance(found, tuple) else found * math.nan

    monkeypatch.setattr(*place, spoilt)


def test_steps_are_counted_and_too_many_in_a_row_end_the_training():
    updates, nan = common.Updates(), torch.tensor(math.nan)
    assert updates.sound(torch.tensor(2.0), 1) and updates.skipped() == {}
    for step in range(common.MOST_SKIPPED - 1):
        assert not updates.sound(nan, step)
    assert updates.sound(1.0, 20)  # and the row begins anew
    assert updates.skipped() == {"skipped": common.MOST_SKIPPED - 1} and updates.skipped() == {}
    for step in range(common.MOST_SKIPPED - 1):
        assert not updates.sound(math.inf, step)
    with pytest.raises(common.TrainingError, match="stopped at step 70: .* not finite in 20 steps"):
        updates.sound(nan, 70)


@pytest.mark.parametrize("train, place, part", TRAININGS)
def test_a_skipped_step_leaves_the_weights_finite_and_stands_in_the_log(
    tmp_path, monkeypatch, train, place, part
):
    spoil(monkeypatch, place, {2, 3})
    train(tmp_path)
    state = load_file(tmp_path / part / "train.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    lines = (tmp_path / part / "log.txt").read_text().splitlines()
    assert ["skipped=1" in line for line in lines] == [False, True, True, False]


@pytest.mark.parametrize("train, place, part", TRAININGS)
def test_a_training_that_can_only_skip_stops(tmp_path, monkeypatch, train, place, part):
    spoil(monkeypatch, place, range(100))
    with pytest.raises(common.TrainingError, match="stopped at step 20"):
        train(tmp_path, steps=30)


@pytest.mark.parametrize("train, place, part", TRAININGS)
def test_one_killed_after_a_checkpoint_of_skipped_steps_alone_goes_on(
    tmp_path, monkeypatch, train, place, part
):
    with monkeypatch.context() as patch:
        spoil(patch, place, {1, 2})
        train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        spoil(patch, place, {1, 2}, kill=4)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed")
    train(tmp_path / "killed")
    whole, killed = (
        load_file(tmp_path / n / part / "train.safetensors") for n in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
