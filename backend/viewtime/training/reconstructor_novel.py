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
from viewtime.reconstructor.pose_encoding import decode_poses, encode_poses
from viewtime.reconstructor.splats import Splats, activate
from viewtime.training.reconstructor_loss import geometry_loss
from viewtime.training.reconstructor_scenes import Scenes

DILATION = 0.3
"""px^2 added to screen variances, as viewers of splats do."""
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Similarity:
    """x_a = scale * rotation @ x_b + translation; scale (...), rotation (...,3,3), (...,3)."""

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    def moved(self, extrinsics: Tensor) -> Tensor:
        """Cameras (...,N,3,4) from world b as cameras from world a, lengths in a's unit."""
        turned = extrinsics[..., :3] @ self.rotation[..., None, :, :].mT
        place = self.scale[..., None, None] * extrinsics[..., 3]
        place = place - (turned @ self.translation[..., None, :, None])[..., 0]
        return torch.cat([turned, place[..., None]], -1)


@torch.no_grad()
def align(predicted: Tensor, captured: Tensor) -> Similarity:
    """The similarity from captured cameras' world to predicted ones', least squares in float64.

    predicted, captured: (...,V,3,4) camera from world, the same V cameras. The rotation is fitted
    to the cameras' orientations and centres alike, so that cameras on a line, or two, are enough;
    scale and translation to the centres (Umeyama). Where centres say nothing, the scale is 1.
    The same fit as `reconstructor.align`, which looks for outliers and refuses what is degenerate;
    this one is for batches and always answers, whatever an untrained model says.
    """
    a, b = predicted.double(), captured.double()
    centre_a, centre_b = (-(x[..., :3].mT @ x[..., 3:])[..., 0] for x in (a, b))  # (...,V,3)
    mean_a, mean_b = centre_a.mean(-2), centre_b.mean(-2)
    from_a, from_b = centre_a - mean_a[..., None, :], centre_b - mean_b[..., None, :]
    spread_a, spread_b = (x.square().sum((-1, -2)) for x in (from_a, from_b))
    size = (spread_a * spread_b).sqrt()
    known = size > 1e-12
    both = (from_a.mT @ from_b) / torch.where(known, size, 1.0)[..., None, None]
    axes = (a[..., :3].mT @ b[..., :3]).mean(-3)
    u, _, vt = torch.linalg.svd(axes + torch.where(known, 1.0, 0.0)[..., None, None] * both)
    sign = torch.ones_like(mean_a)
    sign[..., 2] = torch.linalg.det(u @ vt)
    rotation = (u * sign[..., None, :]) @ vt
    along = (from_a * (from_b @ rotation.mT)).sum((-1, -2))
    scale = along / torch.where(spread_b > 1e-12, spread_b, 1.0)
    scale = torch.where(known & (scale > 1e-3), scale, 1.0)
    translation = mean_a - scale[..., None] * (rotation @ mean_b[..., None])[..., 0]
    return Similarity(*(x.to(predicted.dtype) for x in (scale, rotation, translation)))


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


