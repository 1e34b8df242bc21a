# SPDX-License-Identifier: Apache-2.0
"""From a Gaussian head's raw maps, depth and cameras to Gaussians, differentiably.

The cameras may be predicted or captured; the code is the same. It renders nothing.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from viewtime.reconstructor.gaussian_head import ANYSPLAT, RESIDUAL
from viewtime.reconstructor.pose_encoding import (
    matrix_to_quaternion,
    multiply_quaternions,
    unproject,
)
from viewtime_formats.gaussians import SH_C0, Gaussians

OFFSET_SHIFT = 6.0
"""Splatt3R's offsets are direction * (exp(length - 6) - exp(-6)): tiny until the head insists."""
DROP_SHARE = 0.1
"""Share of each frame's predicted pixels that go, the least confident first."""
LARGEST_LOG = 3.0
"""Log of the largest offset and standard deviation of the "residual" head, in the model's unit (the
mean distance of what is seen): 20 of them. A head that trains freely can ask for exp(100)."""


@dataclass(frozen=True)
class RawSplats:
    """Gaussians before their activations, where averaging them makes sense.

    means (...,N,3) and rotations (...,N,4) wxyz, not normalised, in the cameras' world; opacity
    (...,N), scale (...,N,3); sh (...,N,K,3); weight (...,N), the logit of a splat's say in a
    merge. kind: "residual" or "anysplat", which decides the activations.
    """

    kind: str
    means: Tensor
    opacity: Tensor
    scale: Tensor
    rotation: Tensor
    sh: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Splats:
    """Gaussians as tensors: means (...,N,3), scales (...,N,3) linear, rotations (...,N,4) unit
    wxyz, opacities (...,N) in [0,1], sh (...,N,K,3)."""

    means: Tensor
    scales: Tensor
    rotations: Tensor
    opacities: Tensor
    sh: Tensor


def make_splats(
    kind: str,
    raw: Tensor,
    depth: Tensor,
    extrinsics: Tensor,
    intrinsics: Tensor,
    images: Tensor,
    *,
    confidence: Tensor | None = None,
    unit: Tensor | float = 1.0,
) -> Splats:
    """One Gaussian per pixel: `activate(raw_splats(...))`, N = V*H*W. Differentiable."""
    return activate(
        raw_splats(
            kind, raw, depth, extrinsics, intrinsics, images, confidence=confidence, unit=unit
        )
    )


def raw_splats(
    kind: str,
    raw: Tensor,
    depth: Tensor,
    extrinsics: Tensor,
    intrinsics: Tensor,
    images: Tensor,
    *,
    confidence: Tensor | None = None,
    unit: Tensor | float = 1.0,
) -> RawSplats:
    """Raw maps (B,T,V,C,H,W) of a head as unactivated Gaussians (B,T,V*H*W,...).

    Args:
        depth: (B,T,V,H,W) planar, in units of the cameras' world.
        extrinsics: (B,T,V,3,4) camera from world, OpenCV; intrinsics (B,T,V,3,3) in pixels.
        images: (B,T,V,3,H,W) display sRGB in [0,1].
        confidence: (B,T,V,H,W) >= 1 of the depth: the say in a merge of the "residual" head,
            whose channels hold none.
        unit: the length, in the world, of one unit of the model, a number or (B,): captured
            cameras have their own scale. The "residual" head alone uses it.

    The "residual" head (paper, section 3.2) speaks of each camera's frame; its offset and
    rotation are turned into the world, and depth is unprojected through pixel centres. The
    "anysplat" head speaks of view 0's frame, so cameras must be in that frame, decoded with
    tangent_shift 1e-3, and depth goes through pixel corners, as in its training.
    """
    if kind == "residual":
        return _residual(raw, depth, extrinsics, intrinsics, images, confidence, unit)
    if kind != "anysplat":
        raise ValueError(f"Gaussian head {kind!r}; 'residual' or 'anysplat' is needed")
    parts = _split(raw, ANYSPLAT)
    points = unproject(depth, extrinsics, intrinsics, pixel=0.0).flatten(2, 4)
    sh = parts["sh"].unflatten(-1, (3, 25)).transpose(-1, -2)  # (B,T,N,25,3)
    degrees = torch.tensor([0] + [1] * 3 + [2] * 5 + [3] * 7 + [4] * 9, device=sh.device)
    damping = torch.where(degrees > 0, 0.1 * 0.25**degrees, 1.0)
    x, y, z, w = parts["rotation"].unbind(-1)
    return RawSplats(
        kind,
        points,
        parts["opacity"][..., 0],
        parts["scale"],
        torch.stack([w, x, y, z], dim=-1),
        sh * damping[:, None],
        parts["weight"][..., 0],
    )


