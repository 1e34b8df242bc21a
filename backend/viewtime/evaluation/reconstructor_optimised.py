# SPDX-License-Identifier: Apache-2.0
"""What Table S6 compares with: a dynamic scene fitted by optimisation, in the manner of 4D Gaussian
Splatting (Wu et al. 2024): canonical Gaussians and a field of planes over space and time that
deforms them. Rasteriser, densification and pruning are gsplat's. It uses no prior but the cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from viewtime.evaluation.reconstructor import (
    Score,
    dilation_of,
    mean_score,
    number,
    picture_score,
    pictures,
)
from viewtime.grid import FrameGrid
from viewtime_formats.errors import CaptureError, ViewtimeError
from viewtime_formats.gaussians import SH_C0
from viewtime_formats.rig import Rig

HELD_OUT_VIEWS = (1, 4, 7, 10)
"""Of NVIDIA's twelve cameras, counted from 0: the first is the one whose clip is given."""
PLANES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""Axes (x, y, z, t) of the six feature planes."""

Rasterise = Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]


@dataclass(frozen=True)
class Fitting:
    """steps in all; still: steps at the start without deformation. points: Gaussians at first.
    dssim: share of (1 - SSIM) / 2 in the loss, else L1. smooth: cost of differences between
    neighbouring cells of the planes, and rates of 4DGS where it names them."""

    steps: int = 14000
    still: int = 3000
    points: int = 100_000
    features: int = 16
    resolutions: tuple[int, ...] = (32, 64)
    times: int = 25
    width: int = 64
    dssim: float = 0.2
    smooth: float = 2e-4
    means_rate: float = 1.6e-4
    scales_rate: float = 5e-3
    quats_rate: float = 1e-3
    opacities_rate: float = 5e-2
    colours_rate: float = 2.5e-3
    field_rate: float = 1.6e-4
    planes_rate: float = 1.6e-3
    seed: int = 0


class Deformation(nn.Module):
    """Means (N,3) and a time in [-1, 1] to changes of means, log scales and quaternions.

    Features of six planes are multiplied across planes and joined across resolutions; the last
    layers start at zero, so that nothing is deformed at first.
    """

    def __init__(self, fitting: Fitting, center: Tensor, reach: float) -> None:
        super().__init__()
        self.center: Tensor
        self.register_buffer("center", center)
        self.reach = reach
        self.planes = nn.ParameterList()
        for resolution in fitting.resolutions:
            for axes in PLANES:
                rows = fitting.times if axes[1] == 3 else resolution
                plane = torch.ones(1, fitting.features, rows, resolution)
                if axes[1] != 3:
                    plane.uniform_(0.1, 0.5)
                self.planes.append(nn.Parameter(plane))
        inner = fitting.features * len(fitting.resolutions)
        self.trunk = nn.Sequential(nn.Linear(inner, fitting.width), nn.ReLU(),
                                   nn.Linear(fitting.width, fitting.width), nn.ReLU())  # fmt: skip
        self.heads = nn.ModuleList(nn.Linear(fitting.width, size) for size in (3, 3, 4))
        for head in self.heads:
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def forward(self, means: Tensor, time: float) -> tuple[Tensor, Tensor, Tensor]:
        place = ((means.detach() - self.center) / self.reach).clamp(-1.0, 1.0)  # (N,3)
        place = torch.cat([place, torch.full_like(place[:, :1], time)], 1)  # (N,4)
        levels = []
        for level in range(len(self.planes) // len(PLANES)):
            product: Tensor | float = 1.0
            for n, axes in enumerate(PLANES):
                plane = self.planes[level * len(PLANES) + n]
                found = F.grid_sample(plane, place[None, None, :, list(axes)], align_corners=True)
                product = product * found[0, :, 0].T  # (N,F)
            levels.append(product)
        inner = self.trunk(torch.cat(levels, 1))  # type: ignore[arg-type]
        mean, scale, turn = (head(inner) for head in self.heads)
        return self.reach * mean, scale, turn

    def roughness(self) -> Tensor:
        """Mean square difference of neighbouring cells, along time and along space."""
        return torch.stack([
            plane.diff(dim=-2).square().mean() + plane.diff(dim=-1).square().mean()
            for plane in self.planes
        ]).mean()  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """The fitted scene. gaussians: unactivated parameters by name; count of timesteps."""

    gaussians: nn.ParameterDict
    field: Deformation
    times: int

    def at(self, t: int, *, still: bool = False) -> dict[str, Tensor]:
        """What gsplat draws of timestep t."""
        g = self.gaussians
        means, scales, quats = g["means"], g["scales"], g["quats"]
        if not still:
            away, grown, turned = self.field(means, _moment(t, self.times))
            means, scales, quats = means + away, scales + grown, quats + turned
        return {
            "means": means,
            "scales": scales.exp(),
            "quats": quats,
            "opacities": g["opacities"].sigmoid(),
            "colors": 0.5 + SH_C0 * g["colours"],
        }


def gsplat_rasteriser() -> Rasterise:
    """gsplat's rasteriser. Raises ViewtimeError without CUDA or without gsplat."""
    if not torch.cuda.is_available():
        raise ViewtimeError(
            "the optimised baseline needs a CUDA GPU for gsplat's rasteriser; torch finds none"
        )
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise ViewtimeError(
            f"the optimised baseline needs gsplat (the extra viewtime[cuda]): {error}"
        ) from error
    return rasterization


