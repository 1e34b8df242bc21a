# SPDX-License-Identifier: Apache-2.0
"""What training recipes share: examples made beside the training, averages, logs.

It never knows what is being trained.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import queue
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from viewtime_formats.atomic import atomic_path
from viewtime_formats.errors import ViewtimeError

Example = TypeVar("Example")
MOST_SKIPPED = 20
"""Steps in a row without a finite gradient after which nothing is hoped for."""


class TrainingError(ViewtimeError):
    """A configuration or a checkpoint that cannot be trained from."""


def read_settings(path: Path) -> dict[str, Any]:
    """Settings from a .toml or .json file. Raises TrainingError naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
        settings = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: {error}") from error
    if not isinstance(settings, dict):
        raise TrainingError(f"{path}: must hold names and values, holds {type(settings).__name__}")
    return settings


DECAYS = ("cosine", "none")


def learning_rate(
    step: int, *, peak: float, warm_up: int, steps: int, end: float = 0.05, decay: str = "cosine"
) -> float:
    """Linear warm-up, then a cosine down to end * peak at the last step, or with decay "none" the
    peak to the end."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    if decay == "none":
        return peak
    done = min((step - warm_up) / max(steps - warm_up, 1), 1.0)
    return peak * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done)))


class Average:
    """Exponential moving average of those of a module's parameters that train."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {
            name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After step `step`; the average is shorter while there is little to average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.named_parameters():
            if name in self.state:
                self.state[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the module's weights with the averaged ones; twice is nothing."""
        for name, parameter in module.named_parameters():
            if name in self.state:
                kept = parameter.detach().clone()
                parameter.copy_(self.state[name])
                self.state[name].copy_(kept)


def examples(
    make: Callable[[int], Example], start: int, stop: int, *, beside: bool
) -> Iterator[Example]:
    """make(start), ..., make(stop - 1) in order, made in one process beside this one if wished.

    An example depends on its number alone, so a resumed training sees what an uninterrupted one
    would have seen. Raises TrainingError when the other process dies.
    """
    if not beside:
        return map(make, range(start, stop))
    context = multiprocessing.get_context("spawn")
    made: multiprocessing.Queue[Example] = context.Queue(maxsize=4)
    process = context.Process(target=_produce, args=(make, start, stop, made), daemon=True)
    process.start()
    return _received(process, made, start, stop)


def _received(process: Any, made: Any, start: int, stop: int) -> Iterator[Any]:
    try:
        for number in range(start, stop):
            while True:
                try:
                    yield made.get(timeout=5)
                    break
                except queue.Empty:
                    if not process.is_alive():
                        raise TrainingError(
                            f"the process that makes examples ended at example {number} "
                            f"with exit code {process.exitcode}"
                        ) from None
    finally:
        process.terminate()
        process.join()


def _produce(make: Callable[[int], Any], start: int, stop: int, made: Any) -> None:
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    for number in range(start, stop):
        example = make(number)
        while True:
            try:
                made.put(example, timeout=5)
                break
            except queue.Full:
                if parent is None or not parent.is_alive():
                    made.cancel_join_thread()  # nobody will ever read what is left
                    return


class Log:
    """Lines of key=value, on stdout and appended to a file, with the time left."""

    def __init__(self, path: Path, steps: int, start: int) -> None:
        self.path, self.steps, self.start = path, steps, start
        self.began = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def line(self, step: int, values: Mapping[str, float | str]) -> None:
        done = max(step - self.start, 1)
        left = self.seconds() / done * (self.steps - step)
        shown = " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in values.items()
        )
        text = f"step={step}/{self.steps} {shown} eta={left / 60:.0f}min"
        print(text, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


_STEP = re.compile(r'(?:step=|\{"step": )(\d+)')


def forget_after(step: int, *paths: Path) -> None:
    """Drop the lines of logs (log.txt, *.jsonl) that say of steps after `step`, and a last one that
    a kill cut short. A training that goes on from that step writes them again."""
    for path in paths:
        if not path.exists():
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        steps = [(line, _STEP.match(line)) for line in lines if line.endswith("\n")]
        kept = [line for line, found in steps if found is None or int(found[1]) <= step]
        if len(kept) < len(lines):
            with atomic_path(path) as part:
                part.write_text("".join(kept), encoding="utf-8")


class Updates:
    """Which steps may change the weights: those whose gradient is finite. It counts the others."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._unsaid = 0

    def sound(self, norm: Tensor | float, step: int) -> bool:
        """Whether step `step`, whose gradient has this norm, may change the weights.

        Raises TrainingError at the MOST_SKIPPED-th step in a row that may not.
        """
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of all shards
        if math.isfinite(float(whole)):
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        self._unsaid += 1
        if self._in_a_row >= MOST_SKIPPED:
            raise TrainingError(
                f"stopped at step {step}: the gradient was not finite in {MOST_SKIPPED} steps in a "
                "row, which were skipped; a lower peak_rate or more precision may help"
            )
        return False

    def skipped(self) -> dict[str, int]:
        """{"skipped": steps} since this was asked last, for a log; empty where there were none."""
        found = {"skipped": self._unsaid} if self._unsaid else {}
        self._unsaid = 0
        return found


def clip_gradient(module: nn.Module, limit: float) -> Tensor:
    """Clip the gradient to `limit`; its norm before."""
    return nn.utils.clip_grad_norm_(module.parameters(), limit)
