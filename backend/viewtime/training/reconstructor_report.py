# SPDX-License-Identifier: Apache-2.0
"""What a person looks at while a reconstructor trains: held-out scores, a sheet, the loss, a card.

It only looks; it never trains.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from viewtime.gaussians import render
from viewtime.gaussians.tensors import CameraTensors, GaussianTensors
from viewtime.media import write_png
from viewtime.reconstructor.model import Prediction, Reconstructor
from viewtime.reconstructor.pose_encoding import unproject
from viewtime.training.reconstructor_loss import absolute_relative_error
from viewtime.training.reconstructor_novel import (
    DILATION,
    FOOTPRINT,
    View,
    drawing_device,
    novel_views,
    predict,
    predicted_cameras,
)
from viewtime.training.reconstructor_recipe import Recipe, Stage
from viewtime.training.reconstructor_scenes import Scenes, held_out_scenes
from viewtime_formats.atomic import write_json


@torch.no_grad()
def score(
    model: Reconstructor, scenes: Scenes, *, half: bool = False
) -> tuple[dict[str, float], Prediction, View]:
    """Errors of one batch, the prediction and its novel views.

    psnr (dB) and ssim, means over target pictures, with one similarity per clip where cameras are
    predicted; depth: mean relative error, one scale aligned per scene; turn and direction, degrees:
    of rotations against view 0, and of where cameras are from there.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    prediction = predict(model, scenes, half=half)
    view = novel_views(model, prediction, scenes, whole_clip=True)
    made = view.color.permute(0, 1, 2, 5, 3, 4).flatten(0, 2).clamp(0, 1)
    truth = scenes.targets.flatten(0, 2)
    found = {
        "psnr": _psnr(made, truth),
        "ssim": float(structural_similarity_index_measure(made, truth, data_range=1.0)),  # type: ignore[arg-type]
    }
    if scenes.depth is not None:
        found["depth"] = absolute_relative_error(prediction.depth, scenes.depth)
    if not scenes.cameras_known:
        found |= _camera_errors(predicted_cameras(prediction)[0].float(), scenes.extrinsics)
    return found, prediction, view


def _psnr(made: Tensor, truth: Tensor) -> float:
    """Mean of each picture's own PSNR, (N,3,H,W)."""
    squared = (made - truth).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float((-10 * squared.log10()).mean())


