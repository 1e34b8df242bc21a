# SPDX-License-Identifier: Apache-2.0
"""What all trainings share: a step without a finite gradient changes nothing and is told, and what
was written between a checkpoint and a kill is not written twice."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from viewtime.training import common, fine_tuning, generator, reconstructor_stages, weights
from viewtime.training.reconstructor_recipe import Recipe
from viewtime.training.samples import read_losses

TINY = {
    "dim": 16, "depth": 4, "heads": 2, "camera_heads": 2, "head_channels": [8, 8, 8, 8],
    "head_features": 8, "size": 16, "gaussian_head": "residual",
}  # fmt: skip


def reconstructor(folder, steps=4, **other):
    stage = {"kind": "static", "steps": steps, "views": 2, "novel": 1, "warm_up": 1}
    return reconstructor_stages.train(Recipe.from_dict({
        "folder": str(folder), "stages": [stage], "model": TINY, "height": 16, "width": 16,
        "precision": "no", "held_out": 1, "average": 0.9, "log_every": 1, "checkpoint_every": 2,
        "sample_every": 3, "static": ["objects"], **other,
    }))  # fmt: skip


def small_generator(folder, steps=4):
    return generator.train(generator.Recipe(
        folder=str(folder), layers=1, heads=1, ffn=32, features=4, context=4, size=32, tokens=64,
        steps=steps, warm_up=1, checkpoint_every=2, log_every=1, evaluate_every=3, held_out=1,
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


# ---- kills between checkpoints -------------------------------------------------------------------


def test_lines_after_a_step_are_dropped_and_one_that_was_cut_short(tmp_path):
    log, judged, absent = (tmp_path / name for name in ("log.txt", "held.jsonl", "none.txt"))
    log.write_text(
        "a person's note\nstep=9/20 loss=1\nstep=10/20 loss=1\nstep=11/20 loss=1\nstep=1"
    )
    judged.write_text('{"step": 4, "psnr": 1.0}\n{"step": 12, "psnr": 2.0}\n')
    common.forget_after(10, log, judged, absent)
    assert log.read_text() == "a person's note\nstep=9/20 loss=1\nstep=10/20 loss=1\n"
    assert judged.read_text() == '{"step": 4, "psnr": 1.0}\n'
    assert sorted(tmp_path.iterdir()) == [judged, log]  # no part is left, nothing was made
    before = log.stat().st_mtime_ns
    common.forget_after(10, log)
    assert log.stat().st_mtime_ns == before  # nothing to drop, nothing written


@pytest.mark.parametrize("train, place, part", TRAININGS)
def test_steps_between_the_checkpoint_and_a_kill_are_told_once(
    tmp_path, monkeypatch, train, place, part
):
    """Checkpoint at 2, log at 3, held-out scores at 3 where there are any, a kill in step 4."""
    with monkeypatch.context() as patch:
        spoil(patch, place, set(), kill=4)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    log = tmp_path / part / "log.txt"
    assert log.read_text().count("step=3/4") == 1
    train(tmp_path)
    lines = log.read_text().splitlines()
    assert [line.split("/")[0] for line in lines] == [f"step={n}" for n in (1, 2, 3, 4)]
    if train is not small_generator:  # which has a loss for each way of conditioning
        assert read_losses(log)[0].tolist() == [1, 2, 3, 4]
    for judged in (tmp_path / part).glob("*.jsonl"):
        steps = [json.loads(line)["step"] for line in judged.read_text().splitlines()]
        assert steps == [3, 4]


@pytest.mark.parametrize("train, place", [
    (reconstructor, (reconstructor_stages, "write_report")),
    (small_generator, (weights, "save_generator")),
    (fine_tuned, (weights, "save_generator")),
])  # fmt: skip
def test_one_killed_while_it_writes_its_last_weights_writes_them_again(
    tmp_path, monkeypatch, train, place
):
    def killed(*_args, **_named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*place, killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, steps=2)
    assert (train(tmp_path, steps=2) / "config.json").exists()
