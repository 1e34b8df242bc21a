# SPDX-License-Identifier: Apache-2.0
"""Where a run is and whether it shall go on: stages, steps, time left, cancel.
Never writes to a terminal, a socket or a file; whoever listens does that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


class Cancelled(Exception):
    """The run was asked to stop and has removed what it wrote."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: step `step` of `total` in `stage`; `eta_seconds` counts to the stage's end.

    stage: "read", "load", "prior", "generate" or "reconstruct". eta_seconds is None while unknown.
    """

    stage: str
    step: int
    total: int
    message: str
    eta_seconds: float | None


class Reporter:
    """Turns stages and steps into Progress with an ETA, and asks whether to stop."""

    def __init__(
        self, on_progress: Callable[[Progress], None], should_cancel: Callable[[], bool]
    ) -> None:
        self.should_cancel = should_cancel
        self._on_progress = on_progress
        self._name = ""
        self._started = time.monotonic()

    def stage(self, name: str, total: int, message: str) -> None:
        self.check()
        self._name, self._started = name, time.monotonic()
        self._on_progress(Progress(name, 0, total, message, None))

    def step(self, step: int, total: int, message: str) -> None:
        eta = self.elapsed() / step * (total - step) if step else None
        self._on_progress(Progress(self._name, step, total, message, eta))

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def check(self) -> None:
        if self.should_cancel():
            raise Cancelled("the run was cancelled")
