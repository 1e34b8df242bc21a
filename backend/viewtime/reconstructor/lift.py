# SPDX-License-Identifier: Apache-2.0
"""A grid of frames to Gaussians per timestep: predicted depth fills what no one measured.

One path with captured geometry from there on (fuse_views). It never overrides known depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from viewtime.gaussians.lift import clean_depth
from viewtime.grid import FrameGrid
from viewtime.models import ModelError
from viewtime.progress import Cancelled
from viewtime.reconstructor.captured import fuse_views
from viewtime.reconstructor.complete import complete_depth, fit_disparity
from viewtime.reconstructor.lift_predict import (
    Predicted,
    Window,
    enlarged,
    model_size,
    predict,
    windows,
)
from viewtime.reconstructor.lift_splats import at_model_size, captured_unit, learned_gaussians
from viewtime.reconstructor.model import Reconstructor
from viewtime.reconstructor.sweep import sweep_depth
from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Rig

Float32 = NDArray[np.float32]

SWEEP_SIZE = 128
"""Longer side, in pixels, at which views are made to agree."""
PREDICTED_NOISE, AGREED_NOISE, FILLED_NOISE = 0.03, 0.01, 0.005
"""Relative depth error told to the fusion: predicted depth as it is, after the sweep that makes
views agree, and where large holes are filled."""
AROUND, SPACING = 3, 1 / 32
"""Where a model saw finer frames than the sweep, each pixel's depth is corrected by what the sweep
says of (2 x 3 + 1)^2 places around it, this share of the longer side apart."""
SMALL_SHARE = 0.15
"""Up to this share of predicted pixels the depth counts as exact."""


class Reconstruction(Iterator[Gaussians]):
    """Gaussians, one timestep after the other, in the world of `rig`.

    rig: the cameras used, given or predicted (world "view0": Z up, view 0 at the origin, looking
    along +Y). provenance: where depth and cameras come from, for the sequence's record.
    background: (3,) display sRGB of the sky at the first timestep, None where no sky is seen.
    """

    def __init__(
        self,
        steps: Iterator[Gaussians],
        rig: Rig,
        provenance: dict[str, Any],
        background: Float32 | None = None,
    ) -> None:
        self._steps, self.rig, self.provenance = steps, rig, provenance
        self.background = background

    def __next__(self) -> Gaussians:
        return next(self._steps)


def agreed(predicted: Predicted, frames: Float32, t: int) -> Float32:
    """Depth (V,H,W) of timestep t on which the views agree; inf where the model sees sky.

    frames (V,T,3,H,W), those that were predicted from. The sweep's depth takes the place of a
    coarse prediction. One of a model that saw more pixels than the sweep keeps its own shape and
    edges, and is brought along by the sweep's correction of the surroundings.
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
    there = F.interpolate(surface, size=(small_h, small_w), mode="area")[:, 0].numpy() > 0.5
    refined = sweep_depth(
        small.permute(0, 2, 3, 1).contiguous().numpy(),
        predicted.rig.resized(small_w, small_h).cameras,
        guess.numpy(),
        there,
    )
    if predicted.seen > SWEEP_SIZE:
        change = correction(refined / guess.numpy(), there)[:, None]
        ratio = F.interpolate(torch.from_numpy(change), size=(height, width), mode="bilinear")
        full = predicted.depth[:, t] * ratio[:, 0].numpy()
    else:
        full = enlarged(torch.from_numpy(refined)[:, None], width, height)[:, 0]
    return np.where(predicted.surface[:, t], full, np.float32(np.inf))


def correction(ratio: Float32, surface: NDArray[np.bool_]) -> Float32:
    """The median ratio (V,h,w) around each pixel, over surface (V,h,w); 1 where there is none.

    Single pixels are not to be believed: matching errs by some percent, and most at depth edges.
    """
    height, width = ratio.shape[1:]
    step = max(1, round(max(height, width) * SPACING))
    reach = AROUND * step
    known = torch.from_numpy(np.where(surface, ratio, np.float32(np.nan)))
    padded = F.pad(known, (reach,) * 4, value=float("nan"))
    places = range(0, 2 * reach + 1, step)
    near = [padded[:, y : y + height, x : x + width] for y in places for x in places]
    return torch.stack(near).nanmedian(0).values.nan_to_num(1.0).numpy()


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
    refine: bool = True,
    gaussians: str = "auto",
    memory_budget_gb: float | None = None,
    on_step: Callable[[int, int], None] | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Reconstruction:
    """Gaussians for every timestep of a full grid of frames.

    A reconstructor with a Gaussian head makes them, from captured geometry or from its own; one
    without leaves them to the analytic fusion, as does one whose config says `analytic`.

    Args:
        grid: frames (V,T,3,H,W), all of them meant to be seen; grid.depth where it is known.
        rig: V cameras, or None: they are predicted, or a 45 degree pinhole for a single view.
        prior_depth: (V,T,H,W) planar z where grid.depth says nothing; nan in holes, inf sky.
        refine: with a rig and no known depth, find the factor per view that makes views agree.
        gaussians: "learned" or "analytic", "auto" as the model has it.
        memory_budget_gb: the model computes in chunks that keep its estimated peak within it, and
            sees as many timesteps at once as it allows.
        on_step: called with (timesteps done, timesteps).

    Returns:
        A Reconstruction: an iterator of T Gaussians, with the rig used and a provenance. Without a
        Gaussian head depth is predicted at once, and only where something is unknown; with one it
        is window by window. Each timestep is made when asked for.

    Raises:
        ValueError: when the rig or prior_depth does not fit the grid. BudgetError (a ViewtimeError
        and a ValueError): when the budget is too small. ModelError: when there is no head for
        "learned". Cancelled.
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
    options: dict[str, Any] = {
        "refine": refine and known is None,
        "memory_budget_gb": memory_budget_gb,
        "should_cancel": should_cancel,
    }
    if _learns(reconstructor, gaussians):
        return _learned(reconstructor, grid.frames, rig, known, on_step, options)
    predicted: Predicted | None = None
    if known is not None and rig is not None and not np.isnan(known).any():
        depth, share, used = known, 0.0, rig.resized(width, height)
    else:
        predicted = predict(reconstructor, grid.frames, rig, **options)
        depth, share = completed(known, predicted)
        used = predicted.rig
    sweep = None
    if known is None and predicted is not None and predicted.scale not in ("free", "guessed"):
        sweep = predicted
    noise = 0.0 if share <= SMALL_SHARE else FILLED_NOISE
    if known is None:
        noise = PREDICTED_NOISE if sweep is None else AGREED_NOISE

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

    provenance = _provenance(rig, used, known, predicted, share, agreed_views=sweep is not None)
    return Reconstruction(
        steps(),
        used,
        {**provenance, "gaussians": "analytic"},
        _sky_colour(grid.frames[:, 0], _sky(depth[:, 0], known, predicted)),
    )


def _learns(model: Reconstructor, gaussians: str) -> bool:
    """Whether the model's head makes the Gaussians; see `reconstruct`."""
    head = model is not None and model.config.gaussian_head != "none"
    if gaussians == "auto":
        return head and not model.config.analytic
    if gaussians not in ("learned", "analytic"):
        raise ValueError(f"gaussians is {gaussians!r}; auto, learned or analytic is needed")
    if gaussians == "learned" and not head:
        raise ModelError("gaussians is 'learned', but this reconstructor has no Gaussian head")
    return gaussians == "learned"


