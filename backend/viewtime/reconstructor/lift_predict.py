# SPDX-License-Identifier: Apache-2.0
"""What the model says of a grid of frames, window by window, in a rig's own scale.

Cameras, scale and the factors per view are settled on the first window and stay; later windows
are brought to its scale. It makes no Gaussians and never changes a given rig.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from viewtime.progress import Cancelled
from viewtime.reconstructor.align import AlignmentError, align_cameras
from viewtime.reconstructor.align_depth import refine_view_scales
from viewtime.reconstructor.memory import Shape, fitting_times
from viewtime.reconstructor.model import ANYSPLAT_TANGENT, Prediction, Reconstructor
from viewtime.reconstructor.pose import RigRays, decode_rig, default_camera, rig_rays
from viewtime.reconstructor.splats import confident
from viewtime_formats.errors import ViewtimeError
from viewtime_formats.rig import Camera, Rig

Float32 = NDArray[np.float32]

WINDOW, WINDOW_GB = 8, 8.0
"""Timesteps attend to each other, and share cameras, within a window: as many of them as fit in the
memory budget. Without one it is as many as take WINDOW_GB by the estimate, or WINDOW of them."""
REFINE_SIZE, REFINE_TIMES = 96, 2
"""Longer side in pixels, and timesteps, at which the factors per view are found."""
Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""OpenCV axes from a world whose Z is up and whose +Y is view 0's line of sight."""


class BudgetError(ViewtimeError, ValueError):
    """A memory budget that the model cannot keep; the message says what would do."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """What the model says of a grid or of a window of its times, at one size.

    depth (V,T,H,W) in scene units, surface (V,T,H,W) bool: not sky, or, where sees_sky is False
    since the model has no such head, not among the least confident. rig: given or predicted, at
    the frames' size. unit: scene units per unit of the model. scale: where it comes from: "rays"
    (the model was given the rig), "cameras" (predicted cameras laid over the rig), "distances"
    (those cameras do not fit, but have distances), "guessed", or "free" without a rig. record:
    residuals of the alignment and factors per view, for the provenance. seen: longer side, in
    pixels, of the frames as the model saw them; 0 is not known.
    """

    depth: Float32
    surface: NDArray[np.bool_]
    rig: Rig
    scale: str
    unit: float = 1.0
    record: dict[str, Any] = field(default_factory=dict)
    sees_sky: bool = True
    seen: int = 0


@dataclass(frozen=True, eq=False)
class Window:
    """Timesteps first, first + 1, ... as the model saw them: its answer, frames (1,T,V,3,h,w) on
    its device, and what that means at that size. Windows do not overlap."""

    first: int
    frames: Tensor
    answer: Prediction
    predicted: Predicted


@dataclass(frozen=True, eq=False)
class _Settled:
    """What the first window decides. factors (V,): scene units per unit of each view's depth; they
    and unit follow where a later call of the model has another unit."""

    rig: Rig
    unit: float
    scale: str
    factors: NDArray[np.float64]
    record: dict[str, Any]


def model_size(width: int, height: int, longest: int, patch: int) -> tuple[int, int]:
    """(width, height) that the model sees of frames: longer side `longest`, multiples of patch."""
    scale = longest / max(width, height)
    return (
        max(patch, patch * round(width * scale / patch)),
        max(patch, patch * round(height * scale / patch)),
    )


def windows(
    model: Reconstructor,
    frames: Float32,
    rig: Rig | None,
    *,
    refine: bool = True,
    memory_budget_gb: float | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Iterator[Window]:
    """The model's answers for frames (V,T,3,H,W), as many timesteps at a time as fit, when asked.

    With a rig whose cameras look at something a model that takes rays is given them. Without rays
    each call of the model has a unit of its own: each window then sees the last timestep of the
    one before again, and its depth is brought to what was said there. refine: look for the factor
    per view with which the views agree (see `align_depth`). On a GPU the trunk computes in
    bfloat16. memory_budget_gb bounds the estimated peak of each window and decides how long
    windows are. Raises Cancelled, and BudgetError for a budget that cannot be kept.
    """
    views, times, _, height, width = frames.shape
    device = next(model.parameters()).device
    size = model_size(width, height, model.config.size, model.config.patch)
    found: RigRays | None = None
    if rig is not None and model.config.rays:
        found = rig_rays(rig, *size)
    rays = None if found is None else torch.from_numpy(found.rays)[None].to(device)
    repeat = 1 if found is None else 0
    fitting = _fitting(model, Shape(1, times, views, size[1], size[0]), memory_budget_gb)
    settled: _Settled | None = None
    last: Predicted | None = None
    for first, end in spans(times, max(fitting, min(times, 1 + repeat)), repeat):
        if should_cancel is not None and should_cancel():
            raise Cancelled("the run was cancelled")
        small = _at_size(frames[:, first:end], *size)
        with torch.no_grad():
            given = small.to(device)
            answer = _answer(model, given, rays, memory_budget_gb)
        depth = answer.depth[0].float().cpu().numpy().transpose(1, 0, 2, 3)  # (V,T,h,w)
        surface = (_surface(answer) > 0.0).numpy()
        if settled is None:
            pose = answer.poses[-1][0, 0].float().cpu().numpy()  # (V, 9)
            settled = _settle(model, pose, rig, found, (width, height))
            if refine and rig is not None:
                settled = _refined(settled, depth, surface, small[0])
        elif repeat and last is not None:
            settled = _rescaled(settled, last, depth[:, 0], surface[:, 0])
            first, given, answer = first + 1, given[:, 1:], _without_first(answer)
            depth, surface = depth[:, 1:], surface[:, 1:]
        last = Predicted(
            depth * settled.factors.astype(np.float32)[:, None, None, None],
            surface,
            settled.rig,
            settled.scale,
            settled.unit,
            settled.record,
            sees_sky=answer.surface is not None,
            seen=max(size),
        )
        yield Window(first, given, answer, last)


def spans(times: int, longest: int, repeat: int) -> list[tuple[int, int]]:
    """(first, end) of windows over all times, of even length and none above longest; each begins
    with the last `repeat` timesteps of the one before."""
    fresh = times - repeat
    count = max(1, -(-fresh // (longest - repeat))) if longest > repeat else 1
    return [(fresh * n // count, repeat + fresh * (n + 1) // count) for n in range(count)]


def _fitting(model: Reconstructor, shape: Shape, budget_gb: float | None) -> int:
    """How many timesteps of shape go into one window; see WINDOW."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    half = next(model.parameters()).device.type == "cuda"
    if budget_gb is not None:
        return fitting_times(model.config, shape, budget_gb, weights, half=half)
    usual = fitting_times(model.config, shape, WINDOW_GB, weights, half=half, chunked=False)
    return min(shape.times, max(usual, WINDOW))


