# SPDX-License-Identifier: Apache-2.0
"""The paper's comparisons of generators, repeated at a scale that one CPU core can train: Tables 2
(architectures), S1 (positions), 5 (data) and S2 (steps). And two of ours: how references enter, and
what known geometry adds.

As in the paper, every variant is fine-tuned from one video model, with equal steps and data; here
that model is small, sees 32 px pictures, and is trained first. Each run is kept in its folder and
never repeated. It decides what is compared; the training is `viewtime.training`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from viewtime.data.synthetic import sample_grid
from viewtime.evaluation.metrics import psnr, ssim
from viewtime.evaluation.paper import beside_the_paper, spread
from viewtime.generator.baselines import blend_references, nearest_reference
from viewtime.generator.generation import generate
from viewtime.generator.load import Generator, load_generator
from viewtime.generator.prior import Prior, only_references, reprojection_prior
from viewtime.grid import FrameGrid
from viewtime.training.examples import HELD_OUT_SEED
from viewtime.training.fine_tuning import FRESH, FineTuning, Phase, train
from viewtime.training.mixture import PAPER_SHARES, Mixture, draw_scene
from viewtime_formats.atomic import write_json

VIEWS = TIMES = 4
SIZE, PATCH = 32, 4
SEEDS = (0, 1, 2)
TESTS = ("objects", "physics")
"""Held-out sets: single objects before white (Objaverse's part), scenes on a ground (NVIDIA's)."""
MODEL = {"layers": 4, "heads": 2, "head_dim": 64, "ffn": 384, "patch_size": (1, PATCH, PATCH)}


@dataclass(frozen=True)
class Scale:
    """How long things are trained, and on how many scenes of each set they are judged."""

    base_steps: int = 2000
    steps: int = 300
    batch: int = 2
    scenes: int = 16
    sample_steps: int = 8


@dataclass(frozen=True)
class Variant:
    """One line of a table."""

    name: str
    model: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=lambda: dict(PAPER_SHARES))


ARCHITECTURE_TABLE = (
    Variant("Sequential (interleaved)", {"architecture": "sequential"}),
    Variant("Sequential (cross-view layers added)", {"architecture": "sequential_added"}),
    Variant("Parallel (linear synchronisation)", {"architecture": "parallel"}),
    Variant("Parallel (weighted average)", {"architecture": "parallel_average"}),
    Variant("Fused view-time attention"),
)
POSITION_TABLE = (
    Variant("Learnable view embedding", {"positions": "learned"}),
    Variant("(v + t, x, y)", {"positions": "sum"}),
    Variant("(v T_max + t, x, y)"),
)
DATA_TABLE = (
    Variant("objects", shares={"objects": 1.0}),
    Variant("physics", shares={"physics": 1.0}),
    Variant("homography", shares={"homography": 1.0}),
    Variant("objects + physics", shares={"objects": 2.0, "physics": 1.0}),
    Variant("all", shares={"objects": 2.0, "physics": 1.0, "homography": 1.0}),
)
REFERENCE_TABLE = (
    Variant("Added to the noised latents"),
    Variant("Clean tokens in their place", {"references": "clean"}),
)
TABLES = {
    "2": ARCHITECTURE_TABLE, "S1": POSITION_TABLE, "5": DATA_TABLE, "references": REFERENCE_TABLE,
}  # fmt: skip
NAMES = (*TABLES, "S2", "prior")
STEP_TABLE = (1, 2, 4, 8, 16, 40)


def train_base(folder: Path, scale: Scale) -> Path:
    """The video model that all variants start from: one view, V*T frames, no references."""
    recipe = FineTuning(
        base=FRESH, folder=str(folder / "base"), fresh=MODEL, trainable="all",
        phases=(Phase(VIEWS * TIMES, scale.base_steps),), views=1, batch=scale.batch,
        peak_rate=1e-3, warm_up=100, average=0.995,
        mixture={"references": {"none": 1.0}, "reverse": 0.0,
                 "shares": {"objects": 2.0, "physics": 1.0, "static": 2.0}},
        **_common(scale.base_steps),
    )  # fmt: skip
    weights = folder / "base" / "weights"
    return weights if _finished(folder / "base", scale.base_steps) else train(recipe)


def train_variant(folder: Path, base: Path, variant: Variant, seed: int, scale: Scale) -> Path:
    """Fine-tune a variant from the base; its weights. A finished one is not trained again."""
    run = folder / f"{_slug(variant)}-{seed}"
    recipe = FineTuning(
        base=str(base), folder=str(run), model={**variant.model, "t_max": TIMES},
        phases=(Phase(TIMES, scale.steps),), views=VIEWS, batch=scale.batch, peak_rate=5e-4,
        warm_up=50, average=0.99, seed=seed,
        mixture={"shares": variant.shares, "references": {"both": 1.0}},
        **_common(scale.steps),
    )  # fmt: skip
    return run / "weights" if _finished(run, scale.steps) else train(recipe)


def held_out(kind: str, count: int) -> list[FrameGrid]:
    """Full grids of scenes drawn as training draws them, from numbers that no training reaches: of
    900 million scenes, so that one in ten thousand such sets has a scene that was trained on."""
    mixture = Mixture({kind: 1.0}, {"both": 1.0}, reverse=0.0)
    return [
        FrameGrid(
            mixture.grid(
                HELD_OUT_SEED + n, seed=7, views=VIEWS, times=TIMES, height=SIZE, width=SIZE
            ).frames,
            _both(),
        )
        for n in range(count)
    ]


def geometry(kind: str, number: int) -> Prior:
    """The references of a held-out grid, reprojected with the depth and the rig of its scene."""
    rng = np.random.default_rng((7, HELD_OUT_SEED + number, 3))  # as Mixture.grid draws them
    rng.choice([kind], p=[1.0])
    scene, step = draw_scene(rng)
    grid, rig = sample_grid(scene, VIEWS, TIMES, SIZE, frame_step=step, ground=kind == "physics")
    return reprojection_prior(only_references(grid, 0, 0), rig, 0, 0)


def judge(
    generator: Generator, scale: Scale, steps: int, *, reproject: bool = False
) -> dict[str, float]:
    """PSNR (dB) and SSIM per test set, and seconds per grid.

    reproject: keep reprojected pixels by latent replacement; else no geometry is told.
    """
    result: dict[str, float] = {}
    started = time.perf_counter()
    for kind in TESTS:
        scores = []
        for number, truth in enumerate(held_out(kind, scale.scenes)):
            prior = geometry(kind, number) if reproject else None
            made = generate(generator, _given(truth), prior=prior, steps=steps, seed=number)
            scores.append(_scores(made, truth))
        result |= _means(kind, scores)
    result["seconds"] = (time.perf_counter() - started) / (len(TESTS) * scale.scenes)
    return result


def naive(scale: Scale) -> dict[str, dict[str, float]]:
    """What copying and mixing references score on the same scenes."""
    made: dict[str, dict[str, float]] = {}
    for name, method in (("Nearest reference", nearest_reference), ("Blend", blend_references)):
        made[name] = {}
        for kind in TESTS:
            scores = [_scores(method(_given(g), 0, 0), g) for g in held_out(kind, scale.scenes)]
            made[name] |= _means(kind, scores)
    return made


def prior_alone(scale: Scale) -> dict[str, dict[str, float]]:
    """What the reprojected references score on the same scenes, their holes filled smoothly."""
    made: dict[str, float] = {}
    for kind in TESTS:
        grids = enumerate(held_out(kind, scale.scenes))
        scores = [_scores(geometry(kind, n).frames, truth) for n, truth in grids]
        made |= _means(kind, scores)
    return {"The prior alone": made}


def run_table(
    name: str, folder: Path, scale: Scale, say: Callable[[str], None] = print
) -> dict[str, list[dict[str, float]]]:
    """Train and judge all of a table's variants with every seed; rows by variant.

    Table S2 trains nothing of its own: it is the fused variant of Table 2 at other step counts.
    Nor does "prior": it is the same variant, with and without reprojected pixels to keep.
    """
    base = train_base(folder, scale)
    rows: dict[str, list[dict[str, float]]] = {}
    if name == "S2":
        variant = ARCHITECTURE_TABLE[-1]
        for steps in STEP_TABLE:
            for seed in SEEDS:
                weights = train_variant(folder, base, variant, seed, scale)
                rows.setdefault(f"{steps} steps", []).append(
                    _kept(weights.parent / f"steps-{steps}.json", weights, scale, steps)
                )
        return rows
    if name == "prior":
        for seed in SEEDS:
            weights = train_variant(folder, base, ARCHITECTURE_TABLE[-1], seed, scale)
            for row, file, reproject in (
                ("Without geometry", "scores.json", False),
                ("Reprojected pixels kept (latent replacement)", "kept-pixels.json", True),
            ):
                rows.setdefault(row, []).append(
                    _kept(weights.parent / file, weights, scale, scale.sample_steps, reproject)
                )
        return rows
    for variant in TABLES[name]:
        for seed in SEEDS:
            say(f"table {name}: {variant.name}, seed {seed}")
            weights = train_variant(folder, base, variant, seed, scale)
            rows.setdefault(variant.name, []).append(
                _kept(weights.parent / "scores.json", weights, scale, scale.sample_steps)
            )
    return rows


def markdown(rows: dict[str, list[dict[str, float]]], extra: dict[str, dict[str, float]]) -> str:
    """Mean and standard deviation over the seeds; the best PSNR of each set is bold."""
    columns = [f"{kind} {metric}" for kind in TESTS for metric in ("PSNR", "SSIM")]
    lines = [
        "| | " + " | ".join(columns) + " | s/grid |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    best = {
        kind: max(rows, key=lambda r: np.mean([s[f"{kind}_psnr"] for s in rows[r]]))
        for kind in TESTS
    }
    for name, scores in rows.items():
        cells = []
        for kind in TESTS:
            p, s = ([x[f"{kind}_{m}"] for x in scores] for m in ("psnr", "ssim"))
            text = f"{np.mean(p):.2f} ± {spread(p)}"
            cells += [f"**{text}**" if best[kind] == name else text, f"{np.mean(s):.3f}"]
        seconds = np.mean([x["seconds"] for x in scores])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds:.2f} |")
    for name, score in extra.items():
        cells = [f"{score[f'{k}_{m}']:.{d}f}" for k in TESTS for m, d in (("psnr", 2), ("ssim", 3))]
        lines.append(f"| {name} | " + " | ".join(cells) + " | |")
    return "\n".join(lines)


def report(name: str, folder: Path, scale: Scale, say: Callable[[str], None] = print) -> str:
    """A table as Markdown, what copying scores below it, and the paper's figures beside ours."""
    rows = run_table(name, folder, scale, say)
    extra = naive(scale) | (prior_alone(scale) if name == "prior" else {})
    return f"{markdown(rows, extra)}\n\n{beside_the_paper(name, rows)}"


