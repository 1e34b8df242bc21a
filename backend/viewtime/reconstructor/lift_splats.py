# SPDX-License-Identifier: Apache-2.0
"""Gaussians by the learned head, from predicted or captured geometry through the same lines.

Both are told to the head in its own terms: view 0's frame, and the model's unit of length.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewtime.gaussians.ops import transform
from viewtime.reconstructor.lift_predict import Window
from viewtime.reconstructor.model import Reconstructor
from viewtime.reconstructor.splats import (
    DROP_SHARE,
    activate,
    confident,
    merge_voxels,
    select,
    to_gaussians,
)
from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Rig
from viewtime_formats.sh import MAX_DEGREE

Float32 = NDArray[np.float32]

FAINT = 1.0 / 255.0
"""Opacity under which a Gaussian never shows."""


def captured_unit(known: Float32, window: Window) -> float | None:
    """Scene units per unit of the model, by known depth (V,T,h,w) against what was predicted;
    None where they share no pixel."""
    both = np.isfinite(known) & window.predicted.surface
    if not both.any():
        return None
    own = window.answer.depth[0].float().cpu().numpy().transpose(1, 0, 2, 3)
    return float(np.median(known[both] / own[both]))


def cameras_in_view0(rig: Rig, unit: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Camera from view 0 (1,1,V,3,4), lengths in units, and intrinsics (1,1,V,3,3) in pixels."""
    reference = rig.cameras[0].world_from_camera
    poses = np.stack([c.camera_from_world @ reference for c in rig.cameras])
    poses[..., 3] /= unit
    intrinsics = np.stack([c.intrinsics for c in rig.cameras])
    return tuple(  # type: ignore[return-value]
        torch.from_numpy(x[None, None]).to(device, torch.float32) for x in (poses, intrinsics)
    )


def learned_gaussians(
    model: Reconstructor,
    window: Window,
    depth: Float32,
    certain: NDArray[np.bool_],
    *,
    unit: float,
    drop_share: float = DROP_SHARE,
) -> Iterator[Gaussians]:
    """One Gaussians per timestep of a window, in the world of window.predicted.rig.

    Args:
        depth: (V,T,h,w) planar z in scene units at the model's size, captured or predicted; inf
            where nothing is. certain: (V,T,h,w) bool, depth that was captured and is kept
            however confident the prediction is.
        unit: scene units per unit of the model.

    Least confident predictions go; with config.voxel_size the rest is merged by voxels of that
    side, in the model's unit. Harmonics above degree 3 are dropped: renderers and files end there
    (AnySplat damps its fourth band to 0.0004 of what its head says).
    """
    rig, device = window.predicted.rig, window.frames.device
    height, width = depth.shape[2:]
    surface = np.isfinite(depth)
    # What is nothing must still be a number until it is left out.
    z = np.where(surface, depth / unit, 1.0).astype(np.float32).swapaxes(0, 1)[None]  # (1,T,V,h,w)
    extrinsics, intrinsics = cameras_in_view0(rig.resized(width, height), unit, device)
    times = z.shape[1]
    to_world = rig.cameras[0].world_from_camera
    to_world[:3, :3] *= unit
    with torch.no_grad():
        raw = model.raw_splats(
            window.answer,
            window.frames,
            depth=torch.from_numpy(z).to(device),
            extrinsics=extrinsics.expand(1, times, -1, -1, -1),
            intrinsics=intrinsics.expand(1, times, -1, -1, -1),
        )
        keep = confident(window.answer.confidence, drop_share)
        sure, there = (
            torch.from_numpy(np.ascontiguousarray(x.swapaxes(0, 1))[None]).to(device).flatten(2)
            for x in (certain, surface)
        )
        keep = (keep | sure) & there
    # Whoever takes the Gaussians goes on between two yields: no gradient mode may be left to them.
    for t in range(times):
        with torch.no_grad():
            found = select(raw, 0, t, keep)
            if model.config.voxel_size > 0.0 and len(found.means):
                found = merge_voxels(found, model.config.voxel_size)
            gaussians = to_gaussians(activate(found), min_opacity=FAINT)
        gaussians.sh = np.ascontiguousarray(gaussians.sh[:, : (MAX_DEGREE + 1) ** 2])
        yield transform(gaussians, to_world)


def at_model_size(known: Float32, width: int, height: int) -> Float32:
    """Depth (V,T,H,W) at the pixels nearest to those of width x height; never averaged."""
    rows = ((np.arange(height) + 0.5) * known.shape[2] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * known.shape[3] / width).astype(int)
    return np.ascontiguousarray(known[:, :, rows[:, None], columns])
