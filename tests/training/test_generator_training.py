# SPDX-License-Identifier: Apache-2.0
"""Training the generator: learns, survives a kill, refuses what it cannot train from."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from viewtime.generator import generate, load_generator
from viewtime.grid import FrameGrid
from viewtime.training import common
from viewtime.training.examples import HELD_OUT_SEED, held_out_examples, training_example
from viewtime.training.generator import Recipe, loss_of, main, new_model, train


def tiny(folder, **settings):
    return Recipe(
        **{
            "folder": str(folder), "layers": 1, "heads": 1, "ffn": 32, "features": 4, "size": 32,
            "tokens": 64, "steps": 24, "warm_up": 2, "checkpoint_every": 4, "log_every": 1,
            "evaluate_every": 100, "held_out": 1, "bfloat16": False, "beside": False, **settings,
        }
    )  # fmt: skip


def example(number=0):
    return training_example(number, seed=1, size=32, tokens=64, patch=8, reuse=2)


def test_an_example_is_a_function_of_its_number():
    again, same_grid, other = example(4), example(5), example(6)
    for name in ("truth", "prior", "maps", "known"):
        assert np.array_equal(getattr(example(4), name), getattr(again, name))
    assert again.truth.shape == same_grid.truth.shape
    assert again.truth.shape != other.truth.shape or not np.allclose(again.truth, other.truth)


def test_an_example_knows_one_row_and_one_column_and_its_prior_passes_them_through():
    for number in range(6):
        made = example(number)
        views, times = made.known.shape
        expected = np.zeros((views, times), bool)
        expected[made.fixed_view] = expected[:, made.freeze_time] = True
        assert np.array_equal(made.known, expected)
        np.testing.assert_allclose(made.prior[made.known], made.truth[made.known], atol=1e-6)
        assert made.truth.shape[-1] // 8 * (made.truth.shape[-2] // 8) * views * times <= 64


def test_held_out_scenes_are_none_that_training_draws(monkeypatch):
    drawn, made = [], held_out_examples(1, size=32, views=2, times=2)[0]
    monkeypatch.setattr(
        "viewtime.training.examples._cached_example",
        lambda scene, **_: drawn.append(scene) or made,
    )
    for number in range(40):
        training_example(number, seed=0, size=32, tokens=64, patch=8, reuse=1)
    assert len(set(drawn)) == 40 and max(drawn) < HELD_OUT_SEED


def test_an_untrained_model_is_as_good_as_its_prior(tmp_path):
    recipe = tiny(tmp_path, drop_prior=0.0)
    made = example()
    truth, prior = made.truth[~made.known] * 2 - 1, made.prior[~made.known] * 2 - 1
    error = np.square(truth - prior).mean()
    with torch.no_grad():
        loss, with_prior = loss_of(new_model(recipe), made, recipe, 0)
    assert with_prior
    assert loss.item() == pytest.approx(error / (error + 2e-3), rel=1e-3)


@pytest.mark.parametrize("drop_prior, below", [(0.0, 0.8), (1.0, 0.6)])
def test_it_learns_one_grid_by_heart(tmp_path, drop_prior, below):
    recipe = tiny(tmp_path, drop_prior=drop_prior, features=8, heads=2)
    model, made = new_model(recipe), example(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss, with_prior = loss_of(model, made, recipe, step)
        assert with_prior == (drop_prior == 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < below * np.mean(losses[:5])


def test_killed_and_started_again_it_ends_in_the_same_weights(tmp_path):
    uninterrupted = load_file(train(tiny(tmp_path / "whole")) / "prior_embedding.safetensors")

    recipe = tiny(tmp_path / "killed")
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(recipe)))
    code = "import sys; from viewtime.training.generator import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import torch; torch.set_num_threads({torch.get_num_threads()});"
         + code, str(tmp_path / "recipe.json")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step=5/"):
            process.kill()  # after the checkpoint of step 4, and long before the end
            break
    process.wait()
    killed = load_file(tmp_path / "killed" / "train.safetensors")
    assert killed["optimizer.step.prior_embedding.proj.bias"].item() in (4, 8, 12, 16)
    resumed = load_file(train(recipe) / "prior_embedding.safetensors")
    assert all(torch.equal(uninterrupted[key], resumed[key]) for key in uninterrupted)
    whole, half = (load_file(tmp_path / name / "train.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == half.keys() and all(torch.equal(whole[k], half[k]) for k in whole)
    # The weights it leaves are a generator, and what it says of itself is there.
    record = json.loads((tmp_path / "killed" / "evaluation.jsonl").read_text())
    assert {"prior", "model_1_step", "model_4_steps", "nearest", "blend"} < record.keys()
    assert (tmp_path / "killed" / "sheet.png").stat().st_size > 1000
    made = held_out_examples(1, size=32, views=2, times=2)[0]
    given = made.known[..., None, None, None].astype(np.float32)
    grid = FrameGrid(made.truth * given, made.known)
    assert generate(load_generator(tmp_path / "killed" / "weights"), grid, prior=None).max() <= 1


def test_examples_made_beside_come_in_order_and_a_dead_maker_is_noticed():
    assert list(common.examples(abs, -3, 2, beside=True)) == [3, 2, 1, 0, 1]
    with pytest.raises(common.TrainingError, match="ended at example 7 with exit code 7"):
        list(common.examples(sys.exit, 7, 9, beside=True))


def test_settings_are_read_from_toml_and_unknown_ones_named(tmp_path):
    (tmp_path / "a.toml").write_text('folder = "x"\nlayer = 3\n')
    with pytest.raises(common.TrainingError, match="unknown settings: layer"):
        main([str(tmp_path / "a.toml")])
    (tmp_path / "b.json").write_text("[1")
    with pytest.raises(common.TrainingError, match="b.json"):
        main([str(tmp_path / "b.json")])


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    (tmp_path / "train.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(common.TrainingError, match="train.safetensors: not a checkpoint"):
        train(tiny(tmp_path))


def test_the_learning_rate_warms_up_and_ends_low():
    rates = [common.learning_rate(s, peak=1.0, warm_up=10, steps=100) for s in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == 1.0 and rates[-1] < 0.06
