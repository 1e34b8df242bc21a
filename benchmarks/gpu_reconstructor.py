# SPDX-License-Identifier: Apache-2.0
"""The sections of `gpu.py` for the reconstructor: grids of the paper's sizes, and gsplat beside our
own rasteriser. Random weights, made on the device; it never reads a checkpoint.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import report
import torch
from gpu_common import Run, attempt, fill, peak_bytes, record_goal, seconds

HEIGHT, WIDTH = 350, 518
ROUNDS = 5
# Seconds since the group's start by which each section is over, those before it with it.
RECONSTRUCTED, DRAWN = 240.0, 330.0


@dataclass(frozen=True)
class Case:
    """A grid. Goals in seconds and GB (0: none); the paper's figures on an A100 as text; budget:
    GB that the model is told to keep to (0: none), which picks its chunks."""

    views: int
    times: int
    seconds: float
    gigabytes: float
    paper: str
    budget: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.views} views x {self.times} timesteps"


CASES = (
    Case(2, 1, 0, 0, "0.18 s, 7.2 GB"),
    Case(2, 4, 0, 0, "0.43 s, 10.3 GB"),
    Case(2, 8, 0, 0, "0.69 s, 13.7 GB"),
    Case(2, 16, 0, 0, "1.23 s, 20.6 GB"),
    Case(4, 1, 0, 0, "0.20 s, 7.9 GB"),
    Case(4, 4, 0.15, 0, "0.65 s, 13.2 GB"),
    Case(4, 8, 0, 0, "1.17 s, 18.5 GB"),
    Case(4, 16, 0, 0, "2.17 s, 32.2 GB"),
    Case(8, 1, 0, 0, "0.27 s, 9.3 GB"),
    Case(8, 4, 0, 0, "1.30 s, 18.9 GB"),
    Case(8, 8, 0, 0, "2.42 s, 31.0 GB"),
    Case(8, 16, 1.5, 40, "5.70 s, 60.2 GB", budget=38),
    Case(16, 1, 0, 0, "0.56 s, 10.8 GB"),
    Case(16, 4, 0, 0, "2.74 s, 25.0 GB"),
    Case(16, 8, 0, 0, "5.25 s, 43.1 GB"),
    Case(16, 16, 4, 60, "out of memory", budget=57),
)
"""All cells of the paper's Table S3; three of them have goals of ours."""


def reconstruction(run: Run) -> list[str]:
    """Frames to Gaussians, full-size VGGT with temporal layers and Gaussian head, 350 x 518"""
    log: list[str] = []
    cases = (Case(2, 2, 0, 0, "none", budget=1),) if run.dry else CASES
    model = attempt(run, log, "the model", RECONSTRUCTED, 8e9 * (not run.dry), partial(made, run))
    rows, goals = [], []
    for case in cases if model is not None else ():
        needs = (case.budget + 2) * 1e9 if not run.dry else 0.0
        found = attempt(
            run, log, case.name, RECONSTRUCTED, needs, partial(measure, run, model, case)
        )
        middle = peak = None
        if found is not None:
            taken, bytes_ = found
            middle, peak = report.median(taken), bytes_ / 1e9
            run.data.setdefault("reconstruction", {})[case.name] = {
                "seconds": taken, "peak_bytes": bytes_, "budget_gb": case.budget,
            }  # fmt: skip
            rows.append(
                [case.name, f"{middle:.3f}", report.spread(taken), f"{peak:.1f}",
                 f"{case.budget:g}" if case.budget else "none", case.paper]
            )  # fmt: skip
        for what, most, outcome in (
            ("seconds", case.seconds, middle), ("GB", case.gigabytes, peak),
        ):  # fmt: skip
            if most:
                goals.append("- " + record_goal(run, f"{case.name}: {what}", most, outcome))
    head = ["grid", "s", "fastest to slowest, ms", "peak GB, weights too", "budget, GB",
            "paper, A100"]  # fmt: skip
    lines = [
        f"## {(reconstruction.__doc__ or '').strip()}", "",
        "From frames on the device to Gaussians on the device: trunk in bfloat16, heads in float32 "
        "(convolutions in TF32, torch's default), chunks as the budget asks. Reading frames and "
        "drawing are not in it.",
        "", *(report.table(head, rows) if rows else ["Not measured."]), "",
    ]  # fmt: skip
    return [*lines, *goals, *log]


