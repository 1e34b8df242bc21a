# SPDX-License-Identifier: Apache-2.0
"""One thread per device that gives jobs to its worker process and judges what becomes of them.
Never imports a model, never runs a job itself, never waits without an event or a deadline."""

from __future__ import annotations

import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from viewtime import run_folder
from viewtime.server import history, transitions
from viewtime.server.store import Store, UnknownJob
from viewtime.server.transitions import Job, TransitionError
from viewtime_formats.errors import ViewtimeError

CANCEL_GRACE_SECONDS = 0.5
EXIT_GRACE_SECONDS = 0.6
IDLE_SECONDS = 900.0  # a warm worker holds gigabytes: after this long without a job it goes
STORE_RETRY_SECONDS = 2.0
LOG_TAIL_LINES = 4


class Supervisor:
    """Runs the jobs of `store` on one device, one at a time.

    device: "cpu", "cuda:N", or "auto": the device that each job asks for, and for jobs that ask
    for none the machine as it is. idle_seconds: how long a worker without a job keeps its models.
    memory_megabytes: what a worker may hold before its job is ended in words; 0 is no limit.
    """

    def __init__(
        self,
        store: Store,
        data: Path,
        device: str = "auto",
        *,
        idle_seconds: float | None = None,
        memory_megabytes: int = 0,
    ) -> None:
        self._store = store
        self._data = data
        self.device = device
        self._idle_seconds = IDLE_SECONDS if idle_seconds is None else idle_seconds
        self._memory_megabytes = memory_megabytes
        self._log = data / "logs" / f"worker-{device.replace(':', '-')}.log"
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._worker: Worker | None = None
        self._stopping = False
        self._stop_asked = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"viewtime-{device}", daemon=True)

    @property
    def worker_pid(self) -> int | None:
        worker = self._worker
        return None if worker is None else worker.pid

    def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def wake(self) -> None:
        """A job was submitted, retried or cancelled."""
        self._inbox.put(("wake", None))

    def stop(self) -> None:
        """Put the running job back into the queue, end the worker, and return when both is done."""
        self._stop_asked.set()
        self._inbox.put(("stop", None))
        self._thread.join()

    # ---- the thread ----------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stopping:
            try:
                job = self._store.claim(time.time(), self.device)
            except (sqlite3.Error, ViewtimeError) as error:
                print(error, file=sys.stderr)
                self._stop_asked.wait(STORE_RETRY_SECONDS)
                self._stopping = self._stop_asked.is_set()
                continue
            if job is not None:
                self._run_safely(job)
                self._tidy(job)
                continue
            kind, value = self._next(self._idle_seconds)
            if kind == "stop":
                self._stopping = True
            elif kind == "timeout" or (kind == "gone" and value is self._worker):
                self._end_worker()
        self._end_worker()

    def _run_safely(self, job: Job) -> None:
        """An error of our own ends one job, not the thread that all later jobs need."""
        try:
            self._run(job)
        except Exception as error:
            traceback.print_exc()
            self._end_worker()
            words = f"internal error, {type(error).__name__}: {error} (see the backend's log)"
            self._apply(job, lambda j: transitions.fail(j, words, time.time()), clean=True)

    def _run(self, job: Job) -> None:
        """Run one job until it has left the state "running"."""
        try:
            worker = self._ready_worker(job.options.get("device", "auto"))
            worker.send(
                {
                    "op": "run",
                    "job": job.id,
                    "capture": job.capture,
                    "out": job.out,
                    "options": job.options,
                    "history": history.measured(self._store),
                    "preview": str(history.preview_path(self._data, job.id)),
                    "memory_megabytes": self._memory_megabytes,
                }
            )
        except OSError as error:
            self._end_worker()
            self._crash(job, f"no worker process ({error})")
            return
        kill_at: float | None = None
        while True:
            timeout = None if kill_at is None else max(0.0, kill_at - time.monotonic())
            kind, value = self._next(timeout)
            if kind == "message":
                sender, message = value
                # An earlier worker's last line may still be in the box, about this very job.
                if sender is worker and message.get("job") == job.id and self._settle(job, message):
                    return
            elif kind == "gone" and value is worker:
                words = worker.last_words()
                self._end_worker()
                self._crash(job, words)
                return
            elif kind == "stop":
                self._stopping = True
                self._end_worker()
                self._apply(job, lambda j: transitions.released(j, time.time()), clean=True)
                return
            elif kind == "timeout":
                # The worker did not come to a point where it could stop: a long call in C.
                self._end_worker(grace=0.0)
                self._apply(job, lambda j: transitions.cancelled(j, time.time()), clean=True)
                return
            elif kind == "wake" and kill_at is None:
                if self._store.job(job.id).cancel_requested:
                    kill_at = time.monotonic() + CANCEL_GRACE_SECONDS
                    worker.try_send({"op": "cancel", "job": job.id})

    def _settle(self, job: Job, message: dict[str, Any]) -> bool:
        """Apply what the worker says; True when the job has ended."""
        event = message["event"]
        if event == "progress":
            self._apply(
                job,
                lambda j: transitions.progress(
                    j,
                    message["stage"],
                    message["step"],
                    message["total"],
                    message["message"],
                    message["eta_seconds"],
                    message["fraction"],
                    message["job_eta_seconds"],
                    message["preview"],
                ),
                must=False,
            )
            return False
        now = time.time()
        if event == "succeeded":
            splats, measured = message["splats"], message["measured"]
            self._apply(job, lambda j: transitions.succeed(j, splats, now, measured))
        elif event == "cancelled":
            self._apply(job, lambda j: transitions.cancelled(j, now))
        else:
            self._apply(job, lambda j: transitions.fail(j, message["error"], now))
        return True

    def _crash(self, job: Job, words: str) -> None:
        self._apply(job, lambda j: transitions.crashed(j, words, time.time()), clean=True)

    def _apply(
        self,
        job: Job,
        change: Callable[[Job], Job],
        *,
        clean: bool = False,
        must: bool = True,
    ) -> None:
        """Store a transition, if need be later (`must`).

        With `clean`, first undo in the output folder what a dead run left there: whoever sees the
        job cancelled may rely on the folder being clean.
        """
        if clean:
            try:
                run_folder.abandon(Path(job.out))
            except Exception as error:
                print(f"{job.out}: could not be cleaned ({error})", file=sys.stderr)
        while True:
            try:
                self._store.apply(job.id, change, time.time())
                return
            except TransitionError as error:
                print(error, file=sys.stderr)
                return
            except (sqlite3.Error, ViewtimeError) as error:
                # A full disk must not end this thread. A lost line of progress does not matter;
                # the end of a job does, and waits until it can be stored.
                print(error, file=sys.stderr)
                if not must or self._stop_asked.wait(STORE_RETRY_SECONDS):
                    return

    def _tidy(self, job: Job) -> None:
        """After a job: forget the oldest ones, and pictures that belong to no result."""
        try:
            if self._store.job(job.id).state != "succeeded":
                history.preview_path(self._data, job.id).unlink(missing_ok=True)
            for job_id in self._store.prune(time.time()):
                history.preview_path(self._data, job_id).unlink(missing_ok=True)
        except (OSError, sqlite3.Error, ViewtimeError, UnknownJob) as error:
            print(f"old jobs could not be removed ({error})", file=sys.stderr)

    def _next(self, timeout: float | None) -> tuple[str, Any]:
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return "timeout", None

    def _ready_worker(self, wanted: str) -> Worker:
        """The warm worker, or a new one where it is gone or sits on another device."""
        device = wanted if self.device == "auto" else self.device
        if self._worker is not None and self._worker.alive() and self._worker.device == device:
            return self._worker
        self._end_worker()
        self._worker = Worker(device, self._data, self._log, self._inbox)
        return self._worker

    def _end_worker(self, grace: float = EXIT_GRACE_SECONDS) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end(grace)


