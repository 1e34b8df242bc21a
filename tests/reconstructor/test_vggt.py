# SPDX-License-Identifier: Apache-2.0
"""Exactly VGGT: its tensors by name and shape, and the numbers that upstream's own code gives.

`vggt_golden.npz` holds what upstream (commit c4b5da2, float32, CPU) answers for the weights,
frames and query points that the rule below makes; `vggt_keys.txt` lists VGGT-1B's tensors.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.load import without_data
from viewtime.reconstructor.model import Reconstructor

HERE = Path(__file__).parent
CONFIG = ReconstructorConfig(
    size=70,
    dim=64,
    depth=4,
    heads=4,
    dino_depth=2,
    dino_heads=2,
    camera_depth=2,
    camera_heads=4,
    head_layers=(0, 1, 2, 3),
    head_channels=(16, 32, 48, 48),
    head_features=32,
    track_features=32,
    track_hidden=64,
)
FRAMES, HEIGHT, WIDTH, POINTS = 3, 140, 154, 5
STEP = 5
"""Every so many rows and columns of the dense maps are kept."""
ONES = ("norm.weight", "norm1.weight", "norm2.weight", "norm_context.weight", "gamma")


def uniform(count: int, seed: int) -> torch.Tensor:
    """count numbers in [-1, 1) by a hash of their index (splitmix64): the same everywhere."""
    x = np.arange(count, dtype=np.uint64) + np.uint64((seed << 32) + 0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return torch.from_numpy(((x >> np.uint64(40)) / 2.0**23 - 1.0).astype(np.float32))


def fill(model: torch.nn.Module) -> None:
    """Weights by name order: unit variance through layers, everything else of some size."""
    with torch.no_grad():
        for seed, (name, x) in enumerate(sorted(model.state_dict().items()), start=1):
            values = uniform(x.numel(), seed).view(x.shape)
            if x.ndim <= 1:
                values = 0.1 * values + (1.0 if name.endswith(ONES) else 0.0)
            elif name.endswith("weight"):
                turned = "resize_layers.0" in name or "resize_layers.1" in name
                fan = x.shape[0] if turned else x[0].numel()
                values = values * (3.0 / fan) ** 0.5
                if "flow_head" in name:  # tracks are chaotic where points move by pixels
                    values = 1e-3 * values
                if "patch_embed.proj" in name:  # small tokens, so that epsilons count
                    values = 0.03 * values
            else:
                values = 0.03 * values
            x.copy_(values)


def images() -> torch.Tensor:
    """(1,3,3,140,154) in [0,1)."""
    values = uniform(FRAMES * 3 * HEIGHT * WIDTH, 1001)
    return (0.5 * (values + 1.0)).view(1, FRAMES, 3, HEIGHT, WIDTH)


def query() -> torch.Tensor:
    """(1,5,2) pixels."""
    size = torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])
    return 0.5 * (uniform(2 * POINTS, 1002).view(1, POINTS, 2) + 1.0) * size


def vggt_1b() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of VGGT-1B."""
    found = {}
    for line in (HERE / "vggt_keys.txt").read_text().splitlines():
        name, shape = line.split()
        size = tuple(int(side) for side in shape.split("x"))
        several = re.search(r"\{(\d+)-(\d+)\}", name)
        if several is None:
            found[name] = size
            continue
        for i in range(int(several[1]), int(several[2]) + 1):
            found[name.replace(several[0], str(i))] = size
    return found


