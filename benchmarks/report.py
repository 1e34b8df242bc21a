# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: interleaved timing, Markdown tables, the state of the machine.
It never decides what is timed or what a goal is."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def interleaved(
    runs: dict[str, Callable[[], float]], rounds: int, log: Callable[[str], None] = print,
    budget: float = float("inf"),
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each run, one after the other, `rounds` times over, so that a machine that slows
    down for a while slows all of them down. Every run is called once before, uncounted. A run that
    raises is left out, and what it raised is logged. No round after the second begins when the
    rounds have taken `budget` seconds."""
    taken: dict[str, list[float]] = {}
    for name, run in runs.items():
        try:
            run()
        except Exception as error:  # a peer that cannot run is a result too, and stops no other
            log(f"- {name} did not run: {in_words(error)}")
            continue
        taken[name] = []
    began = time.perf_counter()
    for i in range(rounds):
        if i > 1 and time.perf_counter() - began > budget:
            break
        for name, seconds in taken.items():
            seconds.append(runs[name]())
    return taken


def in_words(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def spread(seconds: list[float]) -> str:
    """Fastest to slowest, in ms."""
    return f"{milliseconds(min(seconds))} to {milliseconds(max(seconds))}"


def milliseconds(seconds: float) -> str:
    """Four digits, and whole ones from a second on."""
    return f"{seconds * 1e3:.0f}" if seconds >= 1 else f"{seconds * 1e3:.4g}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def commit() -> str:
    """The commit that is checked out, and whether the code differs from it."""

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    name = git("rev-parse", "--short", "HEAD")
    if not name:
        return "unknown"
    changed = git("status", "--porcelain", "--", "backend", "kernels", "benchmarks",
                  "tests/kernels")  # fmt: skip
    return f"{name} and changes" if changed else name


def processor() -> str:
    """The CPU's name and what it multiplies half precision with."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return name
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = set(facts.get("flags", "").split())
    units = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]
    return f"{facts.get('model name', name)} ({', '.join(units)})"


class Spoken:
    """Prints lines, and keeps them for a file: call it in print's place."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        self._lines.append(line)

    def write(self, path: Path, title: str, command: str, threads: int) -> None:
        """The lines as Markdown, under what they were measured on and by which command."""
        text = [f"# {title}", "", *state(threads), f"- `{command}`", "", "```", *self._lines, "```"]
        path.write_text("\n".join(text) + "\n", encoding="utf-8")


def state(threads: int) -> list[str]:
    """Lines that say what a CPU table was measured on."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return [
        f"- {processor()}, {os.cpu_count()} cores, {threads} threads",
        f"- torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}",
        f"- commit {commit()}; load average at the start {load}, this run included",
    ]
