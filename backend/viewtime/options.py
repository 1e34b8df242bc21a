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
SOLVERS = ("euler", "unipc")  # viewtime.generator.sampler has what they are
GAUSSIANS = ("auto", "learned", "analytic")  # viewtime.reconstructor.lift
OFFLOADS = ("none", "block", "leaf")  # viewtime.generator.speed


class OptionError(ViewtimeError):
    """An option of a run that has no meaning; the message names it and its range."""


@dataclass(frozen=True)
class RunOptions:
    """What a person may choose about a run.

    size: height in pixels to work at; None is the capture's own for the captured route and the
    generator's for the generated one. steps, solver, shift: how the generator's steps are taken;
    None as its checkpoint says (see `viewtime.models.defaults`). depth_noise: relative error of the
    capture's depth (0 for a renderer, about 0.01 for photogrammetry). device: "auto" (the GPU when
    there is one), "cpu" or "cuda:N". guidance: how strongly the prompt leads the generator; None as
    the model has it, 1 not at all. memory_budget_gb: what the reconstructor's model, and the
    generator's VAE, may each take (1e9 bytes): they compute in smaller parts to keep it, and the
    reconstructor sees as many timesteps at once as it allows; None sets no bound. gaussians: made
    by the reconstructor's head or by the analytic fusion, "auto" as the model has it. references:
    how they enter the generator, one of `viewtime.generator.model.REFERENCES`, which loading looks
    at; None as the model has it.
    """

    route: str = "auto"
    size: int | None = None
    steps: int | None = None
    seed: int = 0
    use_prior: bool = True
    generator: str = "bundled"
    reconstructor: str = "bundled"
    depth_noise: float = 0.0
    device: str = "auto"
    guidance: float | None = None
    memory_budget_gb: float | None = None
    gaussians: str = "auto"
    solver: str | None = None
    shift: float | None = None
    negative_prompt: str = ""
    window: str | None = None
    overlap: str | None = None
    offload: str = "none"
    compile: bool = False
    cache: float | None = None
    references: str | None = None

    @property
    def window_shape(self) -> tuple[int, int] | None:
        """(views, times) made at once, None for the whole grid."""
        return None if self.window is None else window_shape("window", self.window)

    @property
    def overlap_shape(self) -> tuple[int, int] | None:
        """(views, times) that a window shares with the one before it, None for the default."""
        return None if self.overlap is None else window_shape("overlap", self.overlap)

    def __post_init__(self) -> None:
        _check_choice("route", self.route, ROUTES)
        _check_choice("gaussians", self.gaussians, GAUSSIANS)
        if self.solver is not None:
            _check_choice("solver", self.solver, SOLVERS)
        _check_choice("offload", self.offload, OFFLOADS)
        if self.size is not None:
            _check_integer("size", self.size, 16, 4096)
        if self.steps is not None:
            _check_integer("steps", self.steps, 1, 1000)
        _check_integer("seed", self.seed, 0, 2**63 - 1)
        for name in ("use_prior", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}; true or false is needed")
        for name in ("generator", "reconstructor"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise OptionError(f"{name} is {getattr(self, name)!r}; a name or path is needed")
        references = self.references
        if references is not None and (not isinstance(references, str) or not references):
            raise OptionError(f"references is {references!r}; a word such as clean is needed")
        if not isinstance(self.negative_prompt, str):
            raise OptionError(f"negative_prompt is {self.negative_prompt!r}; a text is needed")
        if not _is_number(self.depth_noise) or not 0 <= self.depth_noise < 1:
            raise OptionError(
                f"depth_noise is {self.depth_noise!r}; a number from 0 to below 1 is needed"
            )
        guidance = self.guidance
        if guidance is not None and (not _is_number(guidance) or not 1 <= guidance <= 100):
            raise OptionError(f"guidance is {guidance!r}; a number from 1 to 100 is needed")
        shift = self.shift
        if shift is not None and (not _is_number(shift) or not 0 < shift <= 100):
            raise OptionError(
                f"shift is {shift!r}; a number above 0 is needed, 100 at most: 1 spreads the "
                "steps evenly, 3 is what Wan's checkpoints want for 480 lines, 5 for 720"
            )
        for name in ("memory_budget_gb", "cache"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or not 0 < value < 1e6):
                raise OptionError(f"{name} is {value!r}; a number above 0 is needed")
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|cuda:\d+", self.device):
            raise OptionError(f'device is {self.device!r}; "auto", "cpu" or "cuda:N" is needed')
        self._check_windows()
        if self.compile and self.offload == "leaf":
            raise OptionError(
                "compile is true and offload is 'leaf': a compiled block cannot have its layers "
                "moved one by one; take offload 'block', or leave one of the two out"
            )

    def _check_windows(self) -> None:
        window, overlap = self.window_shape, self.overlap_shape
        if overlap is None:
            return
        if window is None:
            raise OptionError(f"overlap is {self.overlap!r}, but there is no window to overlap")
        if any(shared >= max(whole, 2) for shared, whole in zip(overlap, window)):
            raise OptionError(
                f"overlap is {self.overlap!r}; fewer views and fewer times than the window's "
                f"{self.window!r} are needed"
            )


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


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} is {value!r}; one of {', '.join(choices)} is needed")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def window_shape(name: str, value: Any) -> tuple[int, int]:
    """(views, times) of "VxT". name: of the option, for the OptionError where it is not that."""
    found = (
        re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value) if isinstance(value, str) else None
    )
    if found is None:
        raise OptionError(f'{name} is {value!r}; views x times, such as "8x29", are needed')
    return int(found[1]), int(found[2])


def numbers(name: str, text: str) -> list[float]:
    """The numbers of "0.05,0.1". Raises OptionError where one is none, or not above 0."""
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError:
            found.append(0.0)
        if not 0 < found[-1] < 1e6:
            raise OptionError(f"{name} is {text!r}; numbers above 0 are needed, with commas")
    return found
