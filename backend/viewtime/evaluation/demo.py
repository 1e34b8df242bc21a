# SPDX-License-Identifier: Apache-2.0
"""The demo's one-page summary: both routes against frames that Blender rendered and no job saw.
Writes summary.json, summary.md and contact_sheet.png into its folder; changes nothing else."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from viewtime.evaluation.contact_sheet import contact_sheet
from viewtime.evaluation.error_shares import error_shares
from viewtime.evaluation.metrics import mean_psnr
from viewtime.gaussians import render
from viewtime.generator.baselines import blend_references, nearest_reference
from viewtime.generator.prior import reprojection_prior
from viewtime.grid import FrameGrid, grid_from_capture, read_grid
from viewtime_formats.atomic import atomic_path, write_json
from viewtime_formats.capture import read_capture
from viewtime_formats.rig import Rig
from viewtime_formats.splats import SplatSequence, read_sequence


@dataclass(frozen=True)
class Demo:
    """What the demo left: three captures, two jobs and its own stage times."""

    truth: FrameGrid
    references: FrameGrid
    held_out: FrameGrid
    held_out_times: list[int]
    rig: Rig
    held_out_rig: Rig
    fixed_view: int
    freeze_time: int
    told: dict[str, Any]


def read_demo(out: Path, size: int) -> Demo:
    """Read the demo's captures at `size` px."""
    grid = read_capture(out / "captures" / "grid")
    references = read_capture(out / "captures" / "references")
    held_out = read_capture(out / "captures" / "held_out")
    told = json.loads((out / "demo.json").read_text())
    if grid.rig is None or held_out.rig is None:
        raise ValueError(f"{out}: the demo's captures carry no rig")
    if references.fixed_view is None or references.freeze_time is None:
        raise ValueError(f"{out}: the reference capture lacks its fixed view or its freeze time")
    truth = grid_from_capture(grid, size)
    others = grid_from_capture(held_out, size)
    height, width = truth.frames.shape[-2:]
    return Demo(
        truth=truth,
        references=grid_from_capture(references, size),
        held_out=others,
        held_out_times=[
            (held_out.frame_start + t * held_out.frame_step - grid.frame_start) // grid.frame_step
            for t in range(held_out.times)
        ],
        rig=grid.rig.resized(width, height),
        held_out_rig=held_out.rig.resized(width, height),
        fixed_view=references.fixed_view,
        freeze_time=references.freeze_time,
        told=told,
    )


def background_of(sequence: SplatSequence) -> tuple[float, float, float]:
    """What stands behind the splats; black when the sequence does not say."""
    red, green, blue = (0.0, 0.0, 0.0) if sequence.background is None else sequence.background
    return float(red), float(green), float(blue)


def rerender(sequence: SplatSequence, rig: Rig, times: list[int]) -> np.ndarray:
    """Splats seen from every camera of the rig: (V, len(times), 3, H, W), sRGB in [0, 1]."""
    background = background_of(sequence)
    frames = []
    for t in times:
        step = sequence.step(t)
        frames.append(
            [
                render(step, camera, background=background).color.transpose(2, 0, 1)
                for camera in rig.cameras
            ]
        )
    return np.asarray(frames, dtype=np.float32).swapaxes(0, 1)


def held_out_psnr(sequence: SplatSequence, demo: Demo) -> float:
    """Mean PSNR at the cameras between the rig's, over their timesteps."""
    frames = rerender(sequence, demo.held_out_rig, demo.held_out_times)
    return mean_psnr(frames, demo.held_out.frames, np.ones(frames.shape[:2], bool))


def captured_route(out: Path, demo: Demo) -> dict[str, Any]:
    job = json.loads((out / "jobs" / "captured" / "run.json").read_text())
    sequence = read_sequence(out / "jobs" / "captured" / "splats")
    # Blender gave depth at the rig's cameras, so that is where the error can be placed.
    shown = rerender(sequence, demo.rig, demo.held_out_times)
    assert demo.truth.depth is not None
    times = demo.held_out_times
    return {
        "heldout_psnr": held_out_psnr(sequence, demo),
        "rig_psnr": mean_psnr(
            shown, demo.truth.frames[:, times], np.ones(shown.shape[:2], dtype=bool)
        ),
        "error_shares": error_shares(
            shown, demo.truth.frames[:, times], demo.truth.depth[:, times]
        ),
        "heldout_cells": int(np.prod(demo.held_out.known.shape)),
        "gaussians_per_step": job["gaussians_per_step"],
        "seconds": job["seconds"],
    }


