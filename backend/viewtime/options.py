# SPDX-License-Identifier: Apache-2.0
"""What a person may choose about a run, checked where it is made.
Never knows how a choice is carried out."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from viewtime_formats.errors import ViewtimeError

ROUTES = ("auto", "captured", "generated")
GENERATED_SIZE = 128  # the size that the bundled models were trained at


class OptionError(ViewtimeError):
    """An option of a run that has no meaning; the message names it and its range."""


@dataclass(frozen=True)
class RunOptions:
    """What a person may choose about a run.

    size: height in pixels to work at; None is the capture's own for the captured route and the
    bundled model's for the generated one. depth_noise: relative error of the capture's depth
    (0 for a renderer, about 0.01 for photogrammetry). device: "auto" (the GPU when there is one),
    "cpu" or "cuda:N". guidance: how strongly the prompt leads the generator; None as the model
    has it, 1 not at all. memory_budget_gb: what the reconstructor's model may take (1e9 bytes); it
    computes in smaller parts to keep it; None sets no bound.
    """

    route: str = "auto"
    size: int | None = None
    steps: int = 4
    seed: int = 0
    use_prior: bool = True
    generator: str = "bundled"
    reconstructor: str = "bundled"
    depth_noise: float = 0.0
    device: str = "auto"
    guidance: float | None = None
    memory_budget_gb: float | None = None

    def __post_init__(self) -> None:
        if self.route not in ROUTES:
            raise OptionError(f"route is {self.route!r}; one of {', '.join(ROUTES)} is needed")
        if self.size is not None:
            _check_integer("size", self.size, 16, 4096)
        _check_integer("steps", self.steps, 1, 1000)
        _check_integer("seed", self.seed, 0, 2**63 - 1)
        if not isinstance(self.use_prior, bool):
            raise OptionError(f"use_prior is {self.use_prior!r}; true or false is needed")
        for name in ("generator", "reconstructor"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise OptionError(f"{name} is {getattr(self, name)!r}; a name or path is needed")
        noise = self.depth_noise
        if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise < 1:
            raise OptionError(f"depth_noise is {noise!r}; a number from 0 to below 1 is needed")
        strength = self.guidance
        if strength is not None and (
            isinstance(strength, bool)
            or not isinstance(strength, (int, float))
            or not 1 <= strength <= 100
        ):
            raise OptionError(f"guidance is {strength!r}; a number from 1 to 100 is needed")
        budget = self.memory_budget_gb
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < 1e6
        ):
            raise OptionError(f"memory_budget_gb is {budget!r}; a number above 0 is needed")
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|cuda:\d+", self.device):
            raise OptionError(f'device is {self.device!r}; "auto", "cpu" or "cuda:N" is needed')


def options_from_dict(values: Any) -> RunOptions:
    """RunOptions from JSON; an unknown name is refused because it is usually a typing error."""
    if not isinstance(values, dict):
        raise OptionError("options: a JSON object is needed")
    known = {field.name for field in dataclasses.fields(RunOptions)}
    for name in values:
        if name not in known:
            raise OptionError(f"options: {name!r} is unknown; known are {', '.join(sorted(known))}")
    return RunOptions(**values)


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}; a whole number from {low} to {high} is needed")
