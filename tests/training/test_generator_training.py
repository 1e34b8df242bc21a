# SPDX-License-Identifier: Apache-2.0
"""Training the generator: learns, survives a kill, refuses what it cannot train from."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from viewtime.generator import generate, load_generator
from viewtime.generator.codec import PixelCodec
from viewtime.generator.load import Generator, save_generator
from viewtime.generator.model import ViewTimeTransformer, new_transformer
from viewtime.grid import FrameGrid
from viewtime.training import common, generator
from viewtime.training.examples import (
    GIVEN,
    HELD_OUT_SEED,
    MAPS,
    held_out_examples,
    training_example,
)
from viewtime.training.generator import (
    ALMOST_RIGHT,
    Recipe,
    _batches,
    loss_of,
    main,
    new_model,
    train,
)
from viewtime.training.generator_report import one_step

SHARES = {name: 1 / len(GIVEN) for name in GIVEN}


def tiny(folder, **settings):
    return Recipe(
        **{
            "folder": str(folder), "layers": 1, "heads": 1, "ffn": 32, "features": 4, "context": 4,
            "size": 32, "tokens": 64, "steps": 24, "warm_up": 2, "checkpoint_every": 4,
            "log_every": 1, "evaluate_every": 100, "held_out": 1, "bfloat16": False,
            "beside": False, **settings,
        }
    )  # fmt: skip


def example(number=0, given="depth", **settings):
    shares = SHARES if given is None else {given: 1.0}
    settings = {"seed": 1, "size": 32, "tokens": 64, "patch": 8, "reuse": 2, **settings}
    return training_example(number, shares=shares, **settings)


def test_an_example_is_a_function_of_its_number():
    again, same_grid, other = example(4), example(5), example(6)
    for name in ("truth", "prior", "maps", "known"):
        assert np.array_equal(getattr(example(4), name), getattr(again, name))
    assert again.truth.shape == same_grid.truth.shape
    assert again.truth.shape != other.truth.shape or not np.allclose(again.truth, other.truth)


@pytest.mark.parametrize("given", GIVEN)
def test_an_example_knows_what_it_is_to_give_and_its_prior_passes_that_through(given):
    for number in range(4):
        made = example(number, given)
        views, times = made.known.shape
        expected = np.zeros((views, times), bool)
        if given not in ("column", "none"):
            expected[made.fixed_view] = True
        if given not in ("row", "none"):
            expected[:, made.freeze_time] = True
        assert np.array_equal(made.known, expected)
        assert made.maps.shape == (views, times, MAPS, *made.truth.shape[3:])
        if given == "none":
            assert made.prior is None and not made.maps.any()
            continue
        assert made.maps.min() >= 0 and made.maps.max() <= 1
        assert made.maps[:, :, :3][~made.known].any() == (given in ("depth", "noisy"))
        np.testing.assert_allclose(made.prior[made.known], made.truth[made.known], atol=1e-6)
        assert made.truth.shape[-1] // 8 * (made.truth.shape[-2] // 8) * views * times <= 64


def test_held_out_scenes_are_none_that_training_draws(monkeypatch):
    drawn, made = [], held_out_examples(1, size=32, views=2, times=2)[0]
    monkeypatch.setattr(
        "viewtime.training.examples.grid_example",
        lambda choice, given: drawn.append(choice.scene) or made,
    )
    for number in range(40):
        example(number, seed=0, reuse=1)
    assert len(set(drawn)) == 40 and max(drawn) < HELD_OUT_SEED


def test_shares_are_how_often_each_is_drawn():
    shares = {"depth": 0.5, "row": 0.25, "none": 0.25}
    settings = {"seed": 1, "size": 16, "tokens": 16, "patch": 8, "reuse": 400}
    drawn = [training_example(n, shares=shares, **settings).given for n in range(400)]
    assert set(drawn) == set(shares)
    assert drawn.count("none") == pytest.approx(100, abs=30)
    assert drawn.count("depth") == pytest.approx(200, abs=35)


def test_the_examples_of_a_step_are_of_one_shape_and_different_scenes():
    for number in range(0, 8, 2):
        batch = [example(number, None, slot=slot) for slot in range(3)]
        assert len({x.truth.shape for x in batch}) == 1
        assert len({x.prior is None for x in batch}) == 1
        assert not np.array_equal(batch[0].truth, batch[1].truth)


def test_noisy_depth_gives_another_prior_and_the_same_truth():
    exact, noisy = (held_out_examples(2, size=32, given=g)[1] for g in ("depth", "noisy"))
    assert np.array_equal(exact.truth, noisy.truth)
    errors = [np.square(x.prior - x.truth)[~x.known].mean() for x in (exact, noisy)]
    assert errors[0] < errors[1] < 20 * errors[0]


@pytest.mark.parametrize("given", ["depth", "noisy", "both", "row", "column"])
def test_an_untrained_model_is_as_good_as_its_prior(tmp_path, given):
    recipe, made = tiny(tmp_path), example(given=given)
    truth, prior = made.truth[~made.known] * 2 - 1, made.prior[~made.known] * 2 - 1
    error = np.square(truth - prior).mean()
    with torch.no_grad():
        loss = loss_of(new_model(recipe), [made, made], recipe, 0)
    assert loss.tolist() == pytest.approx([error / (error + ALMOST_RIGHT)] * 2, rel=1e-3)


@pytest.mark.parametrize("given, below", [("depth", 0.8), ("both", 0.7), ("none", 0.75)])
def test_it_learns_one_grid_by_heart(tmp_path, given, below):
    start_share = 0.0 if given == "none" else 0.85  # at t = 1 there is nothing to learn it from
    recipe = tiny(tmp_path, features=8, heads=2, start_share=start_share)
    model, made = new_model(recipe), example(2, given)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss = loss_of(model, [made], recipe, step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < below * np.mean(losses[:5])


def test_it_starts_from_other_weights_and_gives_what_they_give(tmp_path):
    """Those may lack the evidence and the context, as older ones do."""
    torch.manual_seed(3)
    config = replace(new_model(tiny(tmp_path)).config, prior_maps=3, prior_context=0)
    older = ViewTimeTransformer(new_transformer(layers=1, heads=1, ffn=32), config)
    for parameter in older.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_generator(tmp_path / "older", older)
    model = new_model(tiny(tmp_path, init=str(tmp_path / "older")))
    made = held_out_examples(1, size=32, views=3, times=3)[0]
    expected, found = (
        one_step(Generator("x", m.eval(), PixelCodec()), made) for m in (older, model)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - made.prior).max() > 0.01
    with pytest.raises(common.TrainingError, match=r"init .*older: .* by this recipe"):
        new_model(tiny(tmp_path, features=6, init=str(tmp_path / "older")))


def test_it_ends_by_the_clock_with_its_lowest_rate(tmp_path, monkeypatch):
    """Each look at the clock is a second later: one per step, and one before the first."""
    ticks = itertools.count()
    monkeypatch.setattr(common.Log, "seconds", lambda _: float(next(ticks)))
    recipe = tiny(tmp_path, steps=10**6, minutes=0.2)
    folder = train(recipe)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    rates = [float(line.split("rate=")[1].split()[0]) for line in lines]
    assert 5 < len(rates) < 20 and (folder / "config.json").exists()
    assert rates[-1] < 0.15 * max(rates)
    train(recipe)  # is over, and stays so
    assert len((tmp_path / "log.txt").read_text().splitlines()) == len(lines)


def test_several_workers_make_what_one_makes(tmp_path):
    recipe = tiny(tmp_path, batch=3, workers=2, steps=3, shares=SHARES)
    apart, here = (list(_batches(replace(recipe, workers=workers), 1)) for workers in (2, 0))
    assert len(apart) == len(here) == 2
    for one, other in zip(apart, here):
        found, expected = (
            [float(x.truth.mean(dtype=float)) for x in each] for each in (one, other)
        )
        assert len(found) == 3
        np.testing.assert_allclose(sorted(found), sorted(expected), atol=1e-4)


def test_more_workers_than_examples_in_a_batch_are_refused():
    assert Recipe.from_dict({"workers": 3, "batch": 3}).workers == 3
    with pytest.raises(common.TrainingError, match="workers is 4, must be at most batch.* is 3"):
        Recipe.from_dict({"workers": 4, "batch": 3})


def test_as_many_workers_start_as_are_asked_for(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(common, "examples", lambda make, *_, **__: started.append(make) or iter(()))
    path = Path(generator.__file__).parent / "configs" / "generator-small-gpu.toml"
    recipe = Recipe.from_dict(common.read_settings(path))
    list(_batches(recipe, 0))
    assert len(started) == recipe.workers == 8


@pytest.mark.parametrize("name", ["generator-small", "generator-small-gpu"])
def test_the_shipped_recipes_run_at_a_tiny_size(tmp_path, name):
    """And go on where they were; the one for a GPU with rays cast by torch, by several workers."""
    path = Path(generator.__file__).parent / "configs" / f"{name}.toml"
    recipe = Recipe.from_dict(common.read_settings(path))
    gpu = recipe.device == "cuda"
    assert gpu == (name == "generator-small-gpu") and math.isfinite(recipe.minutes)
    size = sum(p.numel() for p in new_model(recipe).transformer.parameters())
    assert size * 2 < 16 * 2**20  # in float16, one file
    recipe = replace(
        recipe, folder=str(tmp_path), init="", layers=1, heads=1, ffn=32, features=4, context=4,
        size=32, tokens=64, batch=min(recipe.batch, 2), steps=2, held_out=1, device="cpu",
        workers=min(recipe.workers, 2), beside=False, bfloat16=False,
        cast_on="cpu" if gpu else recipe.cast_on,
    )  # fmt: skip
    train(recipe)
    weights = train(replace(recipe, steps=3, workers=0))
    assert "step=3/3" in (tmp_path / "log.txt").read_text()
    assert load_generator(weights).takes_evidence


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
    assert {"depth_start", "depth_model", "both_start", "row_model"} < record.keys()
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
    (tmp_path / "a.toml").write_text("[shares]\nrows = 1.0\n")
    with pytest.raises(common.TrainingError, match="shares is .*rows.* depth, noisy, both"):
        main([str(tmp_path / "a.toml")])
    (tmp_path / "b.json").write_text("[1")
    with pytest.raises(common.TrainingError, match="b.json"):
        main([str(tmp_path / "b.json")])


def test_without_a_configuration_it_is_the_shipped_small_one(monkeypatch):
    asked = []
    monkeypatch.setattr(generator, "train", asked.append)
    assert main([]) == 0
    assert asked == [Recipe.from_dict(common.read_settings(generator.SMALL))]
    assert asked[0].init == "bundled" and asked[0] != Recipe()


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    (tmp_path / "train.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(common.TrainingError, match="train.safetensors: not a checkpoint"):
        train(tiny(tmp_path))


def test_the_learning_rate_warms_up_and_ends_low():
    rates = [common.learning_rate(s, peak=1.0, warm_up=10, steps=100) for s in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == 1.0 and rates[-1] < 0.06


def test_without_decay_the_learning_rate_stays_at_its_peak():
    rates = [
        common.learning_rate(s, peak=1.0, warm_up=10, steps=100, decay="none") for s in range(100)
    ]
    assert rates[0] == 0.1 and set(rates[9:]) == {1.0}
