# SPDX-License-Identifier: Apache-2.0
"""From raw maps to Gaussians: where they land, how they turn, and what merging them means."""

import math

import numpy as np
import pytest
import torch

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.gaussian_head import gaussian_head
from viewtime.reconstructor.model import Reconstructor
from viewtime.reconstructor.pose_encoding import decode_poses, encode_poses, quaternion_to_matrix
from viewtime.reconstructor.splats import (
    RawSplats,
    activate,
    confident,
    make_splats,
    merge_voxels,
    raw_splats,
    select,
    to_gaussians,
)
from viewtime_formats.gaussians import SH_C0

B, T, V, H, W = 1, 2, 3, 4, 6


def cameras(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    encoding = torch.cat(
        [torch.randn(B, T, V, 3), torch.randn(B, T, V, 4), torch.full((B, T, V, 2), 0.9)], dim=-1
    ).double()
    return decode_poses(encoding, (H, W))


def inputs(channels: int = 14) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    raw = torch.randn(B, T, V, channels, H, W, dtype=torch.float64)
    depth = 1.0 + torch.rand(B, T, V, H, W, dtype=torch.float64)
    return raw, depth, torch.rand(B, T, V, 3, H, W, dtype=torch.float64)


def covariance(splats) -> torch.Tensor:
    w, x, y, z = splats.rotations.unbind(-1)
    axes = quaternion_to_matrix(torch.stack([x, y, z, w], dim=-1)) * splats.scales[..., None, :]
    return axes @ axes.transpose(-1, -2)


def test_a_fresh_head_puts_a_small_faint_gaussian_of_the_pixels_colour_on_each_pixel():
    torch.manual_seed(2)
    config = ReconstructorConfig.small(gaussian_head="residual", gaussian_log_scale=-7.0)
    head = gaussian_head(config)
    tokens = [torch.randn(V, 5 + 6, 2 * config.dim) for _ in range(4)]
    with torch.no_grad():
        raw = head(tokens, torch.rand(V, 3, 16, 24)).view(1, 1, V, 14, 16, 24).double()
    depth = 1.0 + torch.rand(1, 1, V, 16, 24, dtype=torch.float64)
    images = torch.rand(1, 1, V, 3, 16, 24, dtype=torch.float64)
    extrinsics, _ = cameras()
    extrinsics = extrinsics[:, :1]
    intrinsics = torch.tensor([[20.0, 0, 12], [0, 21, 8], [0, 0, 1]]).double()
    splats = make_splats(
        "residual", raw, depth, extrinsics, intrinsics.expand(1, 1, V, 3, 3), images
    )
    means = splats.means.view(V, 16, 24, 3)
    local = torch.einsum("vij,vhwj->vhwi", extrinsics[0, 0, :, :, :3], means)
    local = local + extrinsics[0, 0, :, None, None, :, 3]
    pixel = local @ intrinsics.T
    pixel = pixel[..., :2] / pixel[..., 2:]
    y, x = torch.meshgrid(torch.arange(16.0) + 0.5, torch.arange(24.0) + 0.5, indexing="ij")
    grid = torch.stack([x, y], dim=-1).double().expand(V, -1, -1, -1)
    assert (pixel - grid).abs().max() < 0.01  # half a pixel would be 0.5
    torch.testing.assert_close(local[..., 2], depth[0, 0], rtol=0, atol=1e-3)
    assert (splats.scales.log() + 7.0).abs().max() < 0.01
    assert (splats.opacities - 1 / (1 + math.exp(2.0))).abs().max() < 0.1
    pixels = images[0, 0].permute(0, 2, 3, 1).reshape(-1, 3)
    shown = 0.5 + SH_C0 * splats.sh[0, 0, :, 0]
    assert (shown - pixels).abs().mean() < 0.05


def test_gaussians_move_with_the_cameras():
    raw, depth, images = inputs()
    extrinsics, intrinsics = cameras()
    one = make_splats("residual", raw, depth, extrinsics, intrinsics, images)
    turn = quaternion_to_matrix(torch.tensor([0.3, -0.5, 0.7, 0.2], dtype=torch.float64))
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    rotation = extrinsics[..., :3] @ turn.T  # camera from the moved world
    translation = extrinsics[..., 3] - rotation @ shift
    moved = torch.cat([rotation, translation[..., None]], dim=-1)
    two = make_splats("residual", raw, depth, moved, intrinsics, images)
    torch.testing.assert_close(two.means, one.means @ turn.T + shift)
    torch.testing.assert_close(covariance(two), turn @ covariance(one) @ turn.T)
    torch.testing.assert_close(two.opacities, one.opacities)
    norms = two.rotations.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_a_larger_world_has_larger_gaussians():
    raw, depth, images = inputs()
    extrinsics, intrinsics = cameras()
    one = make_splats("residual", raw, depth, extrinsics, intrinsics, images)
    scaled = torch.cat([extrinsics[..., :3], 3.0 * extrinsics[..., 3:]], dim=-1)
    three = make_splats("residual", raw, 3.0 * depth, scaled, intrinsics, images, unit=3.0)
    torch.testing.assert_close(three.means, 3.0 * one.means)
    torch.testing.assert_close(three.scales, 3.0 * one.scales)


def test_offsets_and_rotations_are_those_of_splatt3r_with_the_scalar_first():
    raw, depth, images = inputs()
    same = torch.eye(4, dtype=torch.float64)[:3].expand(B, T, V, 3, 4)
    _, intrinsics = cameras()
    splats = make_splats("residual", raw, depth, same, intrinsics, images)
    zero = raw.clone()
    zero[:, :, :, :3] = 0.0
    base = make_splats("residual", zero, depth, same, intrinsics, images)
    offset = raw[0, 1, 2, :3, 3, 4]  # one pixel's
    length = offset.norm()
    wanted = offset / length * (torch.exp(length - 6) - math.exp(-6))
    n = 2 * H * W + 3 * W + 4
    torch.testing.assert_close((splats.means - base.means)[0, 1, n], wanted)
    x, y, z, w = raw[0, 1, 2, 7:11, 3, 4] / raw[0, 1, 2, 7:11, 3, 4].norm()
    torch.testing.assert_close(splats.rotations[0, 1, n], torch.stack([w, x, y, z]))
    torch.testing.assert_close(splats.opacities[0, 1, n], raw[0, 1, 2, 3, 3, 4].sigmoid())
    torch.testing.assert_close(splats.scales[0, 1, n], raw[0, 1, 2, 4:7, 3, 4].exp())


def test_a_head_that_asks_for_infinities_still_draws_something_finite():
    """Seen in training: raw offsets of some hundreds, whose exponential no float holds."""
    raw, depth, images = (x.float() for x in inputs())
    raw[:, :, :, :7] = 400.0
    raw[:, :, :, 1, 0] = 0.0  # infinity times zero is not a number
    raw.requires_grad_()
    same = torch.eye(4)[:3].expand(B, T, V, 3, 4)
    splats = make_splats("residual", raw, depth, same, cameras()[1].float(), images)
    (splats.means.sum() + splats.scales.sum()).backward()
    for found in (splats.means, splats.scales, raw.grad):
        assert torch.isfinite(found).all()
    assert splats.scales.max() < 21 and splats.means.abs().max() < 60


def test_everything_a_loss_could_teach_gets_a_gradient():
    raw, depth, images = inputs()
    extrinsics, intrinsics = cameras()
    leaves = [x.clone().requires_grad_() for x in (raw, depth, extrinsics)]
    splats = make_splats("residual", leaves[0], leaves[1], leaves[2], intrinsics, images)
    torch.manual_seed(3)
    values = (splats.means, splats.scales, splats.rotations, splats.opacities, splats.sh)
    sum((x * torch.randn_like(x)).sum() for x in values).backward()
    for leaf in leaves:
        assert leaf.grad.isfinite().all()
    assert (leaves[0].grad.abs().amax((0, 1, 2, 4, 5)) > 0).all()  # each of the 14 channels
    assert (leaves[1].grad != 0).all()


def test_anysplats_numbers_follow_its_own_formulas():
    raw, depth, images = inputs(84)
    same = torch.eye(4, dtype=torch.float64)[:3].expand(B, T, V, 3, 4)
    _, intrinsics = cameras()
    flat = raw_splats("anysplat", raw, depth, same, intrinsics, images)
    splats = activate(flat)
    n, pixel = 1 * H * W + 2 * W + 5, raw[0, 0, 1, :, 2, 5]
    wanted = 0.001 * torch.log1p(pixel[1:4].exp())
    torch.testing.assert_close(splats.scales[0, 0, n], wanted)
    x, y, z, w = pixel[4:8] / pixel[4:8].norm()
    torch.testing.assert_close(splats.rotations[0, 0, n], torch.stack([w, x, y, z]))
    for colour in range(3):
        for k, degree in ((0, 0), (1, 1), (8, 2), (15, 3), (16, 4), (24, 4)):
            factor = 1.0 if degree == 0 else 0.1 * 0.25**degree
            wanted = factor * pixel[8 + 25 * colour + k]
            torch.testing.assert_close(splats.sh[0, 0, n, k, colour], wanted)
    torch.testing.assert_close(flat.weight[0, 0, n], pixel[83])
    z = depth[0, 0, 1, 2, 5]  # through the pixel's corner, as it was trained
    x = (5 - intrinsics[0, 0, 1, 0, 2]) * z / intrinsics[0, 0, 1, 0, 0]
    torch.testing.assert_close(splats.means[0, 0, n, 0], x)


@pytest.mark.parametrize("kind", ["residual", "anysplat"])
def test_merging_is_a_softmax_weighted_mean_per_voxel(kind):
    rng = np.random.default_rng(0)
    count = 60
    means = torch.from_numpy(rng.uniform(-1, 1, (count, 3)))
    values = [torch.from_numpy(rng.normal(size=(count, *s))) for s in ((), (3,), (4,), (4, 3), ())]
    opacity, scale, rotation, sh, weight = values
    merged = merge_voxels(RawSplats(kind, means, opacity, scale, rotation, sh, weight), 0.8)
    cells: dict[tuple[int, ...], list[int]] = {}
    for i, cell in enumerate((means / 0.8).round().long().tolist()):
        cells.setdefault(tuple(cell), []).append(i)
    assert len(merged.means) == len(cells) < count
    for row, (_, members) in enumerate(sorted(cells.items())):
        share = torch.softmax(weight[members], 0)
        torch.testing.assert_close(
            merged.means[row], (share[:, None] * means[members]).sum(0), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            merged.sh[row], (share[:, None, None] * sh[members]).sum(0), rtol=1e-5, atol=1e-5
        )
        turns = rotation[members]
        if kind == "residual":
            heaviest = turns[weight[members].argmax()]
            turns = turns * torch.where(turns @ heaviest >= 0, 1.0, -1.0)[:, None]
        torch.testing.assert_close(
            merged.rotation[row], (share[:, None] * turns).sum(0), rtol=1e-5, atol=1e-5
        )
    with pytest.raises(ValueError, match="voxel size is 0"):
        merge_voxels(RawSplats(kind, means, opacity, scale, rotation, sh, weight), 0.0)


def test_the_least_confident_share_of_each_frame_is_dropped():
    confidence = torch.rand(B, T, V, H, W) + 1.0
    confidence[0, 0, 0] = 1.0  # ties: exactly the share goes all the same
    keep = confident(confidence, 0.25)
    assert keep.shape == (B, T, V * H * W)
    per_frame = keep.view(B, T, V, H * W)
    assert (per_frame.sum(-1) == H * W - 6).all()
    flat = confidence.view(B, T, V, -1)
    assert flat[per_frame].min() >= flat.quantile(0.25, dim=-1).min()
    for frame, kept in zip(flat.flatten(0, 2), per_frame.flatten(0, 2)):
        assert frame[~kept].max() <= frame[kept].min()
    assert confident(confidence, 0.0).all()
    with pytest.raises(ValueError, match="drop_share is 1.0"):
        confident(confidence, 1.0)


def test_what_no_viewer_could_draw_is_left_out():
    raw, depth, images = inputs()
    extrinsics, intrinsics = cameras()
    depth[0, 0, 0, 0, 0] = math.inf
    raw[0, 0, 0, 7:11, 1, 1] = 0.0  # no rotation
    raw[0, 0, 0, 3, 2, 2] = -20.0  # invisible
    flat = raw_splats("residual", raw, depth, extrinsics, intrinsics, images)
    keep = torch.ones(B, T, V * H * W, dtype=torch.bool)
    keep[0, 0, -1] = False
    gaussians = to_gaussians(activate(select(flat, 0, 0, keep)), min_opacity=1e-3)
    gaussians.validate("test")
    assert len(gaussians) == V * H * W - 4


def test_a_model_makes_splats_with_predicted_or_with_captured_geometry():
    torch.manual_seed(4)
    config = ReconstructorConfig.small(dim=32, heads=2, camera_heads=2, gaussian_head="residual")
    model = Reconstructor(config).eval()
    torch.nn.init.constant_(model.camera_head.pose_branch.fc2.bias, 0.5)
    frames = torch.rand(1, 2, 2, 3, 16, 24)
    with torch.no_grad():
        p = model(frames)
        predicted = model.raw_splats(p, frames)
        extrinsics, intrinsics = p.cameras()
        depth = torch.full_like(p.depth, 2.0)
        captured = model.raw_splats(
            p, frames, depth=depth, extrinsics=extrinsics, intrinsics=intrinsics
        )
    assert predicted.means.shape == (1, 2, 2 * 16 * 24, 3)
    torch.testing.assert_close(captured.sh, predicted.sh)
    away = captured.means - predicted.means
    assert away.abs().max() > 0.1
    encoded = encode_poses(extrinsics, intrinsics, (16, 24))
    again, _ = decode_poses(encoded, (16, 24))
    torch.testing.assert_close(again, extrinsics, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no Gaussian head"):
        model.raw_splats(type(p)(p.depth, p.confidence, None, p.poses), frames)