def fit(
    frames: np.ndarray,
    rig: Rig,
    cells: np.ndarray,
    fitting: Fitting,
    *,
    rasterise: Rasterise | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Fit Gaussians to the chosen cells of a grid.

    frames (V,T,3,H,W) display sRGB, cells (V,T) bool: those that may be looked at; rig: V cameras.
    Gaussians start at random where the cameras look. rasterise: gsplat's, on CUDA, unless given.
    Raises ViewtimeError without it, ValueError when no cell is chosen.
    """
    chosen = np.argwhere(cells)
    if not len(chosen):
        raise ValueError("fit: no cell of the grid is chosen")
    device = torch.device("cpu" if rasterise is not None else "cuda")
    rasterise = gsplat_rasteriser() if rasterise is None else rasterise
    from gsplat.strategy import DefaultStrategy

    torch.manual_seed(fitting.seed)
    center, reach = _bounds(rig)
    field = Deformation(fitting, torch.tensor(center, dtype=torch.float32), reach).to(device)
    params = _start(fitting, center, reach).to(device)
    rates = {
        "means": fitting.means_rate * reach, "scales": fitting.scales_rate,
        "quats": fitting.quats_rate, "opacities": fitting.opacities_rate,
        "colours": fitting.colours_rate,
    }  # fmt: skip
    optimizers = {
        name: torch.optim.Adam([params[name]], lr=rate, eps=1e-15) for name, rate in rates.items()
    }
    planes = list(field.planes)
    others = [*field.trunk.parameters(), *field.heads.parameters()]
    moving = torch.optim.Adam([
        {"params": planes, "lr": fitting.planes_rate * reach},
        {"params": others, "lr": fitting.field_rate * reach},
    ])  # fmt: skip
    strategy = DefaultStrategy(refine_stop_iter=fitting.steps // 2, verbose=False)
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=reach)
    truth = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    fitted = Fitted(params, field, frames.shape[1])
    rng = np.random.default_rng(fitting.seed)
    first = chosen[chosen[:, 1] == chosen[:, 1].min()]
    for step in range(fitting.steps):
        still = step < fitting.still
        # Before anything moves only one moment's pictures agree with each other.
        v, t = rng.choice(first if still and len(first) > 1 else chosen)
        shown, _, info = _draw(fitted, rig, int(v), int(t), rasterise, device, still=still)
        strategy.step_pre_backward(params, optimizers, state, step, info)
        picture = shown.permute(0, 3, 1, 2)  # (1,3,H,W)
        wanted = truth[v, t][None]
        likeness = structural_similarity_index_measure(picture, wanted, data_range=1.0)
        loss = (1 - fitting.dssim) * (picture - wanted).abs().mean()
        loss = loss + fitting.dssim * 0.5 * (1 - likeness)  # type: ignore[operator]
        if not still:
            loss = loss + fitting.smooth * field.roughness()
        loss.backward()
        strategy.step_post_backward(params, optimizers, state, step, info, packed=False)
        for optimizer in (*optimizers.values(), moving):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rate = rates["means"] * 0.01 ** ((step + 1) / fitting.steps)
        optimizers["means"].param_groups[0]["lr"] = rate
        if on_step is not None:
            on_step(step + 1, fitting.steps)
    return fitted


@torch.no_grad()
def draw(fitted: Fitted, rig: Rig, *, rasterise: Rasterise | None = None) -> np.ndarray:
    """Frames (V,T,3,H,W) in [0, 1] that a rig sees of a fitted scene."""
    device = fitted.gaussians["means"].device
    rasterise = gsplat_rasteriser() if rasterise is None else rasterise
    return np.stack([
        np.stack([
            _draw(fitted, rig, v, t, rasterise, device)[0][0].clamp(0, 1).cpu().numpy()
            for t in range(fitted.times)
        ])
        for v in range(len(rig))
    ]).transpose(0, 1, 4, 2, 3)  # fmt: skip


def system_diagnosis(
    model: Any,
    generator: Any,
    grid: FrameGrid,
    rig: Rig,
    *,
    fitting: Fitting | None = None,
    steps: int = 50,
    seed: int = 0,
    lpips: object | None = None,
) -> dict[str, Score]:
    """Table S6 on one scene: scores at HELD_OUT_VIEWS, at every timestep, of 4DGS on the first row
    and column, of 4DGS on the grid that the generator completes, and of the reconstructor on it.

    grid: all frames of twelve views; held-out views give nothing to any method, and the true rig
    is told to all three. Raises ViewtimeError without CUDA, CaptureError for too few views.
    """
    from viewtime.generator.generation import generate
    from viewtime.reconstructor.lift import reconstruct

    gsplat_rasteriser()
    if grid.views <= max(HELD_OUT_VIEWS):
        raise CaptureError(f"table S6 holds out views {HELD_OUT_VIEWS}; the scene has {grid.views}")
    fitting = Fitting() if fitting is None else fitting
    kept = [v for v in range(grid.views) if v not in HELD_OUT_VIEWS]
    sources = Rig(tuple(rig.cameras[v] for v in kept), rig.world)
    targets = Rig(tuple(rig.cameras[v] for v in HELD_OUT_VIEWS), rig.world)
    truth = grid.frames[list(HELD_OUT_VIEWS)]
    known = np.zeros((len(kept), grid.times), bool)
    known[0], known[:, 0] = True, True
    given = np.where(known[..., None, None, None], grid.frames[kept], np.float32(0))
    references = FrameGrid(given, known)
    whole = generate(generator, references, prior=None, steps=steps, seed=seed)
    sparse = draw(fit(given, sources, known, fitting), targets)
    dense = draw(fit(whole, sources, np.ones_like(known), fitting), targets)
    result = reconstruct(model, FrameGrid(whole, np.ones_like(known)), sources)
    behind = result.background
    behind = whole.mean((0, 1, 3, 4)) if behind is None else behind
    lifted = pictures(list(result), targets.cameras, behind, dilation_of(result))
    return {
        "4DGS": picture_score(sparse, truth, lpips),
        "generator + 4DGS": picture_score(dense, truth, lpips),
        "generator + feed-forward": picture_score(lifted, truth, lpips),
    }


def diagnose_folders(
    model: Any,
    generator: Any,
    folders: Sequence[Path],
    *,
    width: int = 512,
    times: int = 13,
    lpips: object | None = None,
    on_scene: Callable[[int, int], None] | None = None,
) -> list[tuple[str, dict[str, Score]]]:
    """`system_diagnosis` of every scene of twelve cameras below the folders, at 16:9.

    Raises CaptureError when there is none, ViewtimeError without CUDA.
    """
    from viewtime.data.readers import read_scene, scenes_in

    gsplat_rasteriser()
    places = [place for folder in folders for place in scenes_in(str(folder))]
    found = []
    for done, place in enumerate(places):
        height = max(16, 16 * round(width * 9 / 16 / 16))
        grid, rig = read_scene(place, times=times, height=height, width=width)
        if rig is None:
            raise CaptureError(f"{place}: table S6 needs the cameras; the dataset has none there")
        found.append((Path(place).name, system_diagnosis(model, generator, grid, rig, lpips=lpips)))
        if on_scene is not None:
            on_scene(done + 1, len(places))
    return found


def table(found: Sequence[tuple[str, dict[str, Score]]]) -> str:
    """Table S6 as Markdown: the mean over scenes, then each scene."""
    methods = list(found[0][1])
    names = list(found[0][1][methods[0]])
    lines = ["| method | scene | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for method in methods:
        scores = [(scene, score[method]) for scene, score in found]
        rows = [(f"mean of {len(found)}", mean_score([score for _, score in scores])), *scores]
        for scene, score in rows:
            cells = " | ".join(number(name, score[name]) for name in names)
            lines.append(f"| {method} | {scene} | {cells} |")
    return "\n".join(lines)


def _draw(
    fitted: Fitted, rig: Rig, v: int, t: int, rasterise: Rasterise, device: torch.device,
    *, still: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Any]]:  # fmt: skip
    """(1,H,W,3) colours over black, alphas, and what the strategy wants to know."""
    camera = rig.cameras[v]
    pose = torch.eye(4, device=device)
    pose[:3] = torch.tensor(camera.camera_from_world)
    lens = torch.tensor(camera.intrinsics, device=device, dtype=torch.float32)
    return rasterise(
        **fitted.at(t, still=still), viewmats=pose[None], Ks=lens[None],
        width=camera.width, height=camera.height, packed=False,
    )  # fmt: skip


def _moment(t: int, times: int) -> float:
    return 2.0 * t / (times - 1) - 1.0 if times > 1 else 0.0


def _bounds(rig: Rig) -> tuple[np.ndarray, float]:
    """The point that the cameras look at and how far from it the scene is taken to reach."""
    from viewtime.reconstructor.pose import focus_of

    found = focus_of(rig)
    if found is not None:
        return found[0], found[1]
    centers = np.stack([c.center for c in rig.cameras])
    axes = np.stack([c.rotation[2] for c in rig.cameras])
    reach = max(float(np.linalg.norm(centers - centers.mean(0), axis=1).max()) * 3.0, 1e-3)
    return centers.mean(0) + reach * axes.mean(0), reach


def _start(fitting: Fitting, center: np.ndarray, reach: float) -> nn.ParameterDict:
    """Random Gaussians in a ball, about as large as they are apart."""
    count = fitting.points
    directions = F.normalize(torch.randn(count, 3), dim=1)
    away = reach * torch.rand(count, 1) ** (1 / 3)
    size = reach * (4.2 / count) ** (1 / 3)
    means = torch.tensor(center, dtype=torch.float32) + directions * away
    return nn.ParameterDict({
        "means": nn.Parameter(means),
        "scales": nn.Parameter(torch.full((count, 3), float(np.log(0.5 * size)))),
        "quats": nn.Parameter(F.normalize(torch.randn(count, 4), dim=1)),
        "opacities": nn.Parameter(torch.full((count,), float(np.log(0.1 / 0.9)))),
        "colours": nn.Parameter((torch.rand(count, 3) - 0.5) / SH_C0 * 0.2),
    })  # fmt: skip
