# SPDX-License-Identifier: Apache-2.0
"""Times the bundled generator on a CPU: whole grids as a run makes them, and its forward pass.

The goal (2 cores): 8 x 13 frames of 128 px, 8 steps, in under 20 s. A run takes fewer steps than
asked where the model says that more do no good (`steps_with_prior`), so both are timed: what a run
takes, and every step. Run it on an idle machine, from the repository; about three minutes:

    python benchmarks/generator.py --threads 2 --out benchmarks/results/generator-cpu.md

`--dry-run` runs every line at tiny sizes; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch

GOAL_SECONDS = 20.0
GIVEN = ("both references", "and depth", "no reference")
PARTS = ("reprojection", "generation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled", help="name or folder (default bundled)")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--times", type=int, default=13)
    parser.add_argument("--size", type=int, default=128, help="pixels, square")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes")
    parser.add_argument("--peak", choices=GIVEN, help="run this once alone; print its peak memory")
    options = parser.parse_args()
    if options.dry_run:
        options.views, options.times, options.size, options.rounds = 2, 3, 32, 1
    torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(peak(options)))
        return
    name = f"{options.views} x {options.times} frames of {options.size} px"
    lines = [f"# The generator on a CPU: {name}", "", *report.state(options.threads), ""]
    if options.dry_run:
        lines += ["**A dry run at tiny sizes: no figure here means anything.**", ""]
    lines += [*forward(options), "", *whole(options)]
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def load(options: argparse.Namespace) -> Any:
    from viewtime.generator.load import load_generator

    return load_generator(options.model)


def scene(options: argparse.Namespace, given: str, generator: Any) -> tuple[Any, Callable[[], Any]]:
    """Grid with what is given, and a call that makes its prior (None without depth)."""
    from viewtime.evaluation.generator import held_out_scene
    from viewtime.generator.prior import only_references, reprojection_prior

    made = held_out_scene(0, views=options.views, times=options.times, size=options.size)
    grid = only_references(made.grid, made.fixed_view, made.freeze_time)
    if given == "no reference":
        grid = replace(grid, known=np.zeros_like(grid.known), frames=np.zeros_like(grid.frames))
    if given != "and depth":
        return replace(grid, depth=None), lambda: None
    return grid, partial(
        reprojection_prior, grid, made.rig, made.fixed_view, made.freeze_time,
        evidence=generator.takes_evidence,
    )  # fmt: skip


def once(generator: Any, grid: Any, prior: Callable[[], Any], steps: int) -> dict[str, float]:
    """Seconds of each part of filling a grid, and the steps that were taken."""
    from viewtime.generator.generation import generate

    taken: list[int] = []
    began = time.perf_counter()
    known = prior()
    between = time.perf_counter()
    generate(generator, grid, prior=known, steps=steps, on_step=lambda step, *_: taken.append(step))
    ended = time.perf_counter()
    return {"reprojection": between - began, "generation": ended - between, "steps": len(taken)}


def peak(options: argparse.Namespace) -> dict[str, float]:
    """Bytes that this process held at its fullest, and before it filled the grid."""
    generator = load(options)
    grid, prior = scene(options, options.peak, generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    once(generator, grid, prior, 1)  # further steps take no more
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"before": before * 1024, "peak": after * 1024}


def whole(options: argparse.Namespace) -> list[str]:
    """Whole grids: as a run makes them, and with every step taken."""
    generator = load(options)
    every = load(options)
    every.model.config = replace(every.model.config, steps_with_prior=0)
    made: dict[str, list[dict[str, float]]] = {}

    def timed(name: str, model: Any, given: str) -> Callable[[], float]:
        grid, prior = scene(options, given, model)

        def run() -> float:
            found = once(model, grid, prior, options.steps)
            made.setdefault(name, []).append(found)
            return sum(found[part] for part in PARTS)

        return run

    runs = {f"{given}, as a run": timed(f"{given}, as a run", generator, given) for given in GIVEN}
    name = "both references, every step"
    runs[name] = timed(name, every, GIVEN[0])
    log: list[str] = []
    taken = report.interleaved(runs, options.rounds, log.append)
    rows = []
    for name, seconds in taken.items():
        parts = [report.median([found[part] for found in made[name][1:]]) for part in PARTS]
        steps = made[name][-1]["steps"]
        total = report.median(seconds)
        rows.append([
            name, f"{steps:.0f}", *(f"{part:.2f}" for part in parts), f"{parts[1] / steps:.2f}",
            f"{total:.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
            "met" if total < GOAL_SECONDS else f"missed, {total / GOAL_SECONDS:.1f} x",
        ])  # fmt: skip
    head = [
        f"{options.steps} steps asked", "taken", "reprojection s", "generation s", "s/step",
        "in all s", f"under {GOAL_SECONDS:.0f} s",
    ]  # fmt: skip
    lines = ["## Whole grids", "", *report.table(head, rows), *log, ""]
    for given in GIVEN[1:2] if options.dry_run else GIVEN[:2]:
        command = [sys.executable, __file__, "--peak", given, "--model", options.model]
        for word in ("views", "times", "size", "threads"):
            command += [f"--{word}", str(getattr(options, word))]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        lines.append(
            f"- peak memory, {given}: {found['peak'] / 2**20:.0f} MiB, "
            f"{(found['peak'] - found['before']) / 2**20:.0f} of it for the grid"
        )
    return lines


def forward(options: argparse.Namespace) -> list[str]:
    """One forward pass of the same weights: fused against interleaved sequential attention."""
    from viewtime.generator.architectures import install
    from viewtime.generator.generation import make_conditions
    from viewtime.generator.sampler import linear_schedule, sample

    generator = load(options)
    grid, _ = scene(options, GIVEN[0], generator)
    conditions = make_conditions(generator, grid, None)
    noise = torch.randn(conditions.reference.shape)

    def run(architecture: str) -> float:
        model = generator.model
        install(model.transformer, architecture, model.grid, None)  # the same weights
        began = time.perf_counter()
        sample(model, conditions, noise, linear_schedule(1))
        return time.perf_counter() - began

    log: list[str] = []
    names = ("fused", "sequential")
    runs = {name: partial(run, name) for name in names}
    taken = report.interleaved(runs, options.rounds, log.append)
    fused, sequential = (report.median(taken[name]) for name in names)
    rows = [
        [name, f"{report.median(taken[name]):.2f} ({report.spread(taken[name])} ms)"]
        for name in names
    ]
    return [
        "## One step", "", f"**fused / sequential = {fused / sequential:.2f}**", "",
        *report.table(["attention", "s/step"], rows), *log,
    ]  # fmt: skip


if __name__ == "__main__":
    main()