class Worker:
    """The worker process as the supervisor sees it: JSON lines in, JSON lines out, a log file."""

    def __init__(
        self, device: str, data: Path, log: Path, inbox: queue.SimpleQueue[tuple[str, Any]]
    ) -> None:
        self.device, self._log = device, log
        with open(log, "wb") as stderr:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "viewtime.server.worker",
                    "--device",
                    device,
                    "--data",
                    str(data),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                **_NO_CONSOLE,
            )
        self.pid = self._process.pid
        self._inbox = inbox
        self._reader = threading.Thread(target=self._read, name="viewtime-worker", daemon=True)
        self._reader.start()

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        """Raises OSError when the worker is gone."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def try_send(self, message: dict[str, Any]) -> None:
        try:
            self.send(message)
        except OSError:
            pass  # its end is on the way through the inbox

    def end(self, grace: float) -> None:
        """Close its stdin, which tells it to exit; kill it when it has not in `grace` seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(grace if grace > 0 else 0.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=2.0)

    def last_words(self) -> str:
        """How it ended, in words, with the last lines of its log."""
        code = self._process.wait()
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            how = f"the worker was ended by {name}"
            if name == "SIGKILL":
                how += " (the system does that when memory runs out)"
        else:
            how = f"the worker ended with code {code}"
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        tail = _telling([line.strip() for line in lines if line.strip()])
        return f"{how}; its last lines: {' | '.join(tail)}" if tail else how

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict):
                self._inbox.put(("message", (self, message)))
        self._inbox.put(("gone", self))


def _telling(lines: list[str]) -> list[str]:
    """The few lines of a log that tell a person what happened."""
    fatal = [n for n, line in enumerate(lines) if line.startswith("Fatal Python error")]
    if not fatal:
        return lines[-LOG_TAIL_LINES:]
    # A crash in C code: Python lists the frames of every thread, the one that crashed marked.
    dump = lines[fatal[-1] :]
    current = [n for n, line in enumerate(dump) if line.startswith("Current thread")]
    frames = dump[current[0] + 1 :][: LOG_TAIL_LINES - 1] if current else []
    return [dump[0], *frames]


# A console window would flash up over Blender for each worker.
_NO_CONSOLE: dict[str, Any] = (
    {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {}  # type: ignore[attr-defined]
)
