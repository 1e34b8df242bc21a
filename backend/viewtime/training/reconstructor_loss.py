# SPDX-License-Identifier: Apache-2.0
"""What the reconstructor is trained for: log depth with confidence, sky, and camera encodings.

Functions of tensors only; no data and no optimiser.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from viewtime.reconstructor.model import Prediction

FAR = 20.0
"""Depth in the model's unit from which on more distance is not asked for."""


def depth_loss(prediction: Prediction, target: Tensor, *, alpha: float = 0.2) -> Tensor:
    """|log depth error| weighted by confidence, which costs alpha log, and the same for slopes.

    target (B,T,V,H,W) in the model's unit, inf for sky, which is left out.
    """
    seen = torch.isfinite(target)
    wanted = torch.where(seen, target, torch.ones_like(target)).clamp(max=FAR).log()
    error = prediction.depth.float().log() - wanted
    confidence = prediction.confidence.float()
    count = seen.sum().clamp(min=1)
    loss = ((confidence * error.abs() - alpha * confidence.log()) * seen).sum() / count
    for step in (1, 2, 4):
        coarse, mask = error[..., ::step, ::step], seen[..., ::step, ::step]
        for axis in (-1, -2):
            both = mask.narrow(axis, 1, mask.shape[axis] - 1) & mask.narrow(
                axis, 0, mask.shape[axis] - 1
            )
            slope = coarse.diff(dim=axis).abs() * both
            loss = loss + 0.3 * slope.sum() / both.sum().clamp(min=1)
    return loss


def surface_loss(prediction: Prediction, target: Tensor) -> Tensor:
    """Cross-entropy of the surface logit against "the target's depth is finite"."""
    if prediction.surface is None:
        return target.new_zeros(())
    return F.binary_cross_entropy_with_logits(
        prediction.surface.float(), torch.isfinite(target).float()
    )


def camera_loss(prediction: Prediction, target: Tensor, *, gamma: float = 0.6) -> Tensor:
    """Mean absolute error of every round's encoding, later rounds more. target (B,V,9): cameras
    stand still, so every timestep's answer (B,T,V,9) is held against the same."""
    loss = target.new_zeros(())
    rounds = len(prediction.poses)
    for i, pose in enumerate(prediction.poses):
        loss = loss + gamma ** (rounds - 1 - i) * (pose.float() - target[:, None]).abs().mean()
    return loss


def geometry_loss(
    prediction: Prediction, depth: Tensor, cameras: Tensor | None
) -> tuple[Tensor, dict[str, float]]:
    """Depth, sky and (unless None: they were given) cameras (B,V,9) together, and the parts."""
    by_depth = depth_loss(prediction, depth)
    by_surface = surface_loss(prediction, depth)
    loss = by_depth + 0.3 * by_surface
    parts = {"depth": float(by_depth.detach()), "sky": float(by_surface.detach())}
    if cameras is not None:
        by_camera = camera_loss(prediction, cameras)
        loss = loss + by_camera
        parts["camera"] = float(by_camera.detach())
    return loss, parts


def absolute_relative_error(depth: Tensor, target: Tensor) -> float:
    """Mean of |s z - z*| / z* over pixels that see something nearer than FAR units.

    One scale s, the median ratio, aligns each sample's whole grid (B,T,V,H,W).
    """
    errors = []
    for z, wanted in zip(depth.float(), target.float()):
        seen = torch.isfinite(wanted) & (wanted < FAR)
        if int(seen.sum()) == 0:
            continue
        z, wanted = z[seen], wanted[seen]
        errors.append(float(((wanted / z).median() * z - wanted).abs().div(wanted).mean()))
    return sum(errors) / max(len(errors), 1)
