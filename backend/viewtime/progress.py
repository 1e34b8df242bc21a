# SPDX-License-Identifier: Apache-2.0
"""Where a run is and whether it shall go on: stages, steps, time left of stage and job, cancel.
Never writes to a terminal, a socket or a file; whoever listens does that."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class Cancelled(Exception):
    """The run was asked to stop and has removed what it wrote."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: step `step` of `total` in `stage`; `eta_seconds` counts to the stage's end.

    stage: "read", "load", "prior", "generate" or "reconstruct". eta_seconds is None while unknown.
    fraction: how much of the whole run's time is behind it, 0 to 1, never falling.
    job_eta_seconds: to the end of the whole run; None while no plan and no step tell it.
    """

    stage: str
    step: int
    total: int
    message: str
    eta_seconds: float | None
    fraction: float = 0.0
    job_eta_seconds: float | None = None


class Reporter:
    """Turns stages and steps into Progress with time left, and asks whether to stop.

    plan: expected seconds of each stage in their order. It weighs the stages that have not begun;
    the present one speaks for itself as soon as it has made a step. on_preview: takes the small
    pictures that the stages make (see viewtime.preview), or None when nobody looks.
    """

    def __init__(
        self,
        on_progress: Callable[[Progress], None],
        should_cancel: Callable[[], bool],
        plan: Mapping[str, float] | None = None,
        on_preview: Callable[[Any], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.should_cancel = should_cancel
        self.on_preview = on_preview
        self._on_progress = on_progress
        self._plan = dict(plan or {})
        self._clock = clock
        self._name = ""
        self._begun: set[str] = set()
        self._fraction = 0.0
        self._started = self._born = clock()

    def stage(self, name: str, total: int, message: str) -> None:
        self.check()
        self._name, self._started = name, self._clock()
        self._begun.add(name)
        self._tell(0, total, message, None)

    def step(self, step: int, total: int, message: str) -> None:
        eta = self.elapsed() / step * (total - step) if step else None
        self._tell(step, total, message, eta)

    def elapsed(self) -> float:
        return self._clock() - self._started

    def check(self) -> None:
        if self.should_cancel():
            raise Cancelled("the run was cancelled")

    def _tell(self, step: int, total: int, message: str, eta: float | None) -> None:
        left = self._left(eta)
        if left is not None:
            spent = self._clock() - self._born
            self._fraction = max(self._fraction, spent / max(spent + left, 1e-9))
        self._on_progress(
            Progress(self._name, step, total, message, eta, min(self._fraction, 1.0), left)
        )

    def _left(self, eta: float | None) -> float | None:
        """Seconds to the end of the run: the present stage's, and what is planned after it."""
        if eta is None:
            if self._name not in self._plan:
                return None
            eta = max(self._plan[self._name] - self.elapsed(), 0.0)
        return eta + sum(s for name, s in self._plan.items() if name not in self._begun)
