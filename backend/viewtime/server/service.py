# SPDX-License-Identifier: Apache-2.0
"""What one running backend holds: the data folder's lock, the store and a supervisor per device.
Never speaks HTTP; `app` does that and asks this."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from viewtime import pipeline, run_folder
from viewtime.estimate import estimate, measured_from_dict, work_of
from viewtime.server import history, transitions
from viewtime.server.lock import LockedError, ProcessLock
from viewtime.server.machine import Machine
from viewtime.server.store import Store
from viewtime.server.supervisor import Supervisor
from viewtime.server.transitions import Job
from viewtime_formats.capture import read_capture
from viewtime_formats.errors import ViewtimeError

ORPHAN_SECONDS = 5.0


class Service:
    """Opens the data folder and starts the supervisors. Raises ViewtimeError when it cannot.

    data: folder of the database, logs and locks; made when absent. devices, idle_seconds and
    memory_megabytes: see Supervisor.
    """

    def __init__(
        self,
        data: Path,
        devices: tuple[str, ...] = ("auto",),
        *,
        idle_seconds: float | None = None,
        memory_megabytes: int = 0,
    ) -> None:
        self.data = data
        self.instance = uuid.uuid4().hex
        try:
            data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ViewtimeError(f"{data}: cannot be made ({error.strerror})") from error
        self._lock = ProcessLock(
            data / "server.lock",
            f"{data}: another Viewtime backend (process {{pid}}) uses this data folder; "
            "stop it or give another folder with --data",
        )
        try:
            self.store = Store(data / "jobs.sqlite")
            self._recover()
        except BaseException:
            self._lock.close()
            raise
        self.machine = Machine(data)
        self.supervisors = [
            Supervisor(
                self.store,
                data,
                device,
                idle_seconds=idle_seconds,
                memory_megabytes=memory_megabytes,
            )
            for device in devices
        ]
        for supervisor in self.supervisors:
            supervisor.start()

    def close(self) -> None:
        """Put running jobs back into the queue, end the workers, close the database."""
        for supervisor in self.supervisors:
            supervisor.stop()
        self.machine.close()
        self.store.close()
        self._lock.close()

    # ---- what clients may ask ------------------------------------------------------------------

    def submit(self, key: str, capture: str, out: str, options: dict[str, Any]) -> Job:
        """Check what can be checked now, and store the job. Raises ViewtimeError, ConflictError."""
        capture_folder = _absolute("capture", capture)
        out_folder = _absolute("out", out)
        run_options = pipeline.options_from_dict(options)
        self._check_device(run_options.device)
        job, new = self.store.submit(
            key,
            str(capture_folder),
            str(out_folder),
            asdict(run_options),
            time.time(),
            check=lambda: _check(capture_folder, out_folder, run_options),
        )
        if new:
            self._wake()
        return job

    def cancel(self, job_id: str) -> Job:
        return self._apply(job_id, transitions.request_cancel)

    def retry(self, job_id: str) -> Job:
        """Raises TransitionError when the job has not ended, or ended well."""
        return self._apply(job_id, transitions.retry)

    def remove(self, job_id: str) -> None:
        """Forget a job that has ended, not what it wrote. Raises UnknownJob, TransitionError."""
        self.store.remove(job_id)
        history.preview_path(self.data, job_id).unlink(missing_ok=True)

    def preview(self, job_id: str) -> bytes | None:
        """The latest picture of a job's grid as NPY, uint8 (h, w, 3). Raises UnknownJob."""
        self.store.job(job_id)
        try:
            return history.preview_path(self.data, job_id).read_bytes()
        except OSError:
            return None

    def estimate(self, capture: str, options: dict[str, Any]) -> dict[str, Any]:
        """What such a job would take (viewtime.estimate). Raises ViewtimeError."""
        run_options = pipeline.options_from_dict(options)
        self._check_device(run_options.device)
        read = read_capture(_absolute("capture", capture))
        work = work_of(read, run_options, pipeline.choose_route(read, run_options))
        past = [measured_from_dict(each) for each in history.measured(self.store)]
        return estimate(work, past).public()

    def doctor(self) -> bytes:
        """The JSON of `viewtime doctor`, made in a process of its own because it loads torch."""
        process = subprocess.run(
            [sys.executable, "-P", "-m", "viewtime", "doctor", "--json", "--data", str(self.data)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
        if not process.stdout.strip():
            last = process.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ViewtimeError(f"viewtime doctor failed: {' '.join(last)}")
        return process.stdout

    # ---- inside --------------------------------------------------------------------------------

    def _check_device(self, device: str) -> None:
        there = [supervisor.device for supervisor in self.supervisors]
        if device != "auto" and "auto" not in there and device not in there:
            raise ViewtimeError(
                f"device is {device!r}; this backend was started for {', '.join(there)}"
            )

    def _apply(self, job_id: str, change: Callable[[Job, float], Job]) -> Job:
        now = time.time()
        job = self.store.apply(job_id, lambda job: change(job, now), now)
        self._wake()
        return job

    def _wake(self) -> None:
        for supervisor in self.supervisors:
            supervisor.wake()

    def _recover(self) -> None:
        """Jobs that ran when the last server died: wait for its workers, clean up, requeue."""
        for path in self.data.glob("worker-*.lock"):
            with contextlib.suppress(LockedError):
                ProcessLock(path, "held by {pid}", wait_seconds=ORPHAN_SECONDS).close()
        for before, _after in self.store.recover("the backend was ended while it ran", time.time()):
            try:
                run_folder.abandon(Path(before.out))
            except (OSError, ViewtimeError) as error:
                print(f"{before.out}: could not be cleaned ({error})", file=sys.stderr)


def _absolute(name: str, text: str) -> Path:
    if not Path(text).is_absolute() or "\0" in text:
        raise ViewtimeError(f"{name} is {text!r}; an absolute path is needed")
    return Path(os.path.normpath(text))  # one spelling, so that two jobs in one folder are noticed


def _check(capture_folder: Path, out_folder: Path, options: pipeline.RunOptions) -> None:
    """What would fail at once in the worker fails here, where the person still looks."""
    if not capture_folder.is_dir():
        raise ViewtimeError(f"{capture_folder}: there is no such folder; capture the scene first")
    pipeline.choose_route(read_capture(capture_folder), options)
    run_folder.check_folder(out_folder)