def _learned(
    model: Reconstructor,
    frames: Float32,
    rig: Rig | None,
    known: Float32 | None,
    on_step: Callable[[int, int], None] | None,
    options: dict[str, Any],
) -> Reconstruction:
    """`reconstruct` with the model's Gaussian head."""
    seen = windows(model, frames, rig, **options)
    first = next(seen)
    height, width = first.predicted.depth.shape[2:]
    small = None if known is None else at_model_size(known, width, height)
    unit, scale = first.predicted.unit, first.predicted.scale
    if small is not None and scale != "rays":
        measured = captured_unit(small[:, : first.predicted.depth.shape[1]], first)
        unit = unit if measured is None else measured

    def steps() -> Iterator[Gaussians]:
        for window in chain([first], seen):
            count = window.predicted.depth.shape[1]
            now = None if small is None else small[:, window.first : window.first + count]
            depth, _ = completed(now, window.predicted)
            certain = np.zeros(depth.shape, bool) if now is None else ~np.isnan(now)
            own = unit * window.predicted.unit / first.predicted.unit  # of this call of the model
            made = learned_gaussians(model, window, depth, certain, unit=own)
            for t, gaussians in enumerate(made, window.first + 1):
                if on_step is not None:
                    on_step(t, frames.shape[1])
                yield gaussians

    share = 1.0 if small is None else float(np.isnan(small).mean())
    sky, _ = completed(None if small is None else small[:, :1], _at(first))
    provenance = _provenance(rig, first.predicted.rig, known, first.predicted, share)
    return Reconstruction(
        _cancellable(steps(), options["should_cancel"]),
        first.predicted.rig,
        {**provenance, "gaussians": f"learned ({model.config.gaussian_head})"},
        _sky_colour(
            first.frames[0, 0].float().cpu().numpy(),
            _sky(sky[:, 0], small, first.predicted),
        ),
    )


def _at(window: Window) -> Predicted:
    """A window's first timestep alone."""
    now = window.predicted
    return replace(now, depth=now.depth[:, :1], surface=now.surface[:, :1])


def _sky(depth: Float32, known: Float32 | None, predicted: Predicted | None) -> NDArray[np.bool_]:
    """Where sky is seen (V,H,W), by depth without nan (V,H,W) at the first timestep: pixels that a
    model without a surface head leaves out are none, only those are that known (V,T,H,W) has."""
    if predicted is None or predicted.sees_sky:
        return np.isinf(depth)
    return np.zeros(depth.shape, bool) if known is None else np.isinf(known[:, 0])


def _sky_colour(frames: Float32, sky: NDArray[np.bool_]) -> Float32 | None:
    """Median colour (3,) of frames (V,3,H,W) where sky (V,H,W) is; None without sky."""
    if not sky.any():
        return None
    return np.median(frames.transpose(0, 2, 3, 1)[sky], axis=0).astype(np.float32)


def _cancellable(
    steps: Iterator[Gaussians], should_cancel: Callable[[], bool] | None
) -> Iterator[Gaussians]:
    while True:
        if should_cancel is not None and should_cancel():
            raise Cancelled("the run was cancelled")
        try:
            step = next(steps)
        except StopIteration:
            return
        yield step


def _provenance(
    rig: Rig | None,
    used: Rig,
    known: Float32 | None,
    predicted: Predicted | None,
    share: float,
    *,
    agreed_views: bool = False,
) -> dict[str, Any]:
    """Where cameras, depth and scale come from, and how well predicted ones fit a given rig."""
    depth = "predicted, views agreed" if agreed_views else "predicted"
    if known is not None:
        depth = "captured" if share == 0 else "completed"
    record = {
        "cameras": (
            "given"
            if rig is not None
            else "predicted"
            if len(used.cameras) > 1
            else "default pinhole"
        ),
        "depth": depth,
        "scale": predicted.scale if known is None and predicted is not None else "captured",
        "predicted_share": round(share, 4),
        "world": used.world,
    }
    return record if predicted is None else {**record, **predicted.record}
