# SPDX-License-Identifier: Apache-2.0
"""How good a generator is on held-out synthetic scenes, for each way of conditioning it, beside
what needs no model. It never trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from viewtime.evaluation.metrics import psnr, ssim
from viewtime.generator.baselines import blend_references, nearest_reference
from viewtime.generator.generation import generate
from viewtime.generator.load import Generator
from viewtime.generator.naive import naive_prior
from viewtime.generator.prior import PREDICTED_NOISE, Prior, only_references, reprojection_prior
from viewtime.grid import FrameGrid
from viewtime.training.examples import HELD_OUT_SEED

if TYPE_CHECKING:
    from viewtime.reconstructor.model import Reconstructor
    from viewtime_formats.rig import Rig

MODES = ("both", "row", "column", "none", "depth", "predicted")
"""both: fixed-view video and freeze-time frames. row, column: one of them. none: neither. depth:
both, and depth, so that their pixels can be reprojected (the geometric prior). predicted: both and
the rig, and the reconstructor predicts their depth."""
REFERENCES = ("both", "depth", "predicted")
"""Modes that give the row and the column."""

BEST_PSNR = 60.0
"""dB: where nothing moves a copy is the truth, and infinity would be the mean of all scenes."""

SHEETS = 3
"""Scenes of an evaluation that contact sheets show."""

Score = dict[str, float]


@dataclass(frozen=True)
class HeldOut:
    """One held-out scene: the whole grid with depth, its rig, and the row and column given."""

    grid: FrameGrid
    rig: Rig
    fixed_view: int
    freeze_time: int


def held_out_scene(number: int, *, views: int, times: int, size: int) -> HeldOut:
    """Scene `number` of those that nothing is ever trained on."""
    from viewtime.data.synthetic import sample_grid

    seed = HELD_OUT_SEED + number
    grid, rig = sample_grid(seed, views, times, size, frame_step=2.0 + number % 4)
    return HeldOut(grid, rig, 0, number % 2 * (times // 2))


def known_cells(mode: str, scene: HeldOut) -> np.ndarray:
    """(V, T) bool: what a mode gives. Raises ValueError for a name that is no mode."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, must be one of {', '.join(MODES)}")
    known = np.zeros((scene.grid.views, scene.grid.times), bool)
    if mode in ("row", *REFERENCES):
        known[scene.fixed_view] = True
    if mode in ("column", *REFERENCES):
        known[:, scene.freeze_time] = True
    return known


def fill(
    generator: Generator | None,
    scene: HeldOut,
    mode: str,
    *,
    steps: int,
    seed: int = 0,
    reconstructor: Reconstructor | None = None,
) -> dict[str, np.ndarray]:
    """Frames (V, T, 3, H, W) of each method for one scene and mode.

    Methods: "model" (if there is a generator); "nearest" and "blend" where both references are
    given; "copy" where one is; "prior" with depth, captured or predicted; "start", what a model
    that takes a prior starts from where there is no depth. reconstructor: predicts depth in the
    mode "predicted".
    """
    known = known_cells(mode, scene)
    references = FrameGrid(
        np.where(known[..., None, None, None], scene.grid.frames, np.float32(0)), known
    )
    given = scene.fixed_view, scene.freeze_time
    made: dict[str, np.ndarray] = {}
    prior = None
    evidence = generator is not None and generator.takes_evidence
    if mode == "depth":
        with_depth = only_references(scene.grid, *given)
        prior = reprojection_prior(with_depth, scene.rig, *given, evidence=evidence)
    elif mode == "predicted":
        prior = predicted_prior(reconstructor, references, scene.rig, *given, evidence=evidence)
    if prior is not None:
        made["prior"] = prior.frames
    elif known.any():
        made["start"] = naive_prior(references.frames, known).frames
    if mode in REFERENCES:
        made["nearest"] = nearest_reference(references, *given)
        made["blend"] = blend_references(references, *given)
    elif mode == "row":
        made["copy"] = np.broadcast_to(
            scene.grid.frames[scene.fixed_view], scene.grid.frames.shape
        ).copy()
    elif mode == "column":
        column = scene.grid.frames[:, scene.freeze_time, None]
        made["copy"] = np.broadcast_to(column, scene.grid.frames.shape).copy()
    if generator is not None:
        made["model"] = generate(generator, references, prior=prior, steps=steps, seed=seed)
    return made


