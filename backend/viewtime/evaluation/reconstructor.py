# SPDX-License-Identifier: Apache-2.0
"""How good a reconstructor is on held-out made scenes: cameras, depth and pictures between views.

It judges what the pipeline writes (`lift.reconstruct`), beside one plane; it never trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from viewtime.data.synthetic import sample_grid
from viewtime.evaluation.metrics import psnr, ssim
from viewtime.evaluation.reconstructor_cameras import camera_errors, cameras_in_predicted_world
from viewtime.gaussians.rendering import render
from viewtime.grid import FrameGrid
from viewtime.reconstructor.align import AlignmentError, align_cameras
from viewtime.reconstructor.captured import fuse_views
from viewtime.reconstructor.lift import Reconstruction, reconstruct
from viewtime.reconstructor.lift_predict import predict
from viewtime.reconstructor.model import Reconstructor
from viewtime.training.reconstructor_scenes import HELD_OUT_SCENES
from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Camera, Rig

KINDS = ("static", "dynamic")
METHODS = ("cameras given", "cameras predicted", "constant depth")
FINE, USUAL = 0.01, 0.3
"""Dilation in px^2 for analytic Gaussians, and for learned ones (gsplat's own, as in training)."""

Score = dict[str, float]


@dataclass(frozen=True)
class HeldOut:
    """Views that are given, and views between them that are asked for; depth of both is true."""

    sources: FrameGrid
    rig: Rig
    targets: FrameGrid
    target_rig: Rig


def held_out_scene(number: int, kind: str, *, sources: int, times: int, size: int) -> HeldOut:
    """Scene `number` of those that nothing is trained on: every other camera of an arc is asked
    for. "static": nothing moves, one timestep. Raises ValueError for another kind."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; one of {', '.join(KINDS)} is needed")
    still = kind == "static"
    grid, rig = sample_grid(
        HELD_OUT_SCENES + number, 2 * sources - 1, 1 if still else times, size,
        still=still, frame_step=3.0,
    )  # fmt: skip
    # Some rigs count their cameras from the middle: along the arc is along the longest chord.
    centers = np.stack([c.center for c in rig.cameras])
    order = np.argsort((centers - centers.mean(0)) @ np.linalg.svd(centers - centers.mean(0))[2][0])
    given, asked = order[::2], order[1::2]

    def part(which: np.ndarray) -> FrameGrid:
        assert grid.depth is not None
        return FrameGrid(grid.frames[which], grid.known[which], grid.depth[which])

    rigs = (Rig(tuple(rig.cameras[v] for v in which), rig.world) for which in (given, asked))
    return HeldOut(part(given), next(rigs), part(asked), next(rigs))


def dilation_of(result: Reconstruction) -> float:
    """px^2 that the Gaussians of a result were made to be drawn with."""
    return FINE if result.provenance["gaussians"] == "analytic" else USUAL


def pictures(
    steps: Sequence[Gaussians], cameras: Sequence[Camera], background: np.ndarray, dilation: float
) -> np.ndarray:
    """Frames (V,T,3,H,W) that cameras see of Gaussians per timestep, in [0, 1]."""
    shown = [
        [render(step, camera, background=background, dilation=dilation).color for step in steps]
        for camera in cameras
    ]
    return np.clip(np.array(shown, np.float32), 0.0, 1.0).transpose(0, 1, 4, 2, 3)


def novel_views(model: Reconstructor, scene: HeldOut, *, given: bool) -> tuple[np.ndarray, Score]:
    """Frames (V,T,3,H,W) at the cameras asked for, without any true depth, and camera errors.

    given: the source cameras are known. Else they are predicted, and the cameras asked for are
    taken along by the similarity between predicted and true source cameras; where there is none
    the frames show the mean colour of the sources, and `refused` is 1.
    """
    bare = FrameGrid(scene.sources.frames, scene.sources.known)
    result = reconstruct(model, bare, scene.rig if given else None)
    cameras: Sequence[Camera] = scene.target_rig.cameras
    errors: Score = {}
    if not given:
        errors = {**camera_errors(result.rig, scene.rig), "refused": 0.0}
        try:
            alignment = align_cameras(result.rig, scene.rig)
        except AlignmentError:
            errors["refused"] = 1.0
            colour = scene.sources.frames.mean((0, 1, 3, 4))
            blank = np.broadcast_to(colour[:, None, None], scene.targets.frames.shape)
            return blank.astype(np.float32), errors
        cameras = cameras_in_predicted_world(cameras, alignment, result.rig, scene.rig)
    behind = result.background
    if behind is None:  # no sky: holes show the mean colour, as they do beside the plane
        behind = scene.sources.frames.mean((0, 1, 3, 4))
    return pictures(list(result), cameras, behind, dilation_of(result)), errors


def constant_depth(scene: HeldOut) -> np.ndarray:
    """Frames of the nearest source view on a plane at its true median depth: what needs no model,
    and is told the true cameras."""
    assert scene.sources.depth is not None
    rows = []
    for camera in scene.target_rig.cameras:
        away = [np.linalg.norm(c.center - camera.center) for c in scene.rig.cameras]
        near = int(np.argmin(away))
        depth = scene.sources.depth[near]
        seen = depth[np.isfinite(depth)]
        plane = np.full_like(depth[:1], np.median(seen) if seen.size else 1.0)
        steps = [
            fuse_views(
                frame.transpose(1, 2, 0)[None], plane, [scene.rig.cameras[near]], refit=False
            )
            for frame in scene.sources.frames[near]
        ]
        colour = scene.sources.frames[near].mean((0, 2, 3))
        rows.append(pictures(steps, [camera], colour, FINE)[0])
    return np.stack(rows)


def picture_score(made: np.ndarray, truth: np.ndarray, lpips: object | None = None) -> Score:
    """Means over frames (V,T,3,H,W): psnr (dB), ssim, and lpips where there is one."""
    pairs = list(zip(made.reshape(-1, *made.shape[2:]), truth.reshape(-1, *truth.shape[2:])))
    found = {
        "psnr": float(np.mean([psnr(a, b) for a, b in pairs])),
        "ssim": float(np.mean([ssim(a, b) for a, b in pairs])),
    }
    if lpips is not None:
        import torch

        a, b = (torch.from_numpy(np.stack(side)) for side in zip(*pairs))
        found["lpips"] = float(lpips(a, b).mean())  # type: ignore[operator]
    return found


def depth_errors(model: Reconstructor, scene: HeldOut) -> Score:
    """Mean relative error of depth at the source views, over true surfaces.

    absrel, absrel_given: with predicted and given cameras, one scale (the median ratio) aligned
    per scene. absrel_metric: with given cameras and nothing aligned, in the rig's own unit.
    """
    true = scene.sources.depth
    assert true is not None
    seen = np.isfinite(true)
    found = {}
    for name, rig in (("absrel", None), ("absrel_given", scene.rig)):
        depth = predict(model, scene.sources.frames, rig).depth[seen]
        scale = np.median(true[seen] / depth)
        found[name] = float(np.mean(np.abs(scale * depth - true[seen]) / true[seen]))
        if rig is not None:
            found["absrel_metric"] = float(np.mean(np.abs(depth - true[seen]) / true[seen]))
    return found


def evaluate(
    model: Reconstructor,
    *,
    scenes: int,
    sources: int = 4,
    times: int = 3,
    size: int | None = None,
    lpips: object | None = None,
    on_scene: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Score]]:
    """Mean scores over held-out scenes: kind -> method or "geometry" -> score.

    size: of the square frames in pixels; None is the model's own. nan scores (a rig without
    directions) are left out of their means.
    """
    size = model.config.size if size is None else size
    rows: dict[str, dict[str, list[Score]]] = {kind: {} for kind in KINDS}
    for number in range(scenes):
        for kind in KINDS:
            scene = held_out_scene(number, kind, sources=sources, times=times, size=size)
            truth, found = scene.targets.frames, rows[kind]
            made, _ = novel_views(model, scene, given=True)
            found.setdefault(METHODS[0], []).append(picture_score(made, truth, lpips))
            made, errors = novel_views(model, scene, given=False)
            found.setdefault(METHODS[1], []).append(picture_score(made, truth, lpips))
            plane = constant_depth(scene)
            found.setdefault(METHODS[2], []).append(picture_score(plane, truth, lpips))
            geometry = {**errors, **depth_errors(model, scene)}
            found.setdefault("geometry", []).append(geometry)
        if on_scene is not None:
            on_scene(number + 1, scenes)
    return {
        kind: {name: mean_score(scores) for name, scores in methods.items()}
        for kind, methods in rows.items()
    }


def mean_score(scores: Sequence[Score]) -> Score:
    """Means by name, without nan."""
    names = list(scores[0])
    columns = {n: np.array([s[n] for s in scores]) for n in names}
    return {
        n: float(c[~np.isnan(c)].mean()) if (~np.isnan(c)).any() else float("nan")
        for n, c in columns.items()
    }


def table(results: dict[str, dict[str, Score]]) -> str:
    """The results as two Markdown tables: pictures, then cameras and depth."""
    first = results[KINDS[0]]
    names = list(first[METHODS[0]])
    lines = ["| scenes | method | " + " | ".join(n.upper() for n in names) + " |"]
    lines.append("|---|---|" + "---|" * len(names))
    for kind, methods in results.items():
        for method in METHODS:
            cells = [number(n, methods[method][n]) for n in names]
            lines.append(f"| {kind} | {method} | " + " | ".join(cells) + " |")
    heads = {
        "rotation": "rotation °", "direction": "direction °", "ate": "ATE (rig)",
        "rpe_place": "RPE (rig)", "rpe_turn": "RPE °", "refused": "refused",
        "absrel": "AbsRel", "absrel_given": "AbsRel, cameras given",
        "absrel_metric": "AbsRel, cameras given, not aligned",
    }  # fmt: skip
    lines += ["", "| scenes | " + " | ".join(heads.values()) + " |", "|---|" + "---|" * len(heads)]
    for kind, methods in results.items():
        cells = [number(n, methods["geometry"][n]) for n in heads]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(name: str, value: float) -> str:
    """A score as a table shows it."""
    few = name in ("psnr", "rotation", "direction", "rpe_turn")
    return f"{value:.2f}" if few else f"{value:.3f}"


def load_metric(path: Path | None) -> object | None:
    """LPIPS from a file the person names, None without one."""
    if path is None:
        return None
    from viewtime.lpips import load_lpips

    return load_lpips(path)