def generated_route(
    out: Path, demo: Demo, without_prior: Callable[[FrameGrid], np.ndarray]
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Figures of the generated route over the cells that the job was not given.

    Returns:
        the figures; the generated grid and the re-rendered splats, both (V, T, 3, H, W).
    """
    job = json.loads((out / "jobs" / "generated" / "run.json").read_text())
    sequence = read_sequence(out / "jobs" / "generated" / "splats")
    generated = read_grid(out / "jobs" / "generated" / "grid").frames
    truth, unseen = demo.truth.frames, ~demo.references.known
    prior = reprojection_prior(
        demo.references,
        demo.rig,
        demo.fixed_view,
        demo.freeze_time,
        background=background_of(sequence),
    )
    copies = (demo.references, demo.fixed_view, demo.freeze_time)
    splats = rerender(sequence, demo.rig, list(range(truth.shape[1])))
    started = time.monotonic()
    alone = without_prior(demo.references)
    seconds_alone = time.monotonic() - started
    figures = {
        "grid_psnr": mean_psnr(generated, truth, unseen),
        "prior_psnr": mean_psnr(prior.frames, truth, unseen),
        "model_without_prior_psnr": mean_psnr(alone, truth, unseen),
        "baseline_nearest_psnr": mean_psnr(nearest_reference(*copies), truth, unseen),
        "baseline_blend_psnr": mean_psnr(blend_references(*copies), truth, unseen),
        "splat_psnr": mean_psnr(splats, truth, unseen),
        "heldout_psnr": held_out_psnr(sequence, demo),
        "unseen_cells": int(unseen.sum()),
        "size": int(truth.shape[-1]),
        "gaussians_per_step": job["gaussians_per_step"],
        "seconds": job["seconds"],
        "seconds_model_without_prior": round(seconds_alone, 2),
    }
    return figures, generated, splats


def summary_text(summary: dict[str, Any]) -> str:
    """The page for people."""
    captured, generated = summary["routes"]["captured"], summary["routes"]["generated"]
    gain = generated["grid_psnr"] - generated["prior_psnr"]
    verdict = (
        f"The model adds {gain:+.2f} dB to its prior."
        if gain >= 0
        else f"The model LOSES {-gain:.2f} dB to its own prior."
    )
    best = max(generated["baseline_nearest_psnr"], generated["baseline_blend_psnr"])
    rows = [
        ("nearest reference frame, repeated", generated["baseline_nearest_psnr"]),
        ("row's and column's frame, blended", generated["baseline_blend_psnr"]),
        ("prior alone (references reprojected)", generated["prior_psnr"]),
        ("model without prior", generated["model_without_prior_psnr"]),
        ("**model with prior (what the job wrote)**", generated["grid_psnr"]),
        ("the same cells re-rendered from the splats", generated["splat_psnr"]),
    ]
    stages = "\n".join(
        f"| {name} | {seconds:.1f} |" for name, seconds in summary["seconds"].items()
    )

    def limits(route: dict[str, Any]) -> str:
        share = {name: f"{100 * value:.0f}%" for name, value in route["error_shares"].items()}
        return (
            f"from the rig's own cameras it is {route['rig_psnr']:.2f} dB, so unseen surfaces cost "
            f"{route['rig_psnr'] - route['heldout_psnr']:.2f} dB and the rest is resolution: "
            f"{share['surfaces']} of the squared error lies on textured surfaces (one view's "
            f"pixels drawn in another), {share['depth_edges']} at depth edges and "
            f"{share['sky_outline']} along the sky, where a pixel mixes two colours."
        )

    def job(route: dict[str, Any]) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in route["seconds"].items())

    def counts(route: dict[str, Any]) -> str:
        return f"{min(route['gaussians_per_step'])} to {max(route['gaussians_per_step'])}"

    return f"""# Viewtime demo

{summary["views"]} views x {summary["times"]} timesteps, Blender {summary["blender"]}, \
{summary["seconds_total"]:.0f} s in all after the installs.

![contact sheet](contact_sheet.png)

Framed cells were given to the generated route; every other cell it had to make.

## Captured geometry
Blender's cameras, pixels and depth for the whole grid; no learned weight.
- **{captured["heldout_psnr"]:.2f} dB** over {captured["heldout_cells"]} pictures from \
cameras between the rig's that no job saw, at {summary["captured_size"]} px.
- {counts(captured)} Gaussians a timestep; {job(captured)}.
- What limits it: {limits(captured)}

## Generated
Given: the fixed-view clip and the freeze-time frames with their depth. PSNR over the \
{generated["unseen_cells"]} unseen cells at {generated["size"]} px:

| | dB |
|---|---|
{chr(10).join(f"| {name} | {value:.2f} |" for name, value in rows)}

{verdict} It ends {generated["grid_psnr"] - best:.2f} dB over the better naive baseline.
- {counts(generated)} Gaussians a timestep; {job(generated)}; from the held-out cameras \
{generated["heldout_psnr"]:.2f} dB.

## Seconds by stage
| stage | s |
|---|---|
{stages}

A job was cancelled on the way: it ended {summary["cancel_seconds"]:.2f} s after the request and \
left nothing behind. The .blend holds {summary["blend_bytes"] / 1e6:.1f} MB; splats stay outside it.
"""


def evaluate(out: Path) -> dict[str, Any]:
    """Measure the demo in `out` and write summary.json, summary.md and contact_sheet.png.

    Raises:
        ViewtimeError: when a capture, grid or sequence is missing or damaged.
    """
    started = time.monotonic()
    full = read_demo(out, read_capture(out / "captures" / "grid").width)
    captured = captured_route(out, full)
    job_grid = read_grid(out / "jobs" / "generated" / "grid")
    small = read_demo(out, job_grid.frames.shape[-1])
    options = json.loads((out / "jobs" / "generated" / "run.json").read_text())["options"]

    def without_prior(references: FrameGrid) -> np.ndarray:
        from viewtime.generator import generate, load_generator

        return generate(
            load_generator(options["generator"]),
            references,
            prior=None,
            steps=options["steps"],
            seed=options["seed"],
        )

    generated, frames, splats = generated_route(out, small, without_prior)
    seconds = dict(full.told["seconds"])
    seconds["evaluate"] = round(time.monotonic() - started, 2)
    summary = {
        "routes": {"captured": captured, "generated": generated},
        "views": full.truth.frames.shape[0],
        "times": full.truth.frames.shape[1],
        "captured_size": full.truth.frames.shape[-1],
        "seconds": seconds,
        "seconds_total": full.told["seconds_before_evaluation"] + seconds["evaluate"],
        "cancel_seconds": full.told["cancel_seconds"],
        "splats_by_timestep": full.told["splats_by_timestep"],
        "blend_bytes": full.told["blend_bytes"],
        "blender": full.told["blender"],
        "psnr": "mean over cells of each cell's PSNR in dB, sRGB in [0, 1]",
    }
    times = list(range(0, summary["times"], max(1, (summary["times"] - 1) // 4)))
    baked = rerender(
        read_sequence(out / "jobs" / "captured" / "splats"),
        small.rig,
        list(range(summary["times"])),
    )
    contact_sheet(
        out / "contact_sheet.png",
        {
            "truth (Blender)": small.truth.frames,
            "generated": frames,
            "splats of the generated grid": splats,
            "splats of captured geometry": baked,
        },
        marked=small.references.known,
        times=times,
    )
    write_json(out / "summary.json", summary)
    with atomic_path(out / "summary.md") as part:
        part.write_text(summary_text(summary), encoding="utf-8")
    return summary


def main() -> int:
    out = Path(sys.argv[1])
    summary = evaluate(out)
    captured, generated = summary["routes"]["captured"], summary["routes"]["generated"]
    print(
        f"captured: {captured['heldout_psnr']:.2f} dB held out; "
        f"generated: {generated['grid_psnr']:.2f} dB (prior {generated['prior_psnr']:.2f}, "
        f"nearest {generated['baseline_nearest_psnr']:.2f}, "
        f"blend {generated['baseline_blend_psnr']:.2f}). {out / 'summary.md'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