def _at_size(frames: Float32, width: int, height: int) -> Tensor:
    """Frames (V,T,3,H,W) as the model takes them, (1,T,V,3,height,width)."""
    views = len(frames)
    small = F.interpolate(
        torch.from_numpy(np.ascontiguousarray(frames)).flatten(0, 1),
        size=(height, width),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    ).clamp(0.0, 1.0)
    return small.view(views, -1, 3, height, width).transpose(0, 1)[None]


def _rescaled(
    settled: _Settled, last: Predicted, depth: Float32, surface: NDArray[np.bool_]
) -> _Settled:
    """What was settled in the unit of a later call, whose depth (V,h,w) and surface (V,h,w) are of
    the timestep that `last` ends with: by the median ratio of the two depths."""
    both = last.surface[:, -1] & surface
    if not both.any():
        both = np.ones_like(both)
    now = depth * settled.factors.astype(np.float32)[:, None, None]
    ratio = float(np.median(last.depth[:, -1][both] / now[both]))
    return replace(settled, factors=settled.factors * ratio, unit=settled.unit * ratio)


def _without_first(answer: Prediction) -> Prediction:
    """The answer without its first timestep."""
    parts = {f.name: getattr(answer, f.name) for f in fields(answer) if f.name != "poses"}
    rest: dict[str, Any] = {n: None if x is None else x[:, 1:] for n, x in parts.items()}
    return replace(answer, poses=[pose[:, 1:] for pose in answer.poses], **rest)


