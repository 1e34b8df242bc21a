# SPDX-License-Identifier: Apache-2.0
"""The paper's ablations of its reconstructor, repeated at a scale that one machine trains: Tables 8
(camera-token replacement, temporal attention) and S5 (training data).

As in the paper all start from one model of geometry, here a small one that is trained first and
knows no time; then stages and what trains in them are the paper's. To learn cameras from pictures
alone takes far longer than this: the small model is told them, and what counts are those that it
reads back from its camera tokens. Each run is kept in its folder and never repeated. It decides
what is compared; the training is `viewtime.training`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from viewtime.evaluation.paper import spread
from viewtime.reconstructor.load import load_reconstructor
from viewtime.training.reconstructor_recipe import KINDS, Recipe
from viewtime.training.reconstructor_report import plane_psnr, score
from viewtime.training.reconstructor_scenes import held_out_scenes
from viewtime.training.reconstructor_stages import train
from viewtime_formats.atomic import write_json

SEEDS = (0, 1, 2)
SMALL = {
    "dim": 96, "heads": 4, "camera_heads": 4, "head_channels": [24, 32, 48, 48],
    "head_features": 32, "gaussian_log_scale": -4.6, "gaussian_opacity": 0.0, "temporal": "none",
    "rays": True,
}  # fmt: skip
TESTS = {
    "moving": ("dynamic", "scenes"),
    "still": ("static", "scenes"),
    "path": ("static", "tracks"),
}
"""Held-out sets: stage kind and kind of scene (Neural 3D Video, Tanks & Temples and LLFF there)."""
COLUMNS = ("psnr", "ssim")


@dataclass(frozen=True)
class Scale:
    """How long things are trained, at what size, and how many scenes of each set judge them.

    base: steps that learn geometry; static, dynamic: steps of the paper's stages.
    """

    base: int = 2500
    static: int = 400
    dynamic: int = 250
    size: int = 48
    views: int = 4
    times: int = 4
    novel: int = 3
    batch: int = 2
    scenes: int = 16
    precision: str = "no"
    model: dict[str, Any] = field(default_factory=lambda: dict(SMALL))


@dataclass(frozen=True)
class Variant:
    """One line of a table. model: what its dynamic stage is given; static: its still scenes."""

    name: str
    model: dict[str, Any] = field(default_factory=lambda: {"temporal": "layer"})
    static: tuple[str, ...] = KINDS


FULL = Variant("Full model")
COMPONENT_TABLE = (
    Variant("w/o camera-token replacement", {"temporal": "layer", "replace_cameras": False}),
    Variant("w/o temporal attention", {"temporal": "none"}),
    FULL,
)
DATA_TABLE = (*(Variant(f"{kind} alone", static=(kind,)) for kind in KINDS), FULL)
TABLES = {"8": (COMPONENT_TABLE, ("moving",)), "S5": (DATA_TABLE, tuple(TESTS))}
"""Variants of each table, and the sets they are judged on."""


def train_base(folder: Path, scale: Scale) -> Path:
    """Weights of depth and cameras that all variants start from."""
    return train(_recipe(folder / "base", scale, 0, "fresh", scale.model, [
        {"kind": "geometry", "steps": scale.base, "batch": 8, "peak_rate": 1e-3, "rays": 1.0},
    ]))  # fmt: skip


def train_static(folder: Path, base: Path, variant: Variant, seed: int, scale: Scale) -> Path:
    """A Gaussian head for still scenes. What a variant changes over time has no part in it, so
    variants with the same scenes share it."""
    recipe = _recipe(
        folder / f"static-{'-'.join(variant.static)}-{seed}", scale, seed, str(base), {},
        [{"kind": "static", "steps": scale.static, "batch": scale.batch, "peak_rate": 2e-4,
          "views": scale.views, "novel": scale.novel, "rays": 1.0}],
        static=variant.static,
    )  # fmt: skip
    return train(recipe)


def train_dynamic(folder: Path, static: Path, variant: Variant, seed: int, scale: Scale) -> Path:
    """Temporal layers, where the variant has some, and the head, on moving and still scenes."""
    return train(_recipe(
        folder / f"{_slug(variant)}-{seed}", scale, seed, str(static), variant.model,
        [_dynamic(scale)], static=variant.static,
    ))  # fmt: skip


def judge(weights: Path, test: str, scale: Scale) -> dict[str, float]:
    """Mean errors (see `reconstructor_report.score`) on a held-out set of TESTS."""
    model = load_reconstructor(weights)
    recipe, found = _test_recipe(scale, test), []
    for n in range(scale.scenes):
        scenes = held_out_scenes(recipe, recipe.stages[0], n, kind=TESTS[test][1], with_rays=True)
        found.append(score(model, scenes)[0])
    return {name: float(np.mean([f[name] for f in found])) for name in found[0]}


def naive(test: str, scale: Scale) -> float:
    """PSNR of what needs no model: the nearest picture on a plane, with the true cameras."""
    recipe = _test_recipe(scale, test)
    return float(np.mean([
        plane_psnr(held_out_scenes(recipe, recipe.stages[0], n, kind=TESTS[test][1]))
        for n in range(scale.scenes)
    ]))  # fmt: skip


def run_table(
    name: str, folder: Path, scale: Scale, say: Callable[[str], None] = print,
    seeds: tuple[int, ...] = SEEDS, sets: tuple[str, ...] | None = None,
) -> dict[str, list[dict[str, float]]]:  # fmt: skip
    """Train and judge all of a table's variants with every seed; rows by variant, "set metric".

    A moving set is judged by the weights of the dynamic stage, a still one by those of the static.
    sets: some of the table's alone; without a moving one no dynamic stage is trained.
    """
    variants, tests = TABLES[name][0], sets or TABLES[name][1]
    base = train_base(folder, scale)
    rows: dict[str, list[dict[str, float]]] = {}
    for variant in variants:
        for seed in seeds:
            say(f"table {name}: {variant.name}, seed {seed}")
            static = train_static(folder, base, variant, seed, scale)
            weights = {"static": static}
            if any(TESTS[test][0] == "dynamic" for test in tests):
                weights["dynamic"] = train_dynamic(folder, static, variant, seed, scale)
            scores = {}
            for test in tests:
                kept = weights[TESTS[test][0]]
                path = kept.parent / f"{test}.json"
                if not path.exists():
                    write_json(path, judge(kept, test, scale))
                for metric, value in json.loads(path.read_text(encoding="utf-8")).items():
                    scores[f"{test} {metric}"] = value
            rows.setdefault(variant.name, []).append(scores)
    return rows


def markdown(rows: dict[str, list[dict[str, float]]], plane: dict[str, float]) -> str:
    """Mean and standard deviation over the seeds; the best PSNR of each set is bold.

    plane: PSNR per set of what needs no model (`naive`).
    """
    tests = list(plane)
    columns = [f"{test} {metric.upper()}" for test in tests for metric in COLUMNS]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    best = {
        t: max(rows, key=lambda r: np.mean([s[f"{t} psnr"] for s in rows[r]]))  # noqa: B023
        for t in tests
    }
    for name, scores in rows.items():
        cells = []
        for t in tests:
            p, s = ([x[f"{t} {metric}"] for x in scores] for metric in COLUMNS)
            text = f"{np.mean(p):.2f} ± {spread(p)}"
            cells += [f"**{text}**" if best[t] == name else text, f"{np.mean(s):.3f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    cells = [cell for t in tests for cell in (f"{plane[t]:.2f}", "")]
    lines.append("| Nearest picture on a plane, true cameras | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _dynamic(scale: Scale) -> dict[str, Any]:
    # A rate above the paper's 2e-5: these runs are 20 times shorter.
    return {"kind": "dynamic", "steps": scale.dynamic, "batch": 1, "peak_rate": 2e-4,
            "views": scale.views, "times": scale.times, "novel": scale.novel,
            "still": 0.3, "rays": 1.0}  # fmt: skip


def _recipe(
    run: Path, scale: Scale, seed: int, base: str, model: dict[str, Any],
    stages: list[dict[str, Any]], static: tuple[str, ...] = KINDS,
) -> Recipe:  # fmt: skip
    head = {"gaussian_head": "residual", "size": scale.size} if base == "fresh" else {}
    return Recipe.from_dict({
        "folder": str(run), "base": base, "model": {**head, **model}, "stages": stages,
        "static": static, "dynamic": ["scenes"], "height": scale.size, "width": scale.size,
        "precision": scale.precision, "read_back": True, "seed": seed, "average": 0.99,
        "held_out": 1, "log_every": 50, "checkpoint_every": 200, "sample_every": 1_000_000,
    })  # fmt: skip


def _test_recipe(scale: Scale, test: str) -> Recipe:
    stage = _dynamic(scale)
    if TESTS[test][0] == "static":
        stage = {**stage, "kind": "static", "times": 1}
    return _recipe(Path("unused"), scale, 0, "fresh", scale.model, [stage])


def _slug(variant: Variant) -> str:
    words = [f"{key}-{value}" for key, value in sorted(variant.model.items())]
    return "-".join(["dynamic", *words, *variant.static])
