# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of VGGT and AnySplat: both layouts load strictly, and what does not fit is named."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from viewtime.models import ModelError, open_weights
from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.load import load_reconstructor, save_reconstructor, without_data
from viewtime.reconstructor.model import Reconstructor

VGGT = ReconstructorConfig(
    size=56,
    dim=32,
    depth=4,
    heads=2,
    dino_depth=1,
    dino_heads=2,
    camera_depth=1,
    camera_heads=2,
    head_layers=(0, 1, 2, 3),
    head_channels=(8, 8, 8, 8),
    head_features=16,
    track_features=16,
    track_hidden=32,
    track_depth=1,
)
ANYSPLAT = dataclasses.replace(VGGT, point_head=False, track_head=False, gaussian_head="anysplat")


def made(config: ReconstructorConfig) -> Reconstructor:
    torch.manual_seed(0)
    return Reconstructor(config).eval()


def frames() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(1, 2, 2, 3, 28, 42)


@pytest.fixture(scope="module")
def stock() -> Reconstructor:
    return made(VGGT)


@pytest.fixture
def file(stock, tmp_path):
    save_file(stock.state_dict(), tmp_path / "vggt.safetensors")
    return tmp_path / "vggt.safetensors"


def test_a_vggt_file_loads_whole_or_without_the_heads_that_are_not_needed(stock, file):
    whole = load_reconstructor(file, config=VGGT, point_head=True, track_head=True)
    for name, x in stock.state_dict().items():
        assert torch.equal(whole.state_dict()[name], x)
    usual = load_reconstructor(file, config=VGGT)
    assert usual.point_head is None and usual.track_head is None
    with torch.no_grad():
        assert torch.equal(usual(frames()).depth, stock(frames()).depth)
    assert not usual.training and usual.aggregator.camera_token.requires_grad


def test_a_folder_of_shards_loads_by_its_index(stock, tmp_path):
    names = sorted(stock.state_dict())
    parts = {f"model-{i}.safetensors": names[i::2] for i in range(2)}
    for shard, held in parts.items():
        save_file({n: stock.state_dict()[n] for n in held}, tmp_path / shard)
    weight_map = {n: shard for shard, held in parts.items() for n in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text('{"img_size": 56, "patch_size": 14, "embed_dim": 32}')
    loaded = load_reconstructor(tmp_path, config=VGGT)
    with torch.no_grad():
        assert torch.equal(loaded(frames()).depth, stock(frames()).depth)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ModelError, match="model-1.safetensors: this shard is missing"):
        load_reconstructor(tmp_path, config=VGGT)
    index.write_text(json.dumps({"weight_map": {"x": "../../elsewhere.safetensors"}}))
    with pytest.raises(ModelError, match="plain file name"):
        load_reconstructor(tmp_path, config=VGGT)


def test_fresh_temporal_layers_and_a_gaussian_head_can_be_added(stock, file, tmp_path):
    ours = load_reconstructor(
        file, config=VGGT, temporal="layer", gaussian_head="residual", gaussian_log_scale=-4.0
    )
    with torch.no_grad():
        found, wanted = ours(frames()), stock(frames())
    assert torch.equal(found.depth, wanted.depth)
    assert torch.equal(found.poses[-1], wanted.poses[-1])
    assert found.gaussians.shape == (1, 2, 2, 14, 28, 42)
    scale = found.gaussians[:, :, :, 4:7]
    torch.testing.assert_close(scale, torch.full_like(scale, -4.0), rtol=0, atol=0.01)
    # Once saved it is Viewtime's own; parts can be left out again, for ablations.
    save_reconstructor(tmp_path / "own", ours, dtype=torch.float32)
    again = load_reconstructor(tmp_path / "own")
    assert again.config == ours.config
    less = load_reconstructor(tmp_path / "own", temporal="none", replace_cameras=False)
    assert less.aggregator.temporal_blocks is None and not less.config.replace_cameras


def test_what_does_not_fit_is_named(stock, tmp_path):
    state = dict(stock.state_dict())

    def refused(changed: dict[str, torch.Tensor], message: str, **options) -> None:
        save_file(changed, tmp_path / "x.safetensors")
        with pytest.raises(ModelError, match=message):
            load_reconstructor(tmp_path / "x.safetensors", **{"config": VGGT, **options})

    without = {k: v for k, v in state.items() if k != "camera_head.embed_pose.bias"}
    refused(without, r"1 tensors missing \(first: camera_head.embed_pose.bias\)")
    refused({**state, "aggregator.odd": torch.zeros(1)}, r"1 unknown \(first: aggregator.odd\)")
    refused({**state, "aggregator.camera_token": torch.zeros(1, 2, 1, 8)}, r"\(1, 2, 1, 32\) is")
    refused(state, "missing", config=None)  # the usual size
    refused({"a": torch.zeros(1)}, "neither a Viewtime, nor a VGGT, nor an AnySplat")
    refused(state, "'dim' cannot be changed", dim=8)
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x02pickle")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_reconstructor(tmp_path / "x.safetensors", config=VGGT)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model.pt").write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match="holds model.pt; a .pt must be converted"):
        load_reconstructor(tmp_path / "empty")


