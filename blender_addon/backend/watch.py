# SPDX-License-Identifier: GPL-3.0-or-later
"""Follows one job in small steps, made by the desk's thread: open, submit, poll, until its end.
It never touches bpy: the main thread's timer drains the updates and writes what it finds."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import NOTHING, START, BackendError, BackendRefused, BackendUnreachable
from .client import Client, new_key
from .process import Backend

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "interrupted"})
# Short enough that a cancel, which waits for the end of a poll, leaves within a fraction of a
# second: one thread makes all requests.
POLL_SECONDS = 0.2
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
    "progress": {"stage", "step", "total", "message", "fraction", "job_eta_seconds", ...};
    "picture": {}, a new picture of the grid is there to be taken;
    "end": the whole job in its final state, after which nothing comes any more;
    "broken": {"message", "remedy"}, the job cannot be followed any more; nothing comes after it.
    """

    kind: str
    data: dict[str, Any]


class Watcher:
    """Follows one job: a new one (request) or one that exists (job_id).

    open_backend is called in the thread, may block, and may check the request beforehand; it
    raises BackendError in words. again: ask the backend to run the job once more (a retry).
    """

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        request: Request | None = None,
        job_id: str | None = None,
        *,
        again: bool = False,
    ) -> None:
        if (request is None) == (job_id is None):
            raise ValueError("give either a request or the id of a job")
        self._open_backend, self._request, self._job_id = open_backend, request, job_id
        self._again = again
        self._updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        self._cancelled, self._left = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._picture: np.ndarray | None = None
        self._backend: Backend | None = None
        self._client: Client | None = None
        self._job: dict[str, Any] = {}
        self._after, self._pictures = 0, 0
        self._silent_since: float | None = None
        self._cancel_sent = False

    # ---- for the main thread -------------------------------------------------------------------

    def updates(self, wait: float = 0.0) -> Iterator[Update]:
        """What has happened since the last call; waits up to `wait` seconds for the first."""
        try:
            yield self._updates.get(timeout=wait) if wait > 0 else self._updates.get_nowait()
            while True:
                yield self._updates.get_nowait()
        except queue.Empty:
            return

    def take_picture(self) -> np.ndarray | None:
        """The latest picture, uint8 (h, w, 3), once; None when there is no new one."""
        with self._lock:
            picture, self._picture = self._picture, None
        return picture

    def cancel(self) -> bool:
        """Ask for the job's end and return at once. True when the end comes as an update.

        False when no job exists yet: none will be left running, and nothing more need be awaited.
        """
        self._cancelled.set()
        with self._lock:
            return self._job_id is not None

    def leave(self) -> None:
        """Stop following; the job goes on without us."""
        self._left.set()

    # ---- for the desk's thread -----------------------------------------------------------------

    def step(self) -> bool:
        """One request or one short poll; False when there is nothing more to follow."""
        try:
            goes_on = not self._left.is_set() and (
                self._open() if self._client is None else self._poll()
            )
        except BackendError as error:
            goes_on = self._put_failure(str(error), error.remedy)
        except Exception as error:
            traceback.print_exc()
            words = f"internal error, {type(error).__name__}: {error} (see the console)"
            goes_on = self._put_failure(words, NOTHING)
        if not goes_on and self._client is not None:
            self._client.close()
        return goes_on

    def _open(self) -> bool:
        self._backend = self._open_backend()
        if self._cancelled.is_set() and self._request is not None:
            return self._end({"state": "cancelled", "message": "cancelled"})
        self._client = self._backend.client.twin()
        job = self._find_job(self._backend, self._client)
        with self._lock:
            self._job_id = job["id"]
        if self._cancelled.is_set():  # asked for while the job was on its way
            self._client.cancel(job["id"])
            self._cancel_sent = True
        self._take(job)
        return True

    def _find_job(self, backend: Backend, client: Client) -> dict[str, Any]:
        """The job to follow, submitted now where it does not exist yet."""
        try:
            if self._request is not None:
                return self._submit(client, self._request)
            assert self._job_id is not None
            return client.retry(self._job_id) if self._again else client.job(self._job_id)
        except BackendUnreachable as error:
            raise BackendError(self._lost(backend, str(error)), START) from error
        except BackendRefused as error:
            if error.status == 404:
                raise BackendError(
                    f"the backend does not know job {self._job_id}: "
                    "its data folder has changed or was cleared; generate again"
                ) from error
            raise

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

    def _poll(self) -> bool:
        """Ask for what has happened, and for a cancel first where one is wanted."""
        assert self._client is not None and self._backend is not None
        job_id = self._job["id"]
        try:
            if self._cancelled.is_set() and not self._cancel_sent:
                self._client.cancel(job_id)
                self._cancel_sent = True
            if self._job["state"] in FINAL_STATES:
                # The first events of a job that is watched again are its past, where an end
                # may be followed by a new start: only the job itself knows.
                self._job = self._client.job(job_id)
                if self._job["state"] in FINAL_STATES:
                    return self._end(self._job)
            events = self._client.events(job_id, after=self._after, wait=POLL_SECONDS)
            for event in events:
                self._after = event["seq"]
                if event["kind"] == "state":
                    self._take(event["data"])
                elif event["kind"] == "progress":
                    self._put("progress", event["data"])
            self._fetch_picture(events)
            self._silent_since = None
        except BackendUnreachable as error:
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            silent = now - self._silent_since
            # A process that was killed a moment ago may still look alive.
            if silent > SILENCE_SECONDS or (silent > 0.2 and not self._backend.alive()):
                raise BackendError(self._lost(self._backend, str(error)), START) from error
            self._left.wait(0.1)
        return True

    def _fetch_picture(self, events: list[dict[str, Any]]) -> None:
        made = max((e["data"].get("preview", 0) for e in events), default=0)
        if made == self._pictures or not made:
            return
        assert self._client is not None
        self._pictures, picture = made, self._client.preview(self._job["id"])
        if picture is not None:
            with self._lock:
                waiting, self._picture = self._picture is not None, picture
            if not waiting:
                self._put("picture", {})

    def _take(self, job: dict[str, Any]) -> None:
        self._job = job
        self._put("job", job)

    @staticmethod
    def _lost(backend: Backend, why: str) -> str:
        if backend.alive():
            return f"the job can no longer be followed: {why}"
        return (
            f"{backend.end_in_words()}. Generate starts it again; "
            "a job that it had accepted goes on from its beginning"
        )

    def _end(self, job: dict[str, Any]) -> bool:
        self._put("end", job)
        return False

    def _put_failure(self, message: str, remedy: str) -> bool:
        """No job came of it, or there is one that goes on unseen."""
        if self._job_id is None:
            words = {"state": "failed", "error": message, "message": "", "remedy": remedy}
            return self._end(words)
        self._put("broken", {"message": message, "remedy": remedy})
        return False

    def _put(self, kind: str, data: dict[str, Any]) -> None:
        if not self._left.is_set():
            self._updates.put(Update(kind, data))