def _camera_errors(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """Degrees, means over timesteps and all views but the first; (B,T,V,3,4) and (B,V,3,4)."""

    def relative(x: Tensor) -> tuple[Tensor, Tensor]:
        turn = x[..., 1:, :, :3] @ x[..., :1, :, :3].mT
        centre = -(x[..., :3].mT @ x[..., 3:])[..., 0]
        away = centre[..., 1:, :] - centre[..., :1, :]
        return turn, (x[..., :1, :, :3] @ away[..., None])[..., 0]

    (turn_a, away_a), (turn_b, away_b) = relative(predicted), relative(true[:, None])
    trace = (turn_a * turn_b).sum((-1, -2))
    turn = torch.acos(((trace - 1) / 2).clamp(-1, 1))
    direction = torch.acos(F.cosine_similarity(away_a, away_b.expand_as(away_a), -1).clamp(-1, 1))
    return {"turn": float(turn.rad2deg().mean()), "direction": float(direction.rad2deg().mean())}


@torch.no_grad()
def plane_psnr(scenes: Scenes) -> float:
    """PSNR (dB) of what needs no model: each target drawn from the nearest source picture, painted
    on a plane before that camera at its median depth, with the true cameras. Needs true depth."""
    scenes = scenes.to(drawing_device(scenes.frames.device))
    assert scenes.depth is not None
    batch, times, count, _, height, width = scenes.targets.shape
    centres, aims = (
        -(x[..., :3].mT @ x[..., 3:])[..., 0] for x in (scenes.extrinsics, scenes.target_extrinsics)
    )
    nearest = torch.cdist(aims, centres).argmin(-1)  # (B,N)
    scores = []
    for b in range(batch):
        for n in range(count):
            v = int(nearest[b, n])
            lens, pose = scenes.intrinsics[b, v], scenes.extrinsics[b, v]
            aim = torch.eye(4, device=pose.device)
            aim[:3] = scenes.target_extrinsics[b, n]
            camera = CameraTensors(aim[None], scenes.target_intrinsics[b, n][None], width, height)
            for t in range(times):
                z = scenes.depth[b, t, v]
                far = z[torch.isfinite(z)].median() if torch.isfinite(z).any() else z.new_ones(())
                points = unproject(far.expand(height, width), pose, lens).flatten(0, 1)
                total = len(points)
                colours = scenes.frames[b, t, v].permute(1, 2, 0).flatten(0, 1)
                plane = GaussianTensors(
                    points, (FOOTPRINT * far / lens[0, 0]).expand(total, 3),
                    points.new_tensor([1.0, 0, 0, 0]).expand(total, 4),
                    points.new_full((total,), 0.98), colours,
                )  # fmt: skip
                shown = render(plane, camera, background=colours.mean(0), dilation=DILATION)
                made = shown.color.permute(0, 3, 1, 2).clamp(0, 1)
                scores.append(_psnr(made, scenes.targets[b, t, n][None]))
    return float(np.mean(scores))


def write_report(
    folder: Path, recipe: Recipe, stage: Stage, model: Reconstructor, step: int, seconds: float
) -> dict[str, float]:
    """Held-out scores on stdout and in held_out.jsonl, sheet.png, loss.png; the scores.

    In a geometry stage there are no Gaussians worth looking at: depth and cameras alone count.
    """
    from viewtime.training.samples import write_loss_plot

    model.eval()
    device, half = next(model.parameters()).device, recipe.precision == "bf16"
    pictures = stage.kind != "geometry"
    sums: dict[str, list[float]] = {}
    rows = []
    for n in range(recipe.held_out):
        scenes = held_out_scenes(recipe, stage, n, with_rays=recipe.read_back).to(device)
        if pictures:
            found, prediction, view = score(model, scenes, half=half)
            found["plane_psnr"] = plane_psnr(scenes)
            rows += _rows(scenes, prediction, view)
        else:
            with torch.no_grad():
                prediction = predict(model, scenes, half=half)
            assert scenes.depth is not None
            found = {"depth": absolute_relative_error(prediction.depth, scenes.depth)}
            found |= _camera_errors(predicted_cameras(prediction)[0].float(), scenes.extrinsics)
            rows.append([*_sources(scenes, prediction, 0), *_sources(scenes, prediction, 0, -1)])
        for name, value in found.items():
            sums.setdefault(name, []).append(value)
    means = {name: float(np.mean(values)) for name, values in sums.items()}
    line = {"step": step, "minutes": round(seconds / 60, 2), **means}
    with (folder / "held_out.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print("held out " + json.dumps(line), flush=True)
    if rows:
        write_png(folder / "sheet.png", np.concatenate([np.concatenate(r, 1) for r in rows]))
    label = "MSE + perceptual distance" if pictures else "depth, sky and cameras"
    try:
        write_loss_plot(folder / "log.txt", folder / "loss.png", label)
    except ImportError:
        print("no loss.png: matplotlib is not there (pip install viewtime[train])", flush=True)
    return means


def _rows(scenes: Scenes, prediction: Prediction, view: View) -> list[list[np.ndarray]]:
    """Per shown time (the first and the last): truth and rendering of two novel views, rendered
    depth of one, a source view and its predicted depth."""
    times, count = scenes.targets.shape[1:3]
    rows = []
    for t in sorted({0, times - 1}):
        row = []
        for n in sorted({0, count // 2}):
            row += [_picture(scenes.targets[0, t, n]), _shown(view.color[0, t, n])]
        row += [_inverse(view.depth[0, t, count // 2]), *_sources(scenes, prediction, t)]
        rows.append(row)
    return rows


def _sources(
    scenes: Scenes, prediction: Prediction, t: int, v: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    depth = prediction.depth[0, t, v]
    if prediction.surface is not None:
        depth = torch.where(prediction.surface[0, t, v] > 0, depth, torch.inf)
    return _picture(scenes.frames[0, t, v]), _inverse(depth)


def _picture(frame: Tensor) -> np.ndarray:
    return _shown(frame.permute(1, 2, 0))


def _shown(picture: Tensor) -> np.ndarray:
    return picture.detach().float().cpu().numpy().clip(0, 1)


def _inverse(depth: Tensor) -> np.ndarray:
    """Depth (H,W) in the model's unit as a grey picture: near is bright, sky black."""
    near = torch.nan_to_num(1.0 / depth.detach().float(), posinf=0.0).clamp(0, 2.5) / 2.5
    return near.cpu().numpy()[..., None].repeat(3, -1)


def write_card(folder: Path, recipe: Recipe, distance: str) -> None:
    """card.json beside the weights: what they were made from and how they were judged."""
    stages: list[dict[str, Any]] = []
    for number, stage in enumerate(recipe.stages):
        kept = Path(recipe.folder) / f"{number + 1}-{stage.kind}" / "held_out.jsonl"
        lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
        stages.append(
            {
                "kind": stage.kind,
                "trains": stage.trains,
                "held_out": json.loads(lines[-1]) if lines else None,
            }
        )
    card = {
        "what": "A reconstructor trained by viewtime train reconstructor",
        "base": recipe.base,
        "training_data": {"static": recipe.static, "dynamic": recipe.dynamic},
        "perceptual_distance": distance,
        "stages": stages,
        "recipe": recipe.to_dict(),
        "held_out_scores": "made scenes that nothing was trained on, means over "
        f"{recipe.held_out}; psnr and ssim of views that were not given, by predicted cameras and "
        "one similarity per clip; plane_psnr: the nearest picture on a plane, true cameras",
    }
    write_json(folder / "card.json", json.loads(json.dumps(card, default=dataclasses.asdict)))