def _residual(
    raw: Tensor,
    depth: Tensor,
    extrinsics: Tensor,
    intrinsics: Tensor,
    images: Tensor,
    confidence: Tensor | None,
    unit: Tensor | float,
) -> RawSplats:
    parts = _split(raw, RESIDUAL)
    unit = torch.as_tensor(unit, device=raw.device, dtype=raw.dtype).reshape(-1, 1, 1, 1)
    pixels = depth.shape[-2] * depth.shape[-1]
    turn = extrinsics[..., :3, :3].transpose(-1, -2)  # world from camera, (B,T,V,3,3)
    length = parts["offset"].norm(dim=-1, keepdim=True)
    direction = parts["offset"] / length.clamp(min=1e-8)
    grown = (length - OFFSET_SHIFT).clamp(max=LARGEST_LOG).exp()
    offset = direction * (grown - math.exp(-OFFSET_SHIFT))
    offset = offset.unflatten(2, (-1, pixels)) @ turn.transpose(-1, -2)  # (B,T,V,HW,3)
    points = unproject(depth, extrinsics, intrinsics).flatten(2, 4)
    turning = matrix_to_quaternion(turn)[..., None, :]  # (B,T,V,1,4)
    local = parts["rotation"].unflatten(2, (-1, pixels))
    x, y, z, w = multiply_quaternions(turning.expand_as(local), local).flatten(2, 3).unbind(-1)
    colours = images.permute(0, 1, 2, 4, 5, 3).flatten(2, 4)
    sh = (colours - 0.5) / SH_C0 + parts["colour"]
    weight = torch.zeros_like(depth) if confidence is None else confidence.log()
    return RawSplats(
        "residual",
        points + unit * offset.flatten(2, 3),
        parts["opacity"][..., 0],
        parts["scale"].clamp(max=LARGEST_LOG) + unit.log(),
        torch.stack([w, x, y, z], dim=-1),
        sh[..., None, :],
        weight.flatten(2),
    )


def _split(raw: Tensor, channels: dict[str, int]) -> dict[str, Tensor]:
    """Maps (B,T,V,C,H,W) as named parts (B,T,V*H*W,c)."""
    total = sum(channels.values())
    if raw.shape[3] != total:
        raise ValueError(f"raw maps have {raw.shape[3]} channels; {total} are needed")
    flat = raw.permute(0, 1, 2, 4, 5, 3).flatten(2, 4)  # (B,T,N,C)
    return dict(zip(channels, flat.split(list(channels.values()), dim=-1)))


def activate(raw: RawSplats) -> Splats:
    """What renderers draw. Scales: exp, or AnySplat's 0.001 softplus up to 0.3."""
    if raw.kind == "anysplat":
        scales = (0.001 * F.softplus(raw.scale)).clamp(max=0.3)
    else:
        scales = raw.scale.exp()
    rotations = raw.rotation / (raw.rotation.norm(dim=-1, keepdim=True) + 1e-8)
    return Splats(raw.means, scales, rotations, raw.opacity.sigmoid(), raw.sh)