def source_cameras(prediction: Prediction, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Extrinsics (B,T,V,3,4) and intrinsics (B,T,V,3,3) that splats are made with: the true ones
    where the model was given them, else the predicted ones."""
    if scenes.rays is None:
        return predicted_cameras(prediction)
    times = scenes.frames.shape[1]
    return tuple(  # type: ignore[return-value]
        x[:, None].expand(-1, times, *x.shape[1:]) for x in (scenes.extrinsics, scenes.intrinsics)
    )


def target_cameras(
    prediction: Prediction, scenes: Scenes, *, whole_clip: bool = False
) -> tuple[Tensor, Tensor]:
    """Where the captured target cameras are in the predicted world: (B,T,N,3,4), (B,T,N,3,3).

    The similarity that takes the captured source cameras to the predicted ones takes the targets
    along, and focal lengths change as the sources' did. whole_clip: one similarity for all
    timesteps, as somebody sees who looks at the result; else each has its own.
    """
    times, views = scenes.frames.shape[1:3]
    aims = scenes.target_extrinsics[:, None].expand(-1, times, -1, -1, -1)
    lenses = scenes.target_intrinsics[:, None].expand(-1, times, -1, -1, -1)
    if scenes.rays is not None:
        return aims, lenses
    found, found_lenses = (x.detach() for x in predicted_cameras(prediction))
    true = scenes.extrinsics[:, None].expand(-1, times, -1, -1, -1)
    true_lenses = scenes.intrinsics[:, None].expand_as(found_lenses)
    focal = torch.stack([found_lenses[..., i, i] / true_lenses[..., i, i] for i in (0, 1)], -1)
    if whole_clip:
        similarity = align(found.flatten(1, 2), true.flatten(1, 2))
        similarity = Similarity(
            *(
                x[:, None].expand(-1, times, *x.shape[1:])
                for x in (similarity.scale, similarity.rotation, similarity.translation)
            )
        )
        zoom = focal.flatten(1, 2).median(1).values[:, None].expand(-1, times, -1)
    else:
        similarity = align(found, true)
        zoom = focal.median(2).values  # (B,T,2)
    scaled = lenses.clone()
    for i in (0, 1):
        scaled[..., i, i] = lenses[..., i, i] * zoom[:, :, None, i]
    return similarity.moved(aims), scaled


def splats_of(
    model: Reconstructor, prediction: Prediction, scenes: Scenes
) -> tuple[Splats, Tensor, Tensor]:
    """Gaussians (B,T,V*H*W,...), which of them to draw (B,T,V*H*W) bool, and what is behind (B,3).

    Pixels that the model takes for sky make no Gaussians; their median colour is the background.
    """
    extrinsics, intrinsics = source_cameras(prediction, scenes)
    raw = model.raw_splats(prediction, scenes.frames, extrinsics=extrinsics, intrinsics=intrinsics)
    splats = activate(raw)
    batch = len(scenes.frames)
    keep = torch.ones_like(splats.opacities, dtype=torch.bool)
    behind = scenes.frames.new_zeros(batch, 3)
    if prediction.surface is not None:
        keep = (prediction.surface >= 0).flatten(2)  # a fresh head says 0: nothing is sky yet
        colours = scenes.frames.permute(0, 1, 2, 4, 5, 3).flatten(2, 4)  # (B,T,VHW,3)
        for b in range(batch):
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
    """What the targets' cameras see of a prediction's Gaussians."""
    extrinsics, intrinsics = target_cameras(prediction, scenes, whole_clip=whole_clip)
    height, width = scenes.frames.shape[-2:]
    return draw(*splats_of(model, prediction, scenes), extrinsics, intrinsics, height, width)


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

    own: how many source views are targets too, by the cameras their splats were made with.
    geometry: weight of the losses of depth, sky and cameras, where the truth is known.
    """
    extrinsics, intrinsics = target_cameras(prediction, scenes)
    truth = scenes.targets
    if own:
        mine = source_cameras(prediction, scenes)
        extrinsics = torch.cat([extrinsics, mine[0][:, :, :own].detach()], 2)
        intrinsics = torch.cat([intrinsics, mine[1][:, :, :own].detach()], 2)
        truth = torch.cat([truth, scenes.frames[:, :, :own]], 2)
    height, width = truth.shape[-2:]
    splats, keep, behind = splats_of(model, prediction, scenes)
    shown = draw(splats, keep, behind, extrinsics, intrinsics, height, width)
    made = shown.color.permute(0, 1, 2, 5, 3, 4).flatten(0, 2)  # (BTN,3,H,W)
    wanted = truth.flatten(0, 2)
    squared = (made - wanted).square().mean()
    seen = distance(made, wanted).mean()
    # The last term is 0: where nothing is drawn the loss still has something to differentiate.
    loss = squared + perceptual * seen + 0.0 * splats.opacities.sum()
    parts = {"mse": float(squared.detach()), "perceptual": float(seen.detach())}
    if geometry > 0 and scenes.depth is not None:
        encoded = encode_poses(scenes.extrinsics, scenes.intrinsics, (height, width))
        cameras = encoded if scenes.rays is None else None
        extra, named = geometry_loss(prediction, scenes.depth, cameras)
        loss = loss + geometry * extra
        parts |= named
    return loss, parts
