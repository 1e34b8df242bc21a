# SPDX-License-Identifier: Apache-2.0
"""A grid of frames to Gaussians per timestep: predicted depth fills what no one measured.

One path with captured geometry from there on (fuse_views). It never overrides known depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from viewtime.gaussians.lift import clean_depth
from viewtime.grid import FrameGrid
from viewtime.progress import Cancelled
from viewtime.reconstructor.captured import fuse_views
from viewtime.reconstructor.complete import complete_depth, fit_disparity
from viewtime.reconstructor.model import Reconstructor
from viewtime.reconstructor.pose import RigRays, decode_rig, default_camera, rig_rays
from viewtime.reconstructor.sweep import sweep_depth
from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Camera, Rig

Float32 = NDArray[np.float32]

SWEEP_SIZE = 128
"""Longer side, in pixels, at which views are made to agree."""
WINDOW = 8
"""Timesteps that attend to each other at once; longer grids go window by window."""
PREDICTED_NOISE, AGREED_NOISE, FILLED_NOISE = 0.03, 0.01, 0.005
"""Relative depth error told to the fusion: predicted depth as it is, after the sweep that makes
views agree, and where large holes are filled."""
SMALL_SHARE = 0.15
"""Up to this share of predicted pixels the depth counts as exact, so that colours are refitted."""
Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""OpenCV axes from a world whose Z is up and whose +Y is view 0's line of sight."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """What the model says of a grid, at the frames' size.

    depth (V,T,H,W) in scene units, surface (V,T,H,W) bool: not sky. rig: given or predicted.
    scale: where the unit of depth comes from: "rays" (the model was given the rig), "cameras"
    (predicted camera distances against the rig's), "guessed", or "free" without a rig.
    """

    depth: Float32
    surface: NDArray[np.bool_]
    rig: Rig
    scale: str


class Reconstruction(Iterator[Gaussians]):
    """Gaussians, one timestep after the other, in the world of `rig`.

    rig: the cameras used, given or predicted (world "view0": Z up, view 0 at the origin, looking
    along +Y). provenance: where depth and cameras come from, for the sequence's record.
    """

    def __init__(self, steps: Iterator[Gaussians], rig: Rig, provenance: dict[str, Any]) -> None:
        self._steps, self.rig, self.provenance = steps, rig, provenance

    def __next__(self) -> Gaussians:
        return next(self._steps)


def model_size(width: int, height: int, longest: int, patch: int) -> tuple[int, int]:
    """(width, height) that the model sees of frames: longer side `longest`, multiples of patch."""
    scale = longest / max(width, height)
    return (
        max(patch, patch * round(width * scale / patch)),
        max(patch, patch * round(height * scale / patch)),
    )


def predict(
    model: Reconstructor,
    frames: Float32,
    rig: Rig | None,
    *,
    should_cancel: Callable[[], bool] | None = None,
) -> Predicted:
    """Depth of every cell and, without a rig, the cameras.

    frames (V,T,3,H,W). With a rig whose cameras look at something, the model is given their rays
    and answers in scene units. Raises Cancelled.
    """
    views, times, _, height, width = frames.shape
    device = next(model.parameters()).device
    small_w, small_h = model_size(width, height, model.config.size, model.config.patch)
    small = F.interpolate(
        torch.from_numpy(np.ascontiguousarray(frames)).flatten(0, 1),
        size=(small_h, small_w),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    ).clamp(0.0, 1.0)
    small = small.view(views, times, 3, small_h, small_w).transpose(0, 1)  # (T,V,3,h,w)
    found: RigRays | None = None
    if rig is not None and model.config.rays:
        found = rig_rays(rig, small_w, small_h)
    rays = None if found is None else torch.from_numpy(found.rays)[None].to(device)
    depths, surfaces, pose = [], [], None
    with torch.no_grad():
        for first in range(0, times, WINDOW):
            if should_cancel is not None and should_cancel():
                raise Cancelled("the run was cancelled")
            window = small[first : first + WINDOW]
            answer = model(window[None].to(device), rays)
            if pose is None:
                pose = answer.poses[-1][0, 0].float().cpu().numpy()  # (V, 9)
            depths.append(answer.depth[0].float().cpu())
            surfaces.append(
                torch.ones_like(depths[-1])
                if answer.surface is None
                else answer.surface[0].float().cpu()
            )
    assert pose is not None
    unit, scale = (found.unit, "rays") if found is not None else _unit(rig, pose)
    small_depth = torch.cat(depths).transpose(0, 1) * unit  # (V,T,h,w)
    logits = torch.cat(surfaces).transpose(0, 1)
    surface = F.interpolate(logits, size=(height, width), mode="bilinear").numpy() > 0.0
    if rig is not None:
        used = rig.resized(width, height)
    elif views == 1:
        used = _upright(Rig((default_camera(width, height),), world="view0"))
    else:
        used = _upright(decode_rig(pose, width, height))
    return Predicted(_enlarged(small_depth, width, height), surface, used, scale)


def _unit(rig: Rig | None, pose: Float32) -> tuple[float, str]:
    """Scene units per unit of the model where it was not given the rig, and how that is known."""
    if rig is None:
        return 1.0, "free"
    centers = np.stack([camera.center for camera in rig.cameras])
    spread = float(np.linalg.norm(centers - centers.mean(0), axis=1).mean())
    if spread > 0.0:
        predicted = np.stack([c.center for c in decode_rig(pose, 8, 8).cameras])
        answer = float(np.linalg.norm(predicted - predicted.mean(0), axis=1).mean())
        if answer > 1e-3:
            return spread / answer, "cameras"
    # Scenes are mostly built around the world's origin.
    away = float(np.linalg.norm(centers[0]))
    return (away if away > 0.0 else 1.0), "guessed"


def agreed(predicted: Predicted, frames: Float32, t: int) -> Float32:
    """Depth (V,H,W) of timestep t on which the views agree; inf where the model sees sky.

    frames (V,T,3,H,W), those that were predicted from.
    """
    height, width = frames.shape[3:]
    small_w, small_h = model_size(width, height, min(SWEEP_SIZE, max(width, height)), 1)
    small = torch.from_numpy(np.ascontiguousarray(frames[:, t]))
    small = F.interpolate(
        small, size=(small_h, small_w), mode="bilinear", antialias=True, align_corners=False
    )
    depth = torch.from_numpy(predicted.depth[:, t, None])
    surface = torch.from_numpy(predicted.surface[:, t, None]).float()
    guess = 1.0 / F.interpolate(1.0 / depth, size=(small_h, small_w), mode="area")[:, 0]
    refined = sweep_depth(
        small.permute(0, 2, 3, 1).contiguous().numpy(),
        predicted.rig.resized(small_w, small_h).cameras,
        guess.numpy(),
        F.interpolate(surface, size=(small_h, small_w), mode="area")[:, 0].numpy() > 0.5,
    )
    full = _enlarged(torch.from_numpy(refined)[:, None], width, height)[:, 0]
    return np.where(predicted.surface[:, t], full, np.float32(np.inf))


def _enlarged(depth: torch.Tensor, width: int, height: int) -> Float32:
    """(V,T,h,w) to (V,T,height,width): linear in 1/z, but nearest where a depth edge runs."""
    inverse = 1.0 / depth
    smooth = F.interpolate(inverse, size=(height, width), mode="bilinear", align_corners=False)
    nearest = F.interpolate(inverse, size=(height, width), mode="nearest-exact")
    high = F.max_pool2d(inverse, 3, 1, 1)
    low = -F.max_pool2d(-inverse, 3, 1, 1)
    edge = F.interpolate(((high - low) > 0.1 * high).float(), size=(height, width), mode="nearest")
    return (1.0 / torch.where(edge > 0, nearest, smooth)).numpy().astype(np.float32)


def _upright(rig: Rig) -> Rig:
    """A rig in view 0's OpenCV frame, seen from a Z-up world that shares its origin."""
    turn = np.eye(4)
    turn[:3, :3] = Z_UP
    cameras = tuple(
        Camera(c.name, c.width, c.height, c.intrinsics, c.camera_from_world @ turn)
        for c in rig.cameras
    )
    return Rig(cameras, world="view0")


def completed(
    known: Float32 | None,
    predicted: Predicted,
) -> tuple[Float32, float]:
    """Depth (V,T,H,W) without nan, and the share of its pixels that were predicted."""
    if known is None:
        depth = np.where(predicted.surface, predicted.depth, np.inf).astype(np.float32)
        return depth, 1.0
    both = np.isfinite(known) & predicted.surface
    fallback = (1.0, 0.0)
    if both.any():
        every = max(1, int(both.sum()) // 20000)
        fallback = fit_disparity(predicted.depth[both][::every], known[both][::every])
    depth = np.empty_like(known)
    for v, t in np.ndindex(known.shape[:2]):
        depth[v, t] = complete_depth(
            known[v, t], predicted.depth[v, t], predicted.surface[v, t], fallback=fallback
        )
    return depth, float(np.isnan(known).mean())


def reconstruct(
    reconstructor: Reconstructor,
    grid: FrameGrid,
    rig: Rig | None,
    *,
    prior_depth: NDArray[np.floating] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Reconstruction:
    """Gaussians for every timestep of a full grid of frames.

    Args:
        grid: frames (V,T,3,H,W), all of them meant to be seen; grid.depth where it is known.
        rig: V cameras, or None: they are predicted, or a 45 degree pinhole for a single view.
        prior_depth: (V,T,H,W) planar z where grid.depth says nothing; nan in holes, inf sky.
        on_step: called with (timesteps done, timesteps).

    Returns:
        A Reconstruction: an iterator of T Gaussians, with the rig used and a provenance. Depth is
        predicted at once, and only where something is unknown; each timestep is fused when asked.

    Raises:
        ValueError: when the rig or prior_depth does not fit the grid. Cancelled.
    """
    views, times, _, height, width = grid.frames.shape
    if rig is not None and len(rig.cameras) != views:
        raise ValueError(f"reconstruct: {len(rig.cameras)} cameras for a grid of {views} views")
    if prior_depth is not None and prior_depth.shape != (views, times, height, width):
        raise ValueError(
            f"reconstruct: prior_depth {prior_depth.shape}, {(views, times, height, width)} needed"
        )
    known = None if grid.depth is None or rig is None else clean_depth(grid.depth)
    if prior_depth is not None and rig is not None:
        prior = clean_depth(prior_depth)
        known = prior if known is None else np.where(np.isnan(known), prior, known)
    if known is not None and np.isnan(known).all():
        known = None
    predicted: Predicted | None = None
    if known is not None and rig is not None and not np.isnan(known).any():
        depth, share, used = known, 0.0, rig.resized(width, height)
    else:
        predicted = predict(reconstructor, grid.frames, rig, should_cancel=should_cancel)
        depth, share = completed(known, predicted)
        used = predicted.rig
    sweep = None
    if known is None and predicted is not None and predicted.scale in ("rays", "cameras"):
        sweep = predicted
    noise = 0.0 if share <= SMALL_SHARE else FILLED_NOISE
    if known is None:
        noise = PREDICTED_NOISE if sweep is None else AGREED_NOISE
    provenance = {
        "cameras": "given" if rig is not None else "predicted" if views > 1 else "default pinhole",
        "depth": (
            "captured"
            if share == 0
            else "completed"
            if known is not None
            else "predicted"
            if sweep is None
            else "predicted, views agreed"
        ),
        "scale": predicted.scale if known is None and predicted is not None else "captured",
        "predicted_share": round(share, 4),
        "world": used.world,
    }

    def steps() -> Iterator[Gaussians]:
        for t in range(times):
            if should_cancel is not None and should_cancel():
                raise Cancelled("the run was cancelled")
            images = np.ascontiguousarray(grid.frames[:, t].transpose(0, 2, 3, 1))
            now = depth[:, t] if sweep is None else agreed(sweep, grid.frames, t)
            gaussians = fuse_views(images, now, used.cameras, depth_noise=noise)
            if on_step is not None:
                on_step(t + 1, times)
            yield gaussians

    return Reconstruction(steps(), used, provenance)
