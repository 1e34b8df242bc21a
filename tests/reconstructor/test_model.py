# SPDX-License-Identifier: Apache-2.0
"""The model's structure: silent additions, one camera per view, batches, upstream's names."""

import dataclasses

import numpy as np
import pytest
import torch

from viewtime.models import ModelError
from viewtime.reconstructor import dpt, layers
from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.layers import Rope2D, uv_embedding, uv_halves
from viewtime.reconstructor.load import load_reconstructor, save_reconstructor
from viewtime.reconstructor.memory import Chunks
from viewtime.reconstructor.model import Reconstructor, _per_frames

TINY = ReconstructorConfig.small(
    dim=32, depth=4, heads=2, camera_heads=2, head_channels=(8, 8, 8, 8), head_features=8
)


@pytest.fixture(params=["pair", "layer"])
def model(request) -> Reconstructor:
    torch.manual_seed(0)
    return Reconstructor(dataclasses.replace(TINY, temporal=request.param)).eval()


def awake(model: Reconstructor) -> Reconstructor:
    """The same model with every silent layer given random weights."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def frames(batch: int = 1, times: int = 3, views: int = 2) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.rand(batch, times, views, 3, 16, 24)


def test_fresh_temporal_blocks_change_nothing_to_the_last_bit(model):
    with torch.no_grad():
        with_blocks = model(frames())
        without = model(frames(), temporal=False)
        alone = [model(frames()[:, t : t + 1]) for t in range(3)]
    assert torch.equal(with_blocks.depth, without.depth)
    assert torch.equal(with_blocks.confidence, without.confidence)
    for t in range(3):
        torch.testing.assert_close(with_blocks.depth[:, t], alone[t].depth[:, 0])


def test_awake_temporal_blocks_let_timesteps_see_each_other(model):
    awake(model)
    other = frames()
    other[:, 2] = torch.rand_like(other[:, 2])
    with torch.no_grad():
        first, second = model(frames()).depth[:, 0], model(other).depth[:, 0]
        still = model(other, temporal=False).depth[:, 0]
        reference = model(frames(), temporal=False).depth[:, 0]
    assert (first - second).abs().max() > 1e-4
    assert torch.equal(still, reference)


def test_cameras_are_those_of_the_first_timestep_at_every_timestep(model):
    awake(model)
    with torch.no_grad():
        poses = model(frames()).poses
        changed = frames()
        changed[:, 1:] = 0.0
        later = model(changed, temporal=False).poses[-1]
        reference = model(frames(), temporal=False).poses[-1]
    assert len(poses) == 4
    for pose in poses:
        assert pose.shape == (1, 3, 2, 9)
        assert torch.equal(pose, pose[:, :1].expand_as(pose))
    assert torch.equal(later, reference)


def test_a_batch_gives_what_its_samples_give_alone(model):
    awake(model)
    both = frames(batch=2)
    with torch.no_grad():
        together = model(both)
        for b in range(2):
            alone = model(both[b : b + 1])
            torch.testing.assert_close(together.depth[b], alone.depth[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                together.poses[-1][b], alone.poses[-1][0], rtol=1e-4, atol=1e-5
            )


def test_views_after_the_first_may_change_places(model):
    awake(model)
    x = frames(times=1, views=3)
    with torch.no_grad():
        depth = model(x).depth
        swapped = model(x[:, :, [0, 2, 1]]).depth
        moved = model(x[:, :, [1, 0, 2]]).depth
    torch.testing.assert_close(swapped, depth[:, :, [0, 2, 1]], rtol=1e-4, atol=1e-5)
    assert (moved - depth[:, :, [1, 0, 2]]).abs().max() > 1e-4  # view 0 is the reference


def test_rays_are_ignored_until_trained_and_used_then(model):
    rays = torch.rand(1, 2, 6, 16, 24)
    with torch.no_grad():
        plain = model(frames())
        assert torch.equal(model(frames(), rays).depth, plain.depth)
        awake(model)
        assert (model(frames(), rays).depth - model(frames()).depth).abs().max() > 1e-4


def test_depth_is_positive_and_confidence_at_least_one(model):
    with torch.no_grad():
        p = model(frames())
    assert p.depth.shape == p.confidence.shape == p.surface.shape == (1, 3, 2, 16, 24)
    assert (p.depth > 0).all() and (p.confidence >= 1).all()


def test_rotary_scores_depend_on_distance_only():
    rope = Rope2D()
    torch.manual_seed(3)
    q, k = torch.randn(1, 16), torch.randn(1, 16)

    def score(a, b):
        one = Rope2D.apply(q, rope.table(torch.tensor([a]), 16))
        two = Rope2D.apply(k, rope.table(torch.tensor([b]), 16))
        return float((one * two).sum())

    assert score((1, 2), (4, 3)) == pytest.approx(score((5, 7), (8, 8)), abs=1e-5)
    assert score((1, 2), (4, 3)) != pytest.approx(score((1, 2), (3, 4)), abs=1e-3)


def test_the_picture_embedding_is_symmetric_about_the_middle():
    e = uv_embedding(6, 8, 16)
    assert e.shape == (16, 6, 8)
    torch.testing.assert_close(e[:4], -e[:4].flip(-1))  # sines of x
    torch.testing.assert_close(e[12:], e[12:].flip(-2))  # cosines of y


def test_the_picture_sines_are_made_in_place_and_once_for_all_chunks(model, monkeypatch):
    assert all(half.device.type == "meta" for half in uv_halves(6, 8, 16, device="meta"))
    made = []

    def counted(*size, **options):
        made.append(size)
        return uv_halves(*size, **options)

    monkeypatch.setattr(dpt, "uv_halves", counted)
    with torch.no_grad():
        whole = model(frames()).depth
        assert len(made) == 5
        monkeypatch.setattr(model, "_chunks", lambda *_: Chunks(head_frames=1))
        torch.testing.assert_close(model(frames()).depth, whole)
    assert len(made) == 10


def test_saved_models_load_again_and_strange_folders_are_refused(model, tmp_path):
    save_reconstructor(tmp_path / "m", model, dtype=torch.float32)
    again = load_reconstructor(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(again(frames()).depth, model(frames()).depth)
    assert again.config == model.config
    with pytest.raises(ModelError, match="not a reconstructor"):
        load_reconstructor(tmp_path)
    config = (tmp_path / "m" / "config.json").read_text()
    (tmp_path / "m" / "config.json").write_text(config.replace('"dim": 32', '"dim": 64'))
    with pytest.raises(ModelError, match="model.safetensors"):
        load_reconstructor(tmp_path / "m")


def test_sides_that_patches_do_not_divide_are_refused(model):
    with pytest.raises(ValueError, match="20x16"):
        model(torch.zeros(1, 1, 1, 3, 16, 20))
    assert np.prod(model(torch.zeros(1, 1, 1, 3, 8, 8)).depth.shape) == 64


def test_the_trunk_may_compute_in_16_bit_while_heads_answer_in_32(model):
    awake(model)
    with torch.no_grad():
        exact, rough = model(frames()), model(frames(), trunk_dtype=torch.bfloat16)
    assert rough.depth.dtype == rough.poses[-1].dtype == torch.float32
    assert not torch.equal(rough.depth, exact.depth)
    torch.testing.assert_close(rough.depth, exact.depth, rtol=0.1, atol=0.02)


def test_the_trunk_may_stay_without_gradients_or_recompute_its_activations(model):
    awake(model)

    def gradients(**options) -> dict[str, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        model(frames(), **options).depth.log().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole = gradients()
    model.aggregator.checkpointing = True
    again = gradients()
    assert set(again) == set(whole) and any("temporal" in name for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-5)
    heads = gradients(trunk_gradients=False)
    assert {name.split(".")[0] for name in heads} == {"depth_head"}


def test_dense_heads_in_parts_answer_and_teach_as_at_once(model):
    awake(model)
    x = frames(times=5)  # ten frames, two parts
    with torch.no_grad():
        parts = model(x).depth
    model.zero_grad()
    torch.testing.assert_close(model(x).depth, parts)
    model.eval()
    heads = model.depth_head
    tokens = [torch.randn(10, 5 + 6, 64) for _ in range(4)]
    with torch.no_grad():
        whole = heads(tokens, x.flatten(0, 2))
        found = _per_frames(heads, tokens, x.flatten(0, 2), 3)
    for one, other in zip(found, whole):
        torch.testing.assert_close(one, other)


def test_impossible_sizes_are_named():
    with pytest.raises(ModelError, match="temporal is 'both'; one of none, pair, layer"):
        ReconstructorConfig(temporal="both")
    with pytest.raises(ModelError, match="layers 0 to 3"):
        ReconstructorConfig.small(head_layers=(0, 1, 2, 4))
    with pytest.raises(ModelError, match="unknown field 'dimm'"):
        ReconstructorConfig.small(dimm=3)
    with pytest.raises(ModelError, match="dim is 36; a multiple of 4 x heads"):
        ReconstructorConfig.small(dim=36, heads=6)


def test_more_sequences_than_one_attention_call_may_have_are_split(model, monkeypatch):
    awake(model)
    with torch.no_grad():
        whole = model(frames()).depth
        monkeypatch.setattr(layers, "MAX_SEQUENCES", 5)
        torch.testing.assert_close(model(frames()).depth, whole, rtol=1e-4, atol=1e-5)
