# SPDX-License-Identifier: Apache-2.0
"""The training recipe: it learns one scene, resumes exactly and writes what it promises."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.load import load_reconstructor
from viewtime.reconstructor.model import Reconstructor
from viewtime.training import reconstructor as recipe
from viewtime.training.reconstructor_loss import (
    absolute_relative_error,
    camera_loss,
    depth_loss,
)
from viewtime_formats.errors import ViewtimeError

TINY = {
    "dim": 32,
    "depth": 4,
    "heads": 2,
    "camera_heads": 2,
    "head_channels": [8, 8, 8, 8],
    "head_features": 8,
    "size": 16,
}


def tiny_config(folder, **changes) -> recipe.TrainConfig:
    return recipe.TrainConfig(
        out=str(folder),
        steps=4,
        minutes=1e6,
        sizes=(16,),
        frames_per_step=2,
        bf16=False,
        log_every=1,
        save_minutes=0.0,
        held_out=1,
        warmup=1,
        model=TINY,
        **changes,
    )


def test_one_scene_can_be_learnt():
    torch.manual_seed(0)
    model = Reconstructor(ReconstructorConfig.small(**TINY))
    batch = recipe.make_batch([7], 3, 1, 32, with_rays=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = absolute_relative_error(model(batch.frames).depth.detach(), batch.depth)
    first = None
    for _ in range(60):
        loss, parts = recipe.loss_of(model, batch, bf16=False)
        first = parts if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = absolute_relative_error(model(batch.frames).depth.detach(), batch.depth)
    assert after < 0.5 * before
    assert parts["camera"] < 0.5 * first["camera"]


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, capsys):
    whole = recipe.train(tiny_config(tmp_path / "whole"))
    original = recipe.training_batch

    def interrupted(config, step, progress):
        if step == 2:
            raise KeyboardInterrupt
        return original(config, step, progress)

    monkeypatch.setattr(recipe, "training_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.train(tiny_config(tmp_path / "parts"))
    monkeypatch.setattr(recipe, "training_batch", original)
    parts = recipe.train(tiny_config(tmp_path / "parts"))
    printed = capsys.readouterr().out
    assert "resumed at step 2" in printed and "ETA" in printed
    one, two = load_reconstructor(whole).state_dict(), load_reconstructor(parts).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "parts" / "sheet.png").is_file()
    lines = (tmp_path / "parts" / "held_out.jsonl").read_text().splitlines()
    assert {"absrel", "absrel_rays", "camera", "step"} <= set(json.loads(lines[-1]))


def test_scenes_are_normalised_by_the_rig_or_by_their_mean_distance():
    known = recipe.make_batch([3], 3, 1, 24, with_rays=True)
    alone = recipe.make_batch([3], 3, 1, 24, with_rays=False)
    assert known.rays is not None and known.rays.shape == (1, 3, 6, 24, 24)
    assert alone.rays is None
    seen = torch.isfinite(alone.depth)
    ratio = (known.depth / alone.depth)[seen]
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))
    z = alone.depth[:, :, 0][torch.isfinite(alone.depth[:, :, 0])]
    assert float(z.clamp(max=3.0 * float(z.median())).mean()) == pytest.approx(1.0, rel=0.02)
    # Translations and depth share a unit.
    moved, still = known.cameras[0, 1, :3], alone.cameras[0, 1, :3]
    torch.testing.assert_close(moved / still, ratio[0].expand(3))


def test_losses_vanish_at_the_truth_and_skip_the_sky():
    batch = recipe.make_batch([1], 2, 1, 16, with_rays=False)
    model = Reconstructor(ReconstructorConfig.small(**TINY)).eval()
    with torch.no_grad():
        p = model(batch.frames)
    seen = torch.isfinite(batch.depth)
    true = torch.where(seen, batch.depth, torch.full_like(batch.depth, 123.0)).clamp(max=20.0)
    exact = dataclasses.replace(
        p, depth=true, confidence=torch.ones_like(true), poses=[batch.cameras[:, None]] * 4
    )
    assert float(depth_loss(exact, batch.depth)) == pytest.approx(0.0, abs=1e-6)
    assert float(camera_loss(exact, batch.cameras)) == 0.0
    assert absolute_relative_error(3.0 * batch.depth, batch.depth) == pytest.approx(0.0, abs=1e-6)
    worse = dataclasses.replace(exact, depth=1.5 * true)
    assert float(depth_loss(worse, batch.depth)) == pytest.approx(np.log(1.5), rel=1e-4)


def test_configs_are_read_from_json_and_toml_and_typos_are_named(tmp_path):
    (tmp_path / "a.toml").write_text("minutes = 1.5\nsizes = [32, 64]\n")
    assert recipe.read_config(tmp_path / "a.toml").sizes == (32, 64)
    (tmp_path / "b.json").write_text('{"minuts": 2}')
    with pytest.raises(ViewtimeError, match="minuts"):
        recipe.read_config(tmp_path / "b.json")
    assert recipe.read_config(None) == recipe.TrainConfig()
