# SPDX-License-Identifier: Apache-2.0
"""What `gpu.py` was expected to find on an H200, written before any GPU had run the kernels.

It never changes with a measurement: a new prediction is a new line with its own date. The
reasons stand in benchmarks/results/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# 2026-11-23, TFLOP/s counted on the ideal keys: S, direction, method -> (low, high).
PREDICTED = {
    (576, "forward", "hopper"): (460, 510),
    (576, "forward", "triton"): (420, 460),
    (576, "forward", "inclusion_exclusion"): (430, 490),
    (576, "forward", "FlexAttention"): (370, 440),
    (2304, "forward", "hopper"): (480, 525),
    (2304, "forward", "triton"): (440, 475),
    (2304, "forward", "inclusion_exclusion"): (490, 530),
    (2304, "forward", "FlexAttention"): (410, 480),
    (576, "backward", "hopper"): (390, 450),  # the inclusion_exclusion backend's
    (576, "backward", "triton"): (230, 300),
    (576, "backward", "inclusion_exclusion"): (390, 450),
    (576, "backward", "FlexAttention"): (220, 300),
    (2304, "backward", "hopper"): (420, 475),
    (2304, "backward", "triton"): (240, 310),
    (2304, "backward", "inclusion_exclusion"): (420, 475),
    (2304, "backward", "FlexAttention"): (240, 310),
}


def predicted(space: int, what: str, method: str) -> str:
    """The range for a row of a table, as text; empty where nothing was predicted."""
    low_high = PREDICTED.get((space, what, method.split(",")[0]))
    return f"{low_high[0]} to {low_high[1]}" if low_high else ""


@dataclass(frozen=True)
class Goal:
    """outcome: None where it was not measured."""

    text: str
    least: float
    outcome: float | None


def goals(speed: dict[str, Any], backends: Sequence[str]) -> list[Goal]:
    """The goals of view-time attention, from `run.data["speed"]`: S -> direction -> method."""

    def rate(space: int, what: str, *names: str) -> float | None:
        found = speed.get(str(space), {}).get(what, {})
        rates = [each["tflops"] for name, each in found.items() if name.startswith(names)]
        return max(rates, default=None)

    def ratio(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a / b

    made = []
    own = tuple(name for name in backends if name != "inclusion_exclusion")
    for space, least in ((576, 1.4), (2304, 1.3)):
        for what, wanted in (("forward", least), ("backward", 1.4)):
            best = rate(space, what, *backends)
            peer = rate(space, what, "FlexAttention")
            text = f"S={space} {what}: our fastest over the best FlexAttention"
            made.append(Goal(text, wanted, ratio(best, peer)))
            stock = rate(space, what, "inclusion_exclusion")
            text = f"S={space} {what}: own kernels over rows + columns - own by cuDNN"
            made.append(Goal(text, 1.0, ratio(rate(space, what, *own), stock)))
        text = f"S={space} forward: our fastest, TFLOP/s"
        made.append(Goal(text, 550.0, rate(space, "forward", *backends)))
    return made
