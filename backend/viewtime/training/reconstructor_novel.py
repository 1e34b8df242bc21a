# SPDX-License-Identifier: Apache-2.0
"""Pictures of predicted Gaussians from target cameras, and how far they are from the truth.

Functions of tensors; it draws no scene and has no optimiser.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from viewtime.gaussians import render
from viewtime.gaussians.tensors import CameraTensors, GaussianTensors
from viewtime.lpips import gradient_distance, load_lpips
from viewtime.reconstructor.model import Prediction, Reconstructor
from viewtime.reconstructor.pose_encoding import (
    decode_poses,
    encode_poses,
    matrix_to_quaternion,
    multiply_quaternions,
)
from viewtime.reconstructor.splats import Splats, activate
from viewtime.training.reconstructor_loss import geometry_loss
from viewtime.training.reconstructor_scenes import Scenes

DILATION = 0.3
"""px^2 added to screen variances, as viewers of splats do."""
FOOTPRINT = 0.3
"""Standard deviation in pixels of a disk that suits DILATION (see `gaussians.lift.surfels`)."""
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Similarity:
    """x_captured = scale * rotation @ x_predicted + translation; (...), (...,3,3), (...,3)."""

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    def moved(self, splats: Splats) -> Splats:
        """Gaussians (...,N,...) of the predicted world in the captured one."""
        means = self.scale[..., None, None] * (splats.means @ self.rotation.mT)
        xyzw = splats.rotations.roll(-1, -1)
        turn = matrix_to_quaternion(self.rotation)[..., None, :].expand_as(xyzw)
        return Splats(
            means + self.translation[..., None, :],
            self.scale[..., None, None] * splats.scales,
            multiply_quaternions(turn, xyzw).roll(1, -1),
            splats.opacities,
            splats.sh,
        )


def align(predicted: Tensor, captured: Tensor) -> Similarity:
    """The similarity from predicted cameras' world to captured ones', least squares in float64.

    predicted, captured: (...,V,3,4) camera from world, the same V cameras. The rotation is fitted
    to the cameras' orientations and centres alike, so that cameras on a line, or two, are enough;
    scale and translation to the centres (Umeyama). Where centres say nothing, the scale is 1.
    The same fit as `reconstructor.align`, which looks for outliers and refuses what is degenerate;
    this one is for batches, always answers, whatever an untrained model says, and is differentiable
    in the predicted cameras: moving or scaling all of them together changes no picture.
    """
    a, b = captured.double(), predicted.double()
    centre_a, centre_b = (-(x[..., :3].mT @ x[..., 3:])[..., 0] for x in (a, b))  # (...,V,3)
    mean_a, mean_b = centre_a.mean(-2), centre_b.mean(-2)
    from_a, from_b = centre_a - mean_a[..., None, :], centre_b - mean_b[..., None, :]
    spread_a, spread_b = (x.square().sum((-1, -2)) for x in (from_a, from_b))
    size = spread_a * spread_b
    known = size > 1e-24
    both = (from_a.mT @ from_b) / torch.where(known, size, 1.0).sqrt()[..., None, None]
    axes = (a[..., :3].mT @ b[..., :3]).mean(-3)
    rotation = nearest_rotation(axes + torch.where(known, 1.0, 0.0)[..., None, None] * both)
    along = (from_a * (from_b @ rotation.mT)).sum((-1, -2))
    scale = along / torch.where(spread_b > 1e-12, spread_b, 1.0)
    scale = torch.where(known & (scale > 1e-3), scale, 1.0)
    translation = mean_a - scale[..., None] * (rotation @ mean_b[..., None])[..., 0]
    return Similarity(*(x.to(predicted.dtype) for x in (scale, rotation, translation)))


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation R (...,3,3) that maximises tr(R^T M), differentiable in M.

    An SVD's own gradient is infinite where singular values are equal, as they are here. With
    P = R^T M, symmetric, a change of M turns R by the skew W of W P + P W = R^T dM - dM^T R.
    """
    with torch.no_grad():
        u, _, vt = torch.linalg.svd(matrix)
        sign = torch.ones_like(matrix[..., 0])
        sign[..., 2] = torch.linalg.det(u @ vt)
        rotation = (u * sign[..., None, :]) @ vt
        p, basis = torch.linalg.eigh(rotation.mT @ matrix)
        pairs = (p[..., :, None] + p[..., None, :]).clamp(min=1e-6)
    skew = rotation.mT @ matrix - matrix.mT @ rotation
    skew = basis @ ((basis.mT @ (skew - skew.detach()) @ basis) / pairs) @ basis.mT
    return rotation + rotation @ skew


