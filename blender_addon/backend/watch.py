# SPDX-License-Identifier: GPL-3.0-or-later
"""A thread that brings the backend up, submits a job and follows it, and says so through a queue.
It never touches bpy: the main thread's timer drains the queue and writes what it finds."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from . import BackendError, BackendRefused, BackendUnreachable
from .client import Client, new_key
from .process import Backend

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "interrupted"})
LONG_POLL_SECONDS = 10.0
QUEUE_LENGTH = 256
# How long a backend that still runs may be silent before its job is given up.
SILENCE_SECONDS = 15.0
CONFLICT_SECONDS = 10.0


@dataclass(frozen=True)
class Request:
    """What to run. capture and out are absolute paths.

    replaces: the id of an earlier job of the same scene, which gives way if it still writes to out.
    """

    capture: str
    out: str
    options: dict[str, Any] = field(default_factory=dict)
    replaces: str | None = None


@dataclass(frozen=True)
class Update:
    """One thing that happened. kind and data:

    "job": the whole job, as the backend tells it (also at every change of its state);
    "progress": {"stage", "step", "total", "message", "eta_seconds"};
    "end": the whole job in its final state, after which nothing comes any more;
    "broken": {"message"}, the job cannot be followed any more, after which nothing comes.
    """

    kind: str
    data: dict[str, Any]


class Watcher:
    """Follows one job: a new one (request) or one that exists (job_id).

    open_backend is called in the thread, may block, and may check the request beforehand; it
    raises BackendError in words.
    """

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        request: Request | None = None,
        job_id: str | None = None,
    ) -> None:
        if (request is None) == (job_id is None):
            raise ValueError("give either a request or the id of a job")
        self._open_backend, self._request, self._job_id = open_backend, request, job_id
        self._updates: queue.Queue[Update] = queue.Queue(maxsize=QUEUE_LENGTH)
        self._cancelled, self._left = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._thread = threading.Thread(target=self._run, name="viewtime watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def updates(self, wait: float = 0.0) -> Iterator[Update]:
        """What has happened since the last call; waits up to `wait` seconds for the first."""
        try:
            yield self._updates.get(timeout=wait) if wait > 0 else self._updates.get_nowait()
            while True:
                yield self._updates.get_nowait()
        except queue.Empty:
            return

    def cancel(self) -> bool:
        """Ask for the job's end and return at once. True when the end comes as an update.

        False when no job exists yet: none will be left running, and nothing more need be awaited.
        """
        self._cancelled.set()
        with self._lock:
            backend, job_id = self._backend, self._job_id
        if backend is None or job_id is None:
            return False
        threading.Thread(
            target=self._post_cancel, args=(backend, job_id), name="viewtime cancel", daemon=True
        ).start()
        return True

    def leave(self) -> None:
        """Stop following; the job goes on without us."""
        self._left.set()

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            backend = self._open_backend()
            if self._cancelled.is_set() and self._request is not None:
                return self._put("end", {"state": "cancelled", "message": "cancelled"})
            client = backend.client.twin()
            try:
                self._follow(backend, client, self._find_job(backend, client))
            finally:
                client.close()
        except BackendError as error:
            self._put_failure(str(error))
        except Exception as error:
            traceback.print_exc()
            self._put_failure(f"internal error, {type(error).__name__}: {error} (see the console)")

    def _find_job(self, backend: Backend, client: Client) -> dict[str, Any]:
        """The job to follow, submitted now where it does not exist yet."""
        try:
            if self._request is not None:
                job = self._submit(client, self._request)
            else:
                assert self._job_id is not None
                job = client.job(self._job_id)
        except BackendUnreachable as error:
            raise BackendError(self._lost(backend, str(error))) from error
        except BackendRefused as error:
            if error.status == 404:
                raise BackendError(
                    f"the backend does not know job {self._job_id}: "
                    "its data folder has changed or was cleared; generate again"
                ) from error
            raise
        with self._lock:
            self._backend, self._job_id = backend, job["id"]
        if self._cancelled.is_set():
            self._post_cancel(backend, job["id"])
        self._put("job", job)
        return job

    def _submit(self, client: Client, request: Request) -> dict[str, Any]:
        """Submit, or take over the very same job, or first cancel the one that this replaces.

        A job outlives the backend's crash and goes on when the backend starts again: pressing
        Generate once more must find that one, not collide with it.
        """
        key, deadline = new_key(), time.monotonic() + CONFLICT_SECONDS
        while True:
            for job in client.jobs():
                if job["state"] in FINAL_STATES or job["out"] != request.out:
                    continue
                # The backend completes the options with its defaults.
                same_options = request.options.items() <= job["options"].items()
                if job["capture"] == request.capture and same_options:
                    return job
                if job["id"] == request.replaces:
                    client.cancel(job["id"])
            try:
                return client.submit(request.capture, request.out, request.options, key=key)
            except BackendRefused as error:
                if error.status != 409 or request.replaces is None:
                    raise
                if time.monotonic() > deadline or self._left.wait(0.1):
                    raise

    def _follow(self, backend: Backend, client: Client, job: dict[str, Any]) -> None:
        """Long-poll until the job has ended, and put what happens."""
        after, silent_since = 0, None
        while not self._left.is_set():
            try:
                if job["state"] in FINAL_STATES:
                    # The first events of a job that is watched again are its past, where an end
                    # may be followed by a new start: only the job itself knows.
                    job = client.job(job["id"])
                    if job["state"] in FINAL_STATES:
                        return self._put("end", job)
                events = client.events(job["id"], after=after, wait=LONG_POLL_SECONDS)
                silent_since = None
            except BackendUnreachable as error:
                silent_since = silent_since or time.monotonic()
                silent = time.monotonic() - silent_since
                # A process that was killed a moment ago may still look alive.
                if silent > SILENCE_SECONDS or (silent > 0.2 and not backend.alive()):
                    raise BackendError(self._lost(backend, str(error))) from error
                self._left.wait(0.1)
                continue
            for event in events:
                after = event["seq"]
                if event["kind"] == "state":
                    job = event["data"]
                    self._put("job", job)
                elif event["kind"] == "progress":
                    self._put("progress", event["data"])

    @staticmethod
    def _lost(backend: Backend, why: str) -> str:
        if backend.alive():
            return f"the job can no longer be followed: {why}"
        return (
            f"{backend.end_in_words()}. Generate starts it again; "
            "a job that it had accepted goes on from its beginning"
        )

    @staticmethod
    def _post_cancel(backend: Backend, job_id: str) -> None:
        client = backend.client.twin()
        try:
            client.cancel(job_id)
        except BackendError:
            pass  # Whoever follows the job meets the same trouble and says it in words.
        finally:
            client.close()

    def _put_failure(self, message: str) -> None:
        """No job came of it, or there is one that goes on unseen."""
        if self._job_id is None:
            self._put("end", {"state": "failed", "error": message, "message": ""})
        else:
            self._put("broken", {"message": message})

    def _put(self, kind: str, data: dict[str, Any]) -> None:
        # The main thread may be busy for minutes (a render). The backend keeps the events, so
        # waiting here loses nothing; only leaving ends the wait.
        while not self._left.is_set():
            try:
                return self._updates.put(Update(kind, data), timeout=0.2)
            except queue.Full:
                continue