@pytest.mark.parametrize("head", ["point_head", "track_head"])
def test_a_head_that_a_checkpoint_lacks_is_refused_by_name(tmp_path, head):
    with pytest.raises(ModelError, match=f"reconstructor-small.*no {head}"):
        load_reconstructor("bundled", **{head: True})
    model = made(dataclasses.replace(VGGT, point_head=False, track_head=False))
    save_reconstructor(tmp_path / "own", model)
    with pytest.raises(ModelError, match=f"own.*no {head}"):
        load_reconstructor(tmp_path / "own", **{head: True})


def test_an_anysplat_checkpoint_loads_without_the_copies_it_was_compared_with(tmp_path):
    model = made(ANYSPLAT)
    state = {}
    for name, x in model.state_dict().items():
        kept = x.bfloat16() if name.startswith("aggregator.") else x
        state["encoder." + name.replace("gaussian_head.", "gaussian_param_head.", 1)] = kept
        if not name.startswith("gaussian_head."):
            state[f"encoder.distill_{name}"] = torch.zeros_like(kept)
    save_file(state, tmp_path / "model.safetensors")
    config = {"encoder_cfg": {"voxel_size": 0.004, "voxelize": True, "pred_head_type": "depth"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_reconstructor(tmp_path, config=VGGT)
    assert loaded.config.gaussian_head == "anysplat" and loaded.config.voxel_size == 0.004
    for name, x in model.state_dict().items():
        wanted = x.bfloat16().float() if name.startswith("aggregator.") else x
        assert torch.equal(loaded.state_dict()[name], wanted)
    with torch.no_grad():
        assert loaded(frames()).gaussians.shape == (1, 2, 2, 84, 28, 42)
    config["encoder_cfg"]["pred_head_type"] = "point"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="'point' geometry"):
        load_reconstructor(tmp_path, config=VGGT)
    # A Gaussian head that the checkpoint should have is not made up.
    bare = {k: v for k, v in state.items() if "gaussian_param_head" not in k}
    save_file(bare, tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="missing .first: gaussian_head"):
        load_reconstructor(tmp_path, config=VGGT)


def test_hub_ids_and_card_names_are_looked_up_for_safetensors_alone(file, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    asked = []

    def download(repo, *, revision, allow_patterns, local_files_only):
        asked.append((repo, revision, tuple(allow_patterns), local_files_only))
        return str(file.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_reconstructor("VGGT-1B", config=VGGT, local_files_only=True)
    pinned = open_weights.card("VGGT-1B").revision
    assert asked == [("facebook/VGGT-1B", pinned, ("*.json", "*.safetensors"), True)]

    def gated(*_, **__):
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)
    with pytest.raises(ModelError, match="gated; accept its terms at https://huggingface.co/f"):
        load_reconstructor("facebook/VGGT-1B-Commercial")

    def offline(*_, **__):
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match="lhjiang/anysplat: cannot be had"):
        load_reconstructor("AnySplat")
    with pytest.raises(ModelError, match="no such file or folder, and no hub id"):
        load_reconstructor("/nowhere/at/all")


def test_the_cards_say_who_may_use_what():
    cards = {card.name: card for card in open_weights.RECONSTRUCTORS}
    assert set(cards) == {"VGGT-1B", "VGGT-1B-Commercial", "AnySplat"}
    assert [name for name, card in cards.items() if card.commercial] == ["VGGT-1B-Commercial"]
    assert [name for name, card in cards.items() if card.gated] == ["VGGT-1B-Commercial"]
    heads = {"point_head": False, "track_head": False, "gaussian_head": "anysplat"}
    sizes = {"VGGT-1B": ReconstructorConfig(), "AnySplat": ReconstructorConfig(**heads)}
    for name, config in sizes.items():
        count = sum(p.numel() for p in without_data(config).parameters())
        assert cards[name].parameters == count
    assert open_weights.find("facebook/vggt-1b") is cards["VGGT-1B"]
    assert open_weights.find("unknown") is None