def predicted_prior(
    reconstructor: Reconstructor | None,
    references: FrameGrid,
    rig: Rig,
    fixed_view: int,
    freeze_time: int,
    *,
    evidence: bool,
) -> Prior | None:
    """The prior of references without depth, as a run makes it; None where none is to be had."""
    from viewtime.reconstructor.references import reference_depth

    if reconstructor is None:
        raise ValueError('the mode "predicted" wants a reconstructor')
    depth = reference_depth(reconstructor, references, rig, fixed_view, freeze_time)
    if depth is None:
        return None
    return reprojection_prior(
        replace(references, depth=depth), rig, fixed_view, freeze_time,
        depth_noise=PREDICTED_NOISE, evidence=evidence,
    )  # fmt: skip


def score(
    frames: np.ndarray, scene: HeldOut, known: np.ndarray, lpips: object | None = None
) -> Score:
    """Means over the cells that were not given: psnr (dB, a cell counts BEST_PSNR at most), ssim,
    and lpips where there is one."""
    cells = np.argwhere(~known)
    pairs = [(frames[v, t], scene.grid.frames[v, t]) for v, t in cells]
    result = {
        "psnr": float(np.mean([min(psnr(a, b), BEST_PSNR) for a, b in pairs])),
        "ssim": float(np.mean([ssim(a, b) for a, b in pairs])),
    }
    if lpips is not None:
        import torch

        a, b = (torch.from_numpy(np.stack(side)) for side in zip(*pairs))
        result["lpips"] = float(lpips(a, b).mean())  # type: ignore[operator]
    return result


def evaluate(
    generator: Generator | None,
    *,
    scenes: int,
    modes: Iterable[str] = MODES,
    views: int = 5,
    times: int = 5,
    size: int = 128,
    steps: int = 4,
    lpips: object | None = None,
    reconstructor: Reconstructor | None = None,
    sheets: Path | None = None,
    on_scene: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Score]]:
    """Mean scores over held-out scenes: mode -> method -> score.

    reconstructor: for the mode "predicted"; None is the bundled one. sheets: a folder that gets a
    contact sheet MODE-SCENE.png of each mode on the first SHEETS scenes.
    """
    modes = tuple(modes)
    if "predicted" in modes and reconstructor is None:
        from viewtime.reconstructor.load import load_reconstructor

        reconstructor = load_reconstructor("bundled")
    rows: dict[str, dict[str, list[Score]]] = {mode: {} for mode in modes}
    for number in range(scenes):
        scene = held_out_scene(number, views=views, times=times, size=size)
        copies: dict[str, Score] = {}  # the same in all modes that give both references
        for mode in modes:
            known = known_cells(mode, scene)
            made = fill(
                generator, scene, mode, steps=steps, seed=number, reconstructor=reconstructor
            )
            if sheets is not None and number < SHEETS:
                write_sheet(sheets / f"{mode}-{number}.png", scene, known, made)
            for method, frames in made.items():
                if method in ("nearest", "blend"):
                    if method not in copies:
                        copies[method] = score(frames, scene, known, lpips)
                    found = copies[method]
                else:
                    found = score(frames, scene, known, lpips)
                rows[mode].setdefault(method, []).append(found)
        if on_scene is not None:
            on_scene(number + 1, scenes)
    return {
        mode: {
            method: {key: float(np.mean([s[key] for s in found])) for key in found[0]}
            for method, found in methods.items()
        }
        for mode, methods in rows.items()
    }


def write_sheet(path: Path, scene: HeldOut, known: np.ndarray, made: dict[str, np.ndarray]) -> None:
    """A contact sheet: the truth, what the model starts from, what the model makes of it, and the
    error of both, three times enlarged."""
    from viewtime.evaluation.contact_sheet import contact_sheet

    truth = scene.grid.frames
    blocks, errors = {"truth": truth}, {}
    for name in ("prior", "start", "model"):
        if name in made:
            blocks[name] = made[name]
            errors[f"{name}: 3 x error"] = 3 * np.abs(made[name] - truth)
    blocks |= errors
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(path, blocks, marked=known, times=list(range(scene.grid.times)))


def table(results: dict[str, dict[str, Score]]) -> str:
    """The results as a Markdown table; the best PSNR of each mode is bold."""
    names = list(next(iter(next(iter(results.values())).values())))
    lines = [
        "| given | method | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for mode, methods in results.items():
        best = max(methods, key=lambda m: methods[m]["psnr"])
        for method, scores in methods.items():
            cells = [f"{scores[n]:.2f}" if n == "psnr" else f"{scores[n]:.3f}" for n in names]
            if method == best:
                cells[0] = f"**{cells[0]}**"
            lines.append(f"| {mode} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def load_metric(path: Path | None) -> object | None:
    """LPIPS from a file the person names, None without one."""
    if path is None:
        return None
    from viewtime.lpips import load_lpips

    return load_lpips(path)