def _common(steps: int) -> dict[str, Any]:
    return {
        "height": SIZE, "width": SIZE, "shift": 1.0, "precision": "no", "checkpointing": False,
        "log_every": 50, "checkpoint_every": 200, "sample_every": steps,
    }  # fmt: skip


def _finished(run: Path, steps: int) -> bool:
    from safetensors import safe_open

    checkpoint = run / "train.safetensors"
    if not checkpoint.exists() or not (run / "weights" / "config.json").exists():
        return False
    with safe_open(checkpoint, "pt") as file:
        return int((file.metadata() or {})["step"]) >= steps


def _kept(
    path: Path, weights: Path, scale: Scale, steps: int, reproject: bool = False
) -> dict[str, float]:
    """Scores from the file, or judged now and written there."""
    if not path.exists():
        write_json(path, judge(load_generator(weights), scale, steps, reproject=reproject))
    return dict(json.loads(path.read_text()))


def _slug(variant: Variant) -> str:
    parts = [*variant.model.values()] or ["fused"]
    if variant.shares != PAPER_SHARES:
        parts += ["on", *variant.shares]
    return "-".join(parts)


def _both() -> np.ndarray:
    known = np.zeros((VIEWS, TIMES), bool)
    known[0] = known[:, 0] = True
    return known


def _given(truth: FrameGrid) -> FrameGrid:
    frames = np.where(truth.known[..., None, None, None], truth.frames, np.float32(0))
    return FrameGrid(frames, truth.known)


def _scores(frames: np.ndarray, truth: FrameGrid) -> tuple[float, float]:
    pairs = [(frames[v, t], truth.frames[v, t]) for v, t in np.argwhere(~truth.known)]
    return float(np.mean([psnr(*p) for p in pairs])), float(np.mean([ssim(*p) for p in pairs]))


def _means(kind: str, scores: list[tuple[float, float]]) -> dict[str, float]:
    p, s = (float(np.mean(part)) for part in zip(*scores))
    return {f"{kind}_psnr": p, f"{kind}_ssim": s}
