# SPDX-License-Identifier: Apache-2.0
"""What every command shares: its entry in the parser, threads, and one line of progress.
Knows no command."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from typing import Any, TextIO


def command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=function)
    return parser


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as there are)")


def set_threads(count: int | None) -> None:
    """Before torch and numba are imported, which read these once. Worker processes inherit it."""
    if count is None:
        return
    if count < 1:
        from viewtime_formats.errors import ViewtimeError

        raise ViewtimeError(f"--threads is {count}; a whole number of 1 or more is needed")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(count)


class ProgressLine:
    """One line on a terminal that is written over; on a pipe a line per stage and a few steps."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._width = 0
        self._stage = ""
        self._at = 0.0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._terminal and self._width:
            self._stream.write("\n")
            self._stream.flush()

    def show(self, progress: Any) -> None:
        """progress: pipeline.Progress."""
        edge = progress.stage != self._stage or progress.step == progress.total
        interval = 0.1 if self._terminal else 5.0
        now = time.monotonic()
        if not edge and now - self._at < interval:
            return
        self._stage, self._at = progress.stage, now
        count = f" {progress.step}/{progress.total}" if progress.total else ""
        left = progress.job_eta_seconds
        eta = "" if left is None else f", {_duration(left)} left"
        self.write(f"{progress.stage}{count}: {progress.message}{eta}")

    def write(self, text: str) -> None:
        if self._terminal:
            # A line that wraps cannot be written over.
            text = text[: shutil.get_terminal_size().columns - 1]
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