@dataclass(frozen=True)
class View:
    """What target cameras see: color (B,T,N,H,W,3), depth (B,T,N,H,W), inf where nothing is."""

    color: Tensor
    depth: Tensor


def predict(
    model: torch.nn.Module, scenes: Scenes, *, half: bool = False, trunk_gradients: bool = True
) -> Prediction:
    """The model's answer; half: its trunk computes in bfloat16."""
    dtype = torch.bfloat16 if half else None
    return model(scenes.frames, scenes.rays, trunk_dtype=dtype, trunk_gradients=trunk_gradients)


def predicted_cameras(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Extrinsics (B,T,V,3,4) and intrinsics (B,T,V,3,3), fields of view kept within 10 to 120
    degrees as in `pose.decode_rig`: a model that starts from nothing may answer with none."""
    encoding = prediction.poses[-1]
    low, high = math.radians(10.0), math.radians(120.0)
    sound = torch.cat([encoding[..., :7], encoding[..., 7:].clamp(low, high)], -1)
    height, width = prediction.depth.shape[-2:]
    return decode_poses(sound, (height, width))


def captured_lenses(prediction: Prediction, scenes: Scenes, lenses: Tensor) -> Tensor:
    """Intrinsics (B,T,N,3,3) of captured cameras (B,N,3,3) for a predicted world: where the model
    sees the sources through longer lenses than they had, so must the targets be."""
    times = scenes.frames.shape[1]
    lenses = lenses[:, None].expand(-1, times, -1, -1, -1)
    if scenes.cameras_known:
        return lenses
    found = predicted_cameras(prediction)[1].detach()
    true = scenes.intrinsics[:, None].expand_as(found)
    scaled = lenses.clone()
    for i in (0, 1):
        zoom = (found[..., i, i] / true[..., i, i]).flatten(1).median(1).values
        scaled[..., i, i] = lenses[..., i, i] * zoom[:, None, None]
    return scaled


def captured_splats(
    model: Reconstructor, prediction: Prediction, scenes: Scenes, *, whole_clip: bool = False
) -> tuple[Splats, Tensor, Tensor]:
    """Gaussians (B,T,V*H*W,...) in the world of the captured cameras, which of them to draw
    (B,T,V*H*W) bool, and what is behind (B,3).

    Predicted cameras are laid over the captured ones of the same views by a similarity, and the
    Gaussians go along; lenses change instead (`captured_lenses`) and learn nothing from pictures.
    Where the cameras are known they are its own. whole_clip: one similarity for all
    timesteps, as somebody sees who looks at the result; else each has its own. Pixels that the
    model takes for sky make no Gaussians; their median colour is the background.
    """
    times = scenes.frames.shape[1]
    true = scenes.extrinsics[:, None].expand(-1, times, -1, -1, -1)
    if not scenes.cameras_known:
        extrinsics, intrinsics = predicted_cameras(prediction)
    else:
        extrinsics = true
        intrinsics = scenes.intrinsics[:, None].expand(-1, times, -1, -1, -1)
    raw = model.raw_splats(
        prediction, scenes.frames, extrinsics=extrinsics, intrinsics=intrinsics.detach()
    )
    splats = activate(raw)
    if not scenes.cameras_known and whole_clip:
        one = align(extrinsics.flatten(1, 2), true.flatten(1, 2))
        parts = (x[:, None] for x in (one.scale, one.rotation, one.translation))
        splats = Similarity(*parts).moved(splats)
    elif not scenes.cameras_known:
        splats = align(extrinsics, true).moved(splats)
    keep = torch.ones_like(splats.opacities, dtype=torch.bool)
    behind = scenes.frames.new_zeros(len(scenes.frames), 3)
    if prediction.surface is not None:
        keep = (prediction.surface >= 0).flatten(2)  # a fresh head says 0: nothing is sky yet
        colours = scenes.frames.permute(0, 1, 2, 4, 5, 3).flatten(2, 4)  # (B,T,VHW,3)
        for b in range(len(behind)):
            if not keep[b].all():
                behind[b] = colours[b][~keep[b]].median(0).values
    return splats, keep, behind


def drawing_device(device: torch.device) -> torch.device:
    """Where pictures are drawn: on the CPU too where a GPU has no gsplat, which costs time."""
    if device.type == "cuda" and importlib.util.find_spec("gsplat") is None:
        return torch.device("cpu")
    return device


def draw(
    splats: Splats, keep: Tensor, behind: Tensor, extrinsics: Tensor, intrinsics: Tensor,
    height: int, width: int,
) -> View:  # fmt: skip
    """Pictures of Gaussians (B,T,N,...) by the cameras of each sample and timestep."""
    home, place = extrinsics.device, drawing_device(extrinsics.device)
    batch, times, count = extrinsics.shape[:3]
    extrinsics, intrinsics, behind = (x.to(place) for x in (extrinsics, intrinsics, behind))
    below = extrinsics.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(batch, times, count, 1, 4)
    square = torch.cat([extrinsics, below], -2).detach()
    parts = (splats.means, splats.scales, splats.rotations, splats.opacities, splats.sh)
    colors, depths = [], []
    for b in range(batch):
        for t in range(times):
            kept = keep[b, t]
            shown = render(
                GaussianTensors(*(x[b, t][kept].to(place) for x in parts)),
                CameraTensors(square[b, t], intrinsics[b, t].detach(), width, height),
                background=behind[b], dilation=DILATION,
            )  # fmt: skip
            colors.append(shown.color)
            depths.append(shown.depth)
    shape = (batch, times, count, height, width)
    return View(
        torch.stack(colors).view(*shape, 3).to(home), torch.stack(depths).view(shape).to(home)
    )


def novel_views(
    model: Reconstructor, prediction: Prediction, scenes: Scenes, *, whole_clip: bool = False
) -> View:
    """What the targets' cameras see of a prediction's Gaussians, depth in the captured unit."""
    found = captured_splats(model, prediction, scenes, whole_clip=whole_clip)
    lenses = captured_lenses(prediction, scenes, scenes.target_intrinsics)
    aims = scenes.target_extrinsics[:, None].expand(-1, lenses.shape[1], -1, -1, -1)
    return draw(*found, aims, lenses, *scenes.frames.shape[-2:])


def perceptual_distance(lpips: str, device: torch.device | str) -> tuple[Distance, str]:
    """LPIPS with the weights of a file, or what stands in for it; and its name."""
    if lpips:
        return load_lpips(Path(lpips)).to(device), f"LPIPS (VGG) of {Path(lpips).name}"
    return gradient_distance, "mean absolute difference of gradients at 4 scales, for want of LPIPS"


def photometric_loss(
    model: Reconstructor, prediction: Prediction, scenes: Scenes, distance: Distance,
    *, perceptual: float, own: int = 0, geometry: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """MSE + perceptual * distance over all pictures (paper, section 3.2), and its parts.

    own: how many source views are targets too. geometry: weight of the losses of depth, sky and
    cameras, where the truth is known.
    """
    truth, aims, lenses = scenes.targets, scenes.target_extrinsics, scenes.target_intrinsics
    if own:
        truth = torch.cat([truth, scenes.frames[:, :, :own]], 2)
        aims = torch.cat([aims, scenes.extrinsics[:, :own]], 1)
        lenses = torch.cat([lenses, scenes.intrinsics[:, :own]], 1)
    height, width = truth.shape[-2:]
    shown = draw(
        *captured_splats(model, prediction, scenes),
        aims[:, None].expand(-1, truth.shape[1], -1, -1, -1),
        captured_lenses(prediction, scenes, lenses), height, width,
    )  # fmt: skip
    made = shown.color.permute(0, 1, 2, 5, 3, 4).flatten(0, 2)  # (BTN,3,H,W)
    wanted = truth.flatten(0, 2)
    squared = (made - wanted).square().mean()
    seen = distance(made, wanted).mean()
    loss = squared + perceptual * seen
    parts = {"mse": float(squared.detach()), "perceptual": float(seen.detach())}
    if geometry > 0 and scenes.depth is not None:
        encoded = encode_poses(scenes.extrinsics, scenes.intrinsics, (height, width))
        cameras = None if scenes.cameras_known else encoded
        extra, named = geometry_loss(prediction, scenes.depth, cameras)
        loss = loss + geometry * extra
        parts |= named
    return anchored(loss, prediction), parts


def anchored(loss: Tensor, prediction: Prediction) -> Tensor:
    """The same loss, but a function of everything that was predicted: where nothing is drawn it can
    still be differentiated, and processes that train together wait for the same gradients."""
    dense = (prediction.depth, prediction.confidence, prediction.surface, prediction.gaussians)
    for found in (*dense, *prediction.poses):
        if found is not None:
            loss = loss + (0.0 * found).nan_to_num(0.0, 0.0, 0.0).sum()
    return loss