def predict(
    model: Reconstructor,
    frames: Float32,
    rig: Rig | None,
    *,
    refine: bool = True,
    memory_budget_gb: float | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Predicted:
    """Depth of every cell at the frames' size and, without a rig, the cameras.

    frames (V,T,3,H,W); the rest as `windows`.
    """
    height, width = frames.shape[3:]
    depths, logits, last = [], [], None
    for window in windows(
        model,
        frames,
        rig,
        refine=refine,
        memory_budget_gb=memory_budget_gb,
        should_cancel=should_cancel,
    ):
        last = window.predicted
        depths.append(torch.from_numpy(last.depth))
        logits.append(_surface(window.answer))
    assert last is not None
    every = torch.cat(logits, 1)
    surface = F.interpolate(every, size=(height, width), mode="bilinear").numpy() > 0.0
    return replace(last, depth=enlarged(torch.cat(depths, 1), width, height), surface=surface)


def _surface(answer: Prediction) -> Tensor:
    """(V,T,h,w), more than 0 where something is: the head's logits, or, of a model that cannot tell
    what is sky, 1 and for each frame's least confident pixels -1."""
    found = answer.surface
    if found is None:
        keep = confident(answer.confidence).view(answer.confidence.shape)
        found = 2.0 * keep.float() - 1.0
    return found[0].float().cpu().transpose(0, 1)


def enlarged(depth: Tensor, width: int, height: int) -> Float32:
    """(V,T,h,w) to (V,T,height,width): linear in 1/z, but nearest where a depth edge runs."""
    inverse = 1.0 / depth
    smooth = F.interpolate(inverse, size=(height, width), mode="bilinear", align_corners=False)
    nearest = F.interpolate(inverse, size=(height, width), mode="nearest-exact")
    high = F.max_pool2d(inverse, 3, 1, 1)
    low = -F.max_pool2d(-inverse, 3, 1, 1)
    edge = F.interpolate(((high - low) > 0.1 * high).float(), size=(height, width), mode="nearest")
    return (1.0 / torch.where(edge > 0, nearest, smooth)).numpy().astype(np.float32)


def _answer(
    model: Reconstructor, frames: Tensor, rays: Tensor | None, budget_gb: float | None
) -> Prediction:
    dtype = torch.bfloat16 if frames.device.type == "cuda" else None
    if budget_gb is None:
        return model(frames, rays, trunk_dtype=dtype)
    try:
        return model(frames, rays, trunk_dtype=dtype, memory_budget_gb=budget_gb)
    except ValueError as error:
        raise BudgetError(str(error)) from error


def _settle(
    model: Reconstructor,
    pose: Float32,
    rig: Rig | None,
    found: RigRays | None,
    size: tuple[int, int],
) -> _Settled:
    """Cameras and scale from view encodings (V,9) and the rig, if there is one."""
    views = len(pose)
    if rig is None:
        used = Rig((default_camera(*size),)) if views == 1 else _decoded(model, pose, size)
        return _Settled(_upright(used), 1.0, "free", np.ones(views), {})
    used = rig.resized(*size)
    record: dict[str, Any] = {}
    if found is not None:
        unit, scale = found.unit, "rays"
    else:
        predicted = _decoded(model, pose, size)
        try:
            alignment = align_cameras(predicted, rig)
            unit, scale, record = alignment.scale, "cameras", {"alignment": alignment.record()}
        except AlignmentError as error:
            unit, scale = _guess(predicted, rig)
            record = {"alignment": {"refused": str(error)}}
    return _Settled(used, unit, scale, np.full(views, unit), record)


def _guess(predicted: Rig, rig: Rig) -> tuple[float, str]:
    """Scene units per unit of the model where no alignment says so, and where it comes from."""
    centers = np.stack([camera.center for camera in rig.cameras])
    spread = float(np.linalg.norm(centers - centers.mean(0), axis=1).mean())
    if spread > 0.0:
        answers = np.stack([c.center for c in predicted.cameras])
        answer = float(np.linalg.norm(answers - answers.mean(0), axis=1).mean())
        if answer > 1e-3:
            return spread / answer, "distances"
    # Scenes are mostly built around the world's origin.
    away = float(np.linalg.norm(centers[0]))
    return (away if away > 0.0 else 1.0), "guessed"


def _refined(settled: _Settled, depth: Float32, surface: NDArray[np.bool_], frames: Tensor) -> Any:
    """Factors per view with which a few timesteps of the views agree. frames (T,V,3,h,w)."""
    times, _, _, height, width = frames.shape
    chosen = np.unique(np.linspace(0, times - 1, min(times, REFINE_TIMES)).astype(int))
    small_w, small_h = model_size(width, height, min(REFINE_SIZE, max(width, height)), 1)
    pictures = F.interpolate(
        frames[chosen].flatten(0, 1), size=(small_h, small_w), mode="bilinear", antialias=True
    ).view(len(chosen), -1, 3, small_h, small_w)
    rows = (np.arange(small_h) + 0.5) * height / small_h
    columns = (np.arange(small_w) + 0.5) * width / small_w
    place = np.ix_(np.arange(len(depth)), chosen, rows.astype(int), columns.astype(int))
    scales = refine_view_scales(
        depth[place] * settled.factors[:, None, None, None],
        surface[place],
        pictures.transpose(0, 1).numpy(),
        settled.rig.resized(small_w, small_h).cameras,
    )
    if not scales.seen.any():
        return settled
    record = {**settled.record, "depth_scale": scales.record()}
    return replace(settled, factors=settled.factors * scales.scales, record=record)


def _decoded(model: Reconstructor, pose: Float32, size: tuple[int, int]) -> Rig:
    """The predicted cameras; AnySplat adds a little to the tangents of half its fields of view."""
    rig = decode_rig(pose, *size)
    if model.config.gaussian_head != "anysplat":
        return rig
    cameras = []
    for c in rig.cameras:
        intrinsics = c.intrinsics.copy()
        for axis, side in ((0, c.width), (1, c.height)):
            tangent = 0.5 * side / intrinsics[axis, axis] + ANYSPLAT_TANGENT
            intrinsics[axis, axis] = 0.5 * side / tangent
        cameras.append(Camera(c.name, c.width, c.height, intrinsics, c.camera_from_world))
    return Rig(tuple(cameras), rig.world)


def _upright(rig: Rig) -> Rig:
    """A rig in view 0's OpenCV frame, seen from a Z-up world that shares its origin."""
    turn = np.eye(4)
    turn[:3, :3] = Z_UP
    cameras = tuple(
        Camera(c.name, c.width, c.height, c.intrinsics, c.camera_from_world @ turn)
        for c in rig.cameras
    )
    return Rig(cameras, world="view0")