@pytest.fixture(scope="module")
def model() -> Reconstructor:
    model = Reconstructor(CONFIG).eval()
    fill(model)
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(HERE / "vggt_golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_the_default_model_has_exactly_the_tensors_of_vggt_1b():
    state = without_data(ReconstructorConfig()).state_dict()
    shapes = {name: tuple(x.shape) for name, x in state.items()}
    assert shapes == vggt_1b()
    assert len(shapes) == 1797
    assert sum(x.numel() for x in state.values()) == 1_256_537_516


def test_cameras_depth_points_and_tracks_are_upstreams_numbers(model, golden):
    with torch.no_grad():
        found = model.static(images(), query())
    for name in ("depth", "depth_conf", "world_points", "world_points_conf"):
        found[name] = found[name][:, :, ::STEP, ::STEP]
    assert set(golden) == set(found)
    for name, wanted in golden.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("detail", ["dino epsilon", "trunk epsilon", "rope", "uv", "places"])
def test_the_golden_numbers_notice_a_detail(model, golden, detail, monkeypatch):
    trunk = model.aggregator
    shifted = trunk.patch_embed.places(10, 11).roll(1, dims=1)
    owner, name, value = {
        "dino epsilon": (trunk.patch_embed.blocks[0].norm1, "eps", 1e-5),
        "trunk epsilon": (trunk.frame_blocks[0].norm1, "eps", 1e-6),
        "rope": (trunk.rope, "base", 100.1),
        "uv": (model.depth_head, "uv", False),
        "places": (trunk.patch_embed, "places", lambda *_: shifted),
    }[detail]
    monkeypatch.setattr(owner, name, value)
    with torch.no_grad():
        found = model.static(images())["depth"][:, :, ::STEP, ::STEP]
    assert not torch.allclose(found, golden["depth"], rtol=1e-5, atol=1e-5)


def test_frames_and_query_points_may_come_without_a_batch(model):
    x, q = images()[:, :2, :, :70, :70], query() / 2
    with torch.no_grad():
        one, other = model.static(x[0]), model.static(x)
        assert torch.equal(one["depth"], other["depth"])
        with pytest.raises(ValueError, match="no track head"):
            Reconstructor(ReconstructorConfig.small()).static(torch.rand(1, 3, 16, 16), q)


def test_tracks_cost_no_second_trunk_and_stock_answers_no_gaussians(model, monkeypatch):
    seen = []
    hook = model.aggregator.register_forward_hook(lambda *_: seen.append("trunk"))
    monkeypatch.setattr(model, "gaussian_head", torch.nn.Identity())  # cannot answer
    with torch.no_grad():
        found = model.static(images()[:, :2], query())
    hook.remove()
    assert seen == ["trunk"] and found["track"].shape == (1, 2, POINTS, 2)


def test_timesteps_in_a_batch_are_stock_vggt_each(model):
    x = torch.stack([images(), images().flip(-1)], dim=1)[:, :, :, :, :56, :70]  # (1,2,3,3,H,W)
    with torch.no_grad():
        together = model(x, replace_cameras=False)
        for t in range(2):
            alone = model.static(x[:, t])
            torch.testing.assert_close(together.depth[:, t], alone["depth"][..., 0])
            torch.testing.assert_close(together.poses[-1][:, t], alone["pose_enc"])
            torch.testing.assert_close(together.points[:, t], alone["world_points"])


@pytest.mark.parametrize("temporal", ["pair", "layer"])
def test_fresh_temporal_layers_leave_stock_output_to_the_last_bit(model, temporal):
    config = ReconstructorConfig(**{**vars(CONFIG), "temporal": temporal, "track_head": False})
    ours = Reconstructor(config).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("track_head.")}
    missing, unknown = ours.load_state_dict(state, strict=False)
    assert not unknown and all("temporal_blocks" in name for name in missing)
    x = torch.stack([images(), images().flip(-1)], dim=1)[:, :, :, :, :56, :70]
    with torch.no_grad():
        stock, found = model(x), ours(x)
    for field in ("depth", "confidence", "points", "points_confidence"):
        assert torch.equal(getattr(found, field), getattr(stock, field))
    assert torch.equal(found.poses[-1], stock.poses[-1])


def test_camera_tokens_of_the_first_timestep_stand_in_and_can_be_left(model):
    x = torch.stack([images(), images().flip(-1)], dim=1)[:, :, :, :, :56, :70]
    with torch.no_grad():
        replaced, own = model(x).poses, model(x, replace_cameras=False).poses
    for one, other in zip(replaced, own):
        torch.testing.assert_close(one[:, 0], other[:, 0])
        assert torch.equal(one[:, 1], one[:, 0])
        assert (other[:, 1] - other[:, 0]).abs().max() > 1e-2
