# SPDX-License-Identifier: Apache-2.0
"""The memory of the worker's own process: the most it held during a job, and a limit on it.
Never ends the process; who goes over the limit gets an error in words."""

from __future__ import annotations

import sys
from pathlib import Path

from viewtime_formats.errors import ViewtimeError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEBIBYTE = 2**20


class Memory:
    """One job's account. limit_megabytes: 0 is no limit."""

    def __init__(self, limit_megabytes: int) -> None:
        self._limit = limit_megabytes * MEBIBYTE

    def begin(self) -> None:
        """Forget the peak of earlier jobs, where the system can do that (Linux)."""
        try:
            CLEAR.write_text("5")
        except OSError:
            pass

    def most(self) -> int | None:
        """Bytes that the process held at its fullest since `begin`; None where unknown."""
        held = _status("VmHWM")
        return held if held is not None else _peak_of_process()

    def check(self) -> None:
        """Raises ViewtimeError when the process holds more than its limit now."""
        held = _status("VmRSS") if self._limit else None
        if held is not None and held > self._limit:
            raise ViewtimeError(
                f"this job holds {held / MEBIBYTE:.0f} MiB of memory, its limit is "
                f"{self._limit / MEBIBYTE:.0f} MiB: choose a smaller size or fewer times, "
                "or raise the limit in Viewtime's preferences"
            )


def _status(name: str) -> int | None:
    try:
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _peak_of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