def confident(confidence: Tensor, drop_share: float = DROP_SHARE) -> Tensor:
    """Which pixels of (B,T,V,H,W) to keep, as (B,T,V*H*W): all but the least confident share of
    each frame. Raises ValueError for a share outside [0, 1)."""
    if not 0.0 <= drop_share < 1.0:
        raise ValueError(f"drop_share is {drop_share}; 0 up to but not 1 is needed")
    flat = confidence.flatten(3)
    drop = int(drop_share * flat.shape[-1])
    if drop == 0:
        return torch.ones_like(flat, dtype=torch.bool).flatten(2)
    least = flat.argsort(dim=-1, stable=True)[..., :drop]
    keep = torch.ones_like(flat, dtype=torch.bool).scatter(-1, least, False)
    return keep.flatten(2)


def select(splats: RawSplats, batch: int, time: int, keep: Tensor | None = None) -> RawSplats:
    """One sample's timestep, (N,...), of (B,T,N,...); keep (B,T,N) bool leaves some out."""
    mask = slice(None) if keep is None else keep[batch, time]
    parts = {
        field.name: getattr(splats, field.name)[batch, time][mask]
        for field in dataclasses.fields(splats)
        if field.name != "kind"
    }
    return RawSplats(splats.kind, **parts)


def merge_voxels(splats: RawSplats, size: float) -> RawSplats:
    """One Gaussian per voxel of side `size` for Gaussians (N,...) of one timestep.

    Means and unactivated values are averaged with softmax(weight), as AnySplat does; voxels are
    centred on multiples of the side. Differentiable. Raises ValueError for a size of 0 or less.
    """
    if not size > 0.0:
        raise ValueError(f"voxel size is {size}; more than 0 is needed")
    cells = (splats.means.detach() / size).round().long()
    found, which = torch.unique(cells, dim=0, return_inverse=True)
    count, weight = len(found), splats.weight
    low = torch.full((count,), -torch.inf, dtype=weight.dtype, device=weight.device)
    largest = low.scatter_reduce(0, which, weight.detach(), "amax")[which]
    share = torch.exp(weight - largest)
    total = torch.zeros_like(low).index_add(0, which, share)
    share = share / (total[which] + 1e-6)
    rotation = splats.rotation
    if splats.kind != "anysplat":  # q and -q are one rotation: take each voxel's heaviest's side
        numbers = torch.arange(len(which), device=which.device)
        heaviest = torch.where(weight.detach() == largest, numbers, len(which))
        first = torch.full((count,), len(which), device=which.device)
        first = first.scatter_reduce(0, which, heaviest, "amin")[which]
        same = (rotation * rotation.detach()[first]).sum(-1, keepdim=True) >= 0
        rotation = torch.where(same, rotation, -rotation)

    def mean(values: Tensor) -> Tensor:
        shares = share.view(-1, *(1,) * (values.ndim - 1))
        empty = values.new_zeros((count, *values.shape[1:]))
        return empty.index_add(0, which, values * shares)

    return RawSplats(
        splats.kind,
        mean(splats.means),
        mean(splats.opacity),
        mean(splats.scale),
        mean(rotation),
        mean(splats.sh),
        total.log() + low.scatter_reduce(0, which, weight.detach(), "amax"),
    )


def to_gaussians(splats: Splats, *, min_opacity: float = 0.0) -> Gaussians:
    """Splats (N,...) of one timestep as arrays for files and renderers; those that are not
    finite, have no rotation or are fainter than min_opacity are left out."""
    flat = torch.cat([splats.means, splats.scales, splats.rotations, splats.sh.flatten(1)], dim=1)
    sound = flat.isfinite().all(1) & (splats.opacities >= min_opacity)
    sound &= splats.rotations.norm(dim=-1) > 0.5

    def array(values: Tensor):  # type: ignore[no-untyped-def]
        return values[sound].detach().float().cpu().contiguous().numpy()

    rotations = F.normalize(splats.rotations, dim=-1)
    return Gaussians(
        array(splats.means),
        array(splats.scales),
        array(rotations),
        array(splats.opacities),
        array(splats.sh),
    )
