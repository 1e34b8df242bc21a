# SPDX-License-Identifier: Apache-2.0
"""The process that runs jobs on one device: JSON lines in, JSON lines out, models kept warm.
Never opens a socket or the database; ends at once when its server does (end of its stdin)."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from viewtime import pipeline
from viewtime.estimate import Measured, measured_from_dict
from viewtime.server.lock import LockedError, ProcessLock
from viewtime.server.memory import Memory
from viewtime_formats.atomic import atomic_path
from viewtime_formats.errors import ViewtimeError

PROGRESS_SECONDS = 0.2
HANDOVER_SECONDS = 60.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="viewtime.server.worker")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args(argv)
    faulthandler.enable()  # a crash in C code leaves its stack in the log
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the server's business
    _select_device(arguments.device)
    channel = _Channel()
    channel.start()
    # A worker whose server was killed may need a moment to notice: two of them must not write
    # into the same folder.
    try:
        lock = ProcessLock(
            lock_path(arguments.data, arguments.device),
            "another worker (process {pid}) has not ended",
            wait_seconds=HANDOVER_SECONDS,
        )
    except LockedError as error:
        print(error, file=sys.stderr)
        return 1
    with contextlib.closing(lock):
        while True:
            channel.run(channel.next_job())


class _Channel:
    """The two pipes: a thread reads orders, and this class is the only writer of answers."""

    def __init__(self) -> None:
        # Libraries print; the pipe must carry nothing but our lines. So the pipe gets a
        # descriptor of its own, and descriptor 1 becomes the log.
        self._out: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._read, name="viewtime-orders", daemon=True).start()

    def next_job(self) -> dict[str, Any]:
        return self._orders.get()

    def run(self, order: dict[str, Any]) -> None:
        """Run one job and say how it ended."""
        job = order["job"]
        try:
            self._send(self._outcome(order), job)
        finally:
            self._cancelled.discard(job)

    def _outcome(self, order: dict[str, Any]) -> dict[str, Any]:
        job = order["job"]
        previews = _Previews(Path(order["preview"]))
        memory = Memory(order["memory_megabytes"])

        def tell(progress: dict[str, Any]) -> None:
            memory.check()
            self._send({**progress, "preview": previews.count}, job)

        try:
            memory.begin()
            result = pipeline.run(
                order["capture"],
                order["out"],
                pipeline.options_from_dict(order["options"]),
                on_progress=_Throttle(tell),
                should_cancel=lambda: job in self._cancelled,
                on_preview=previews.write,
                history=[measured_from_dict(past) for past in order["history"]],
            )
        except pipeline.Cancelled:
            return {"event": "cancelled"}
        except ViewtimeError as error:
            return {"event": "failed", "error": _one_line(str(error))}
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            return {"event": "failed", "error": in_words(error)}
        assert result.work is not None
        measured = Measured(result.work, result.seconds, memory.most())
        return {
            "event": "succeeded",
            "splats": str(result.splats),
            "measured": dataclasses.asdict(measured),
        }

    def _send(self, message: dict[str, Any], job: str) -> None:
        with self._lock:
            self._out.write(json.dumps({**message, "job": job}).encode() + b"\n")

    def _read(self) -> None:
        # os.read and not sys.stdin: a thread blocked inside a Python file object can hang the
        # interpreter's exit.
        pending = b""
        while chunk := os.read(0, 65536):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if order["op"] == "cancel":
                    self._cancelled.add(order["job"])
                else:
                    # A cancel that came too late for the job's last run is not for this one.
                    self._cancelled.discard(order["job"])
                    self._orders.put(order)
        os._exit(0)  # the server is gone; whatever runs here is of no use to anybody


class _Throttle:
    """Passes on the first and last step of a stage, and between them a few per second."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._stage = ""
        self._at = 0.0

    def __call__(self, progress: Any) -> None:
        now = time.monotonic()
        edge = progress.stage != self._stage or progress.step == progress.total
        if not edge and now - self._at < PROGRESS_SECONDS:
            return
        self._stage, self._at = progress.stage, now
        self._send(
            {
                "event": "progress",
                "stage": progress.stage,
                "step": progress.step,
                "total": progress.total,
                "message": progress.message,
                "eta_seconds": progress.eta_seconds,
                "fraction": progress.fraction,
                "job_eta_seconds": progress.job_eta_seconds,
            }
        )


class _Previews:
    """Writes the latest picture of a job as NPY, uint8 (h, w, 3), and counts them."""

    def __init__(self, path: Path) -> None:
        self._path, self.count = path, 0

    def write(self, picture: Any) -> None:
        import numpy as np

        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._path) as part, open(part, "wb") as file:
                np.save(file, picture, allow_pickle=False)
        except OSError:
            return  # a picture that cannot be shown is no reason to end a job
        self.count += 1


def lock_path(data: Path, device: str) -> Path:
    """The file that the one worker of this device holds locked."""
    return data / f"worker-{device.replace(':', '-')}.lock"


def in_words(error: Exception) -> str:
    """One line for a person about an error that no part of Viewtime foresaw."""
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower():
        return "the device has not enough memory for this job; choose a smaller size"
    if isinstance(error, OSError) and error.filename:
        return _one_line(f"{error.filename}: {error.strerror}")
    return _one_line(f"internal error, {type(error).__name__}: {error} (see the worker's log)")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:1000]


def _select_device(device: str) -> None:
    """Before any library looks at the machine."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device.startswith("cuda:"):
        os.environ["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:")


if __name__ == "__main__":
    sys.exit(main())