def made(run: Run) -> Any:
    """A reconstructor of random weights on the device."""
    from viewtime.reconstructor.config import ReconstructorConfig
    from viewtime.reconstructor.load import without_data

    changes: dict[str, Any] = {"temporal": "layer", "gaussian_head": "residual"}
    changes |= {"point_head": False, "track_head": False}
    if run.dry:
        config = ReconstructorConfig.small(**{**changes, "patch": 14, "dim": 32, "depth": 4})
    else:
        config = ReconstructorConfig(**changes)
    model = without_data(config).eval()
    fill(model, run.device)
    return model


def measure(run: Run, model: Any, case: Case) -> tuple[list[float], int]:
    """Seconds of some passes over one grid, and their peak memory in all."""
    from viewtime.reconstructor.splats import activate

    height, width = (28, 42) if run.dry else (HEIGHT, WIDTH)
    generator = torch.Generator(run.device).manual_seed(2)
    shape = (1, case.times, case.views, 3, height, width)
    frames = torch.rand(shape, generator=generator, device=run.device)

    @torch.no_grad()
    def once() -> object:
        prediction = model(frames, trunk_dtype=torch.bfloat16, memory_budget_gb=case.budget or None)
        return activate(model.raw_splats(prediction, frames))

    peak = peak_bytes(run, once, in_all=True)
    timed = {case.name: partial(seconds, run, once)}
    return report.interleaved(timed, ROUNDS, budget=run.left(RECONSTRUCTED))[case.name], peak


def drawing(run: Run) -> list[str]:
    """gsplat beside our own rasteriser, 100,000 Gaussians at 256 px"""
    title = [f"## {(drawing.__doc__ or '').strip()}", ""]
    if not run.dry and importlib.util.find_spec("gsplat") is None:
        return [*title, "Not run: gsplat is not there (pip install gsplat; it compiles itself)."]
    log: list[str] = []
    found = attempt(run, log, "drawing", DRAWN, 0.0, partial(compare, run))
    return [*title, *(found or []), *log]


def compare(run: Run) -> list[str]:
    """Times of both, forward and with gradients, and how far their pictures and gradients differ.
    In a dry run our own rasteriser stands in for gsplat."""
    count, size = (200, 32) if run.dry else (100_000, 256)
    outs: dict[str, list[torch.Tensor]] = {}
    rows = []
    data = run.data.setdefault("drawing", {})
    for name, device in (("gsplat", run.device), ("ours, on the CPU", torch.device("cpu"))):
        forward, both, leaves = scene(count, size, device)
        picture = forward()
        both()
        outs[name] = [picture.cpu(), *(leaf.grad.cpu() for leaf in leaves)]
        own = run if device.type == run.device.type else Run(device, True, run.began)
        times = {"forward": partial(seconds, own, forward), "both": partial(seconds, own, both)}
        taken = report.interleaved(times, ROUNDS)
        data[name] = taken
        rows.append([name, *(report.milliseconds(report.median(taken[k])) for k in times)])
    (drawn, *theirs), (own_picture, *ours) = outs.values()
    off = (drawn - own_picture).abs()
    # An edge of what counts (alpha of 1/255) may fall to either side: a share of pixels differs.
    worst = [((a - b).norm() / b.norm()).item() for a, b in zip(theirs, ours)]
    fields = ("means", "scales", "rotations", "opacities", "colours")
    data["picture_max"], data["gradients_relative"] = off.max().item(), dict(zip(fields, worst))
    return [
        *report.table(["rasteriser", "forward, ms", "forward + backward, ms"], rows), "",
        f"Pictures differ by at most {off.max():.2g} and by {off.mean():.2g} on average (of 1); "
        "gradients, norm of the difference over the norm: "
        + ", ".join(f"{name} {value:.2g}" for name, value in zip(fields, worst)) + ".",
    ]  # fmt: skip


def scene(
    count: int, size: int, device: torch.device
) -> tuple[Callable[[], torch.Tensor], Callable[[], None], list[torch.Tensor]]:
    """Drawing of strewn Gaussians, the same with gradients, and what these are of."""
    from gaussians import scene as strewn

    from viewtime.gaussians import render
    from viewtime.gaussians.tensors import CameraTensors, GaussianTensors

    there, seen = strewn("random", count, size, 0)
    names = tuple(GaussianTensors.__dataclass_fields__)
    leaves = [getattr(there, name).detach().to(device).requires_grad_() for name in names]
    cameras = CameraTensors(seen.viewmats.to(device), seen.intrinsics.to(device), size, size)
    weight = torch.randn(size, size, 3, generator=torch.Generator().manual_seed(0)).to(device)

    def picture() -> torch.Tensor:
        return render(GaussianTensors(*leaves), cameras, dilation=0.3).color[0]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return picture()

    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        (picture() * weight).sum().backward()

    return forward, both, leaves
