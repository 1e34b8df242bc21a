# SPDX-License-Identifier: Apache-2.0
"""What the sections of `gpu.py` share: the run, the clock, peak memory, random weights.
It never decides what is timed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import report
import torch
from torch import nn

Made = TypeVar("Made")


@dataclass
class Run:
    """What a section is given. began: when the group of sections began. data: what goes into the
    JSON file, by section."""

    device: torch.device
    dry: bool
    began: float
    data: dict[str, Any] = field(default_factory=dict)

    def left(self, until: float) -> float:
        """Seconds left until this many have passed since `began`; 0 where they have."""
        return max(0.0, self.began + until - time.monotonic())


def seconds(run: Run, each: Callable[[], object]) -> float:
    """One call, by the device's own clock."""
    if run.dry:
        began = time.perf_counter()
        each()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    each()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_bytes(run: Run, each: Callable[[], object], *, in_all: bool = False) -> int:
    """The most allocated at once beyond what was there before, after a call that warms up.
    in_all: with what was there before, weights above all."""
    each()
    if run.dry:
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = 0 if in_all else torch.cuda.memory_allocated()
    each()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def free_bytes(run: Run) -> float:
    """What is free on the device, once what nothing holds any more is given back."""
    forget(run)
    return float("inf") if run.dry else torch.cuda.mem_get_info(run.device)[0]


def forget(run: Run) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if not run.dry:
        torch.cuda.empty_cache()


def attempt(
    run: Run, log: list[str], what: str, until: float, needs: float, make: Callable[[], Made]
) -> Made | None:
    """make(), or None and a line in the log: where the section's time is over, where less memory
    is free than `needs` (bytes, an estimate), or where it fails, be it for memory."""
    if not run.left(until):
        log.append(f"- {what}: not reached in time")
        return None
    free = free_bytes(run)
    if needs > free:
        log.append(
            f"- {what}: not run, needs about {needs / 2**30:.0f} GiB, {free / 2**30:.0f} are free"
        )
        return None
    failed = ""
    try:
        return make()
    except Exception as error:  # the other cases are worth their time
        failed = report.in_words(error)
    finally:  # what it held goes with the error
        forget(run)
    log.append(f"- **{what} failed: {failed}**")
    return None


@torch.no_grad()
def fill(module: nn.Module, device: torch.device) -> None:
    """Random weights, made on the device, for a module that has none (meta): normal, of a size that
    keeps activations alive; norms and layer scales of 1 and 0.01, biases of 0."""
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith("gamma"):
            parameter.fill_(0.01)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def record_goal(run: Run, text: str, most: float, outcome: float | None) -> str:
    """A goal and how it came out, in words; the figures into run.data. A dry run meets none."""
    outcome = None if run.dry else outcome
    run.data.setdefault("goals", {})[text] = {"most": most, "outcome": outcome}
    if outcome is None:
        return f"{text}: at most {most:g}; not measured"
    return f"{text}: at most {most:g}; {outcome:.3g}, {'met' if outcome <= most else 'missed'}"
