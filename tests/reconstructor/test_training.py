# SPDX-License-Identifier: Apache-2.0
"""Batches of depth and cameras, and what they teach; stages are in tests/training."""

import dataclasses

import numpy as np
import pytest
import torch

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.model import Reconstructor
from viewtime.training import reconstructor as recipe
from viewtime.training import reconstructor_stages
from viewtime.training.common import TrainingError
from viewtime.training.reconstructor_loss import (
    absolute_relative_error,
    camera_loss,
    depth_loss,
    geometry_loss,
)

TINY = {
    "dim": 32,
    "depth": 4,
    "heads": 2,
    "camera_heads": 2,
    "head_channels": [8, 8, 8, 8],
    "head_features": 8,
    "size": 16,
}


def test_one_scene_can_be_learnt():
    torch.manual_seed(0)
    model = Reconstructor(ReconstructorConfig.small(**TINY))
    batch = recipe.make_batch([7], 3, 1, 32, with_rays=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = absolute_relative_error(model(batch.frames).depth.detach(), batch.depth)
    first = None
    for _ in range(60):
        loss, parts = geometry_loss(model(batch.frames), batch.depth, batch.cameras)
        first = parts if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = absolute_relative_error(model(batch.frames).depth.detach(), batch.depth)
    assert after < 0.5 * before
    assert parts["camera"] < 0.5 * first["camera"]


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


@pytest.mark.parametrize("replaced", [True, False])
def test_the_cameras_of_every_timestep_learn(replaced):
    """Also where each timestep answers for itself; where one stands for all, the loss is its."""
    batch = recipe.make_batch([1], 2, 3, 16, with_rays=False)
    model = Reconstructor(ReconstructorConfig.small(**TINY, replace_cameras=replaced))
    tokens = torch.randn(1, 3, 2, 2 * TINY["dim"], requires_grad=True)
    poses = model._poses(tokens, replaced)
    p = dataclasses.replace(model(batch.frames), poses=poses)
    loss = camera_loss(p, batch.cameras)
    loss.backward()
    assert tokens.grad is not None
    taught = [float(tokens.grad[:, t].abs().sum()) > 0 for t in range(3)]
    assert taught == [True, not replaced, not replaced]
    first = dataclasses.replace(p, poses=[pose[:, :1] for pose in poses])
    alone = camera_loss(first, batch.cameras)
    assert bool(torch.isclose(alone, loss, rtol=1e-5)) is replaced


def test_without_a_configuration_the_shipped_small_one_is_trained(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(
        reconstructor_stages, "train", lambda settings: trained.append(settings) or tmp_path
    )
    assert recipe.main([]) == 0 and f"weights in {tmp_path}" in capsys.readouterr().out
    (small,) = trained
    assert [stage.kind for stage in small.stages] == ["geometry", "static", "dynamic"]
    small.check_model(ReconstructorConfig.small(**small.model))
    # Unlike its batches, a training without stages is gone.
    old = tmp_path / "old.toml"
    old.write_text('folder = "runs/x"\n')
    with pytest.raises(TrainingError, match="stages is absent"):
        recipe.main([str(old)])
    assert len(trained) == 1


def test_a_batch_is_a_function_of_its_step():
    config = recipe.TrainConfig(sizes=(16, 24), frames_per_step=2)
    one, again, other = (recipe.training_batch(config, step, 0.5) for step in (4, 4, 5))
    assert torch.equal(one.frames, again.frames) and torch.equal(one.depth, again.depth)
    assert one.frames.shape != other.frames.shape or not torch.equal(one.frames, other.frames)
    assert float(one.frames.min()) >= 0 and float(one.frames.max()) <= 1
