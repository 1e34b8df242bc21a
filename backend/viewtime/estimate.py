# SPDX-License-Identifier: Apache-2.0
"""How long a job will take and how much memory, from earlier jobs here or else by a formula.
Never decodes a frame, never loads a model, never looks at the machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from viewtime.options import RunOptions
from viewtime_formats.capture import Capture

# Seconds per unit of work (see `_units`) on one core of a 2020s laptop, and seconds that come
# whatever the size. They only serve until a job of the same kind has been measured here.
SECONDS_PER_UNIT = {
    "captured": {"read": 1.2e-7, "reconstruct": 6.0e-6},
    "generated": {
        "read": 1.2e-7,
        "load": 0.0,
        "prior": 4.0e-6,
        "generate": 1.6e-5,
        "reconstruct": 8.0e-6,
    },
}
SECONDS_ALWAYS = {
    "captured": {"read": 1.5, "reconstruct": 0.2},
    "generated": {"read": 0.3, "load": 6.0, "prior": 0.5, "generate": 0.2, "reconstruct": 0.2},
}
# What predicting the depth of a pixel of the freeze-time frames costs, in reprojected pixels.
PREDICTED_PIXEL = 6.0
# Bytes that a worker holds before the first pixel, and bytes per pixel of what it holds at once.
MEMORY_ALWAYS = {"captured": 300 * 2**20, "generated": 900 * 2**20}
MEMORY_PER_PIXEL = {"captured": 900.0, "generated": 250.0}


@dataclass(frozen=True)
class Work:
    """What decides how long a job takes. missing: frames that the generator has to fill in;
    predicts_depth: of the references, before they are reprojected; how: options that change what
    the work costs by a factor that only a run can tell."""

    route: str
    views: int
    times: int
    width: int
    height: int
    missing: int
    steps: int
    has_prior: bool
    device: str
    generator: str
    reconstructor: str
    predicts_depth: bool = False
    how: str = ""


@dataclass(frozen=True)
class Measured:
    """What one job took: seconds per stage, the most memory its process held (None: unknown)."""

    work: Work
    seconds: Mapping[str, float]
    memory_bytes: int | None


def measured_from_dict(values: Mapping[str, Any]) -> Measured:
    """The reverse of dataclasses.asdict(measured), which is what the job database holds."""
    return Measured(Work(**values["work"]), dict(values["seconds"]), values["memory_bytes"])


@dataclass(frozen=True)
class Estimate:
    """seconds in all and per stage, in their order; memory_bytes of the worker at its fullest.

    basis: "measured" when a job of the same route, models and device was measured on this
    machine, else "formula".
    """

    work: Work
    seconds: float
    stages: dict[str, float]
    memory_bytes: int
    basis: str

    def public(self) -> dict[str, Any]:
        """As it goes over HTTP."""
        return asdict(self)


def work_of(capture: Capture, options: RunOptions, route: str) -> Work:
    """route: "captured" or "generated", as pipeline.choose_route found it."""
    from viewtime.grid import working_size
    from viewtime.models.defaults import generator_defaults, settled

    generated, columns = route == "generated", None
    if generated:
        options, columns = settled(options), generator_defaults(options.generator).columns
    width, height = working_size(capture.width, capture.height, options.size, columns)
    references = capture.fixed_view is not None and capture.freeze_time is not None
    has_prior = options.use_prior and references and capture.rig is not None and capture.views > 1
    return Work(
        route=route,
        views=capture.views,
        times=capture.times,
        width=width,
        height=height,
        missing=int((~capture.known).sum()) if generated else 0,
        steps=_steps(options, bool(capture.known.any())) if generated else 0,
        has_prior=generated and has_prior,
        device=options.device,
        generator=options.generator if generated else "",
        reconstructor=options.reconstructor if generated else "",
        predicts_depth=generated and has_prior and not capture.has_depth,
        how=_how(options) if generated else "",
    )


def estimate(work: Work, history: Iterable[Measured] = ()) -> Estimate:
    """The most similar measured job, scaled stage by stage with the work in it; or the formula."""
    alike = [past for past in history if _kind(past.work) == _kind(work)]
    past = min(alike, key=lambda each: _distance(each.work, work), default=None)
    stages = {}
    for name, units in _units(work).items():
        if past is not None and name in past.seconds:
            ratio = units / max(_units(past.work).get(name, units), 1e-9)
            stages[name] = past.seconds[name] * ratio
        else:
            always, each = SECONDS_ALWAYS[work.route], SECONDS_PER_UNIT[work.route]
            stages[name] = always[name] + each[name] * units
    with_memory = [each for each in alike if each.memory_bytes]
    held = min(with_memory, key=lambda each: _distance(each.work, work), default=None)
    always_bytes = MEMORY_ALWAYS[work.route]
    if held is not None and held.memory_bytes:
        extra = max(held.memory_bytes - always_bytes, 0) * _pixels(work) / _pixels(held.work)
        memory = min(held.memory_bytes, always_bytes) + extra
    else:
        memory = always_bytes + MEMORY_PER_PIXEL[work.route] * _pixels(work)
    basis = "formula" if past is None else "measured"
    return Estimate(work, sum(stages.values()), stages, int(memory), basis)


def _units(work: Work) -> dict[str, float]:
    """Work of each stage, in the order of the stages: pixels, times the steps over them."""
    cells = work.views * work.times
    pixels = float(cells * work.width * work.height)
    if work.route == "captured":
        return {"read": pixels, "reconstruct": pixels}
    stages = {"read": pixels, "load": 1.0}
    if work.missing and work.has_prior:
        column = pixels / work.times if work.predicts_depth else 0.0
        stages["prior"] = pixels + PREDICTED_PIXEL * column
    if work.missing:
        stages["generate"] = pixels * work.steps
    return {**stages, "reconstruct": pixels}


def _pixels(work: Work) -> float:
    """Pixels that are in memory at once: one time of the captured route, else the whole grid."""
    times = 1 if work.route == "captured" else work.times
    return float(work.views * times * work.width * work.height)


def _kind(work: Work) -> tuple[str, ...]:
    return work.route, work.device, work.generator, work.reconstructor, work.how


def _distance(a: Work, b: Work) -> float:
    """How unlike two jobs of a kind are: the ratio of their work, as a logarithm."""
    one, two = sum(_units(a).values()), sum(_units(b).values())
    return abs(math.log(one / two))


HOW = ("guidance", "solver", "window", "overlap", "offload", "compile", "cache", "references")


def _how(options: RunOptions) -> str:
    """Those of HOW that are not as they are when nothing is said: "window=4x5 cache=0.1"."""
    from viewtime.models.defaults import settled

    plain = asdict(settled(RunOptions(generator=options.generator)))
    given = asdict(settled(options))
    return " ".join(f"{name}={given[name]}" for name in HOW if given[name] != plain[name])


def _steps(options: RunOptions, has_references: bool) -> int:
    """Steps that will be taken: a model may need fewer when it starts from its references."""
    from viewtime.models.defaults import generator_defaults

    defaults = generator_defaults(options.generator)
    steps = options.steps or defaults.steps
    most = defaults.steps_with_prior
    return min(steps, most) if has_references and most > 0 else steps
