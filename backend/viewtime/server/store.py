# SPDX-License-Identifier: Apache-2.0
"""Jobs and their events in SQLite: one thread owns the only write connection, readers have theirs.
Never decides what may happen to a job; that is `transitions`, which it applies inside a write."""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from viewtime.server import transitions
from viewtime.server.transitions import FINAL, Job
from viewtime_formats.errors import ViewtimeError

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    out TEXT NOT NULL,
    job TEXT NOT NULL
);
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL REFERENCES jobs (id),
    kind TEXT NOT NULL,
    topic TEXT NOT NULL,
    at REAL NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX events_by_job ON events (job_id, seq);
CREATE TABLE keys (
    key TEXT PRIMARY KEY,
    request TEXT NOT NULL,
    job_id TEXT NOT NULL REFERENCES jobs (id)
);
"""
MAX_LOG_LINE = 2000
# A job that has ended is remembered while it is among the newest of these, and not for longer.
KEPT_JOBS = 100
KEPT_SECONDS = 90 * 86400.0

T = TypeVar("T")


class ConflictError(Exception):
    """The request contradicts what is stored: a reused key, or an output folder in use."""


class UnknownJob(Exception):
    """There is no job of this id."""


@dataclass(frozen=True)
class Event:
    """One entry of a job's log. kind: "state", "progress" or "log"."""

    seq: int
    kind: str
    data: dict[str, Any]


class Store:
    """The durable state of one data directory.

    `on_change` is called from the writer thread after each commit. Every public method may be
    called from any thread. A method returns after its transaction has reached the disk.
    """

    def __init__(self, path: Path, on_change: Callable[[], None] | None = None) -> None:
        self._path = path
        self.on_change = on_change or (lambda: None)
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._tasks: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Future] | None]
        self._tasks = queue.SimpleQueue()
        self._writer = _connect(path)
        try:
            _migrate(self._writer, path)
        except BaseException:
            self._writer.close()
            raise
        self._thread = threading.Thread(target=self._write_loop, name="viewtime-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish what is queued and close every connection."""
        self._tasks.put(None)
        self._thread.join()
        for reader in self._readers:
            reader.close()

    # ---- reading -------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        """Raises UnknownJob."""
        return _job(self._reader(), job_id)

    def jobs(self, limit: int = 200) -> list[Job]:
        """The newest jobs, newest first."""
        rows = self._reader().execute("SELECT job FROM jobs ORDER BY number DESC LIMIT ?", (limit,))
        return [_from_json(row[0]) for row in rows]

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events with a sequence number over `after`, oldest first. Raises UnknownJob."""
        reader = self._reader()
        _job(reader, job_id)
        rows = reader.execute(
            "SELECT seq, kind, data FROM events WHERE job_id = ? AND seq > ? ORDER BY seq LIMIT ?",
            (job_id, after, limit),
        )
        return [Event(seq, kind, json.loads(data)) for seq, kind, data in rows]

    # ---- writing -------------------------------------------------------------------------------

    def submit(
        self,
        key: str,
        capture: str,
        out: str,
        options: dict[str, Any],
        now: float,
        check: Callable[[], None] = lambda: None,
    ) -> tuple[Job, bool]:
        """The new job and True; or the job that this key and request made before, and False.

        `check` may raise to refuse a new job; a repeated request is answered without it, because
        what held when the job was accepted need not hold any more. Raises ConflictError when the
        key came with another request, or when an unfinished job already writes to this folder.
        """
        request = json.dumps([capture, out, options], sort_keys=True)
        # Outside of the write: it may read a folder on a slow disk.
        known = self._reader().execute("SELECT 1 FROM keys WHERE key = ?", (key,)).fetchone()
        if known is None:
            check()

        def write(db: sqlite3.Connection) -> tuple[Job, bool]:
            row = db.execute("SELECT request, job_id FROM keys WHERE key = ?", (key,)).fetchone()
            if row is not None:
                if row[0] != request:
                    raise ConflictError(
                        f"Idempotency-Key {key!r} was used for another request; use a new key"
                    )
                return _job(db, row[1]), False
            busy = db.execute(
                "SELECT id FROM jobs WHERE out = ? AND state IN ('queued', 'running')", (out,)
            ).fetchone()
            if busy is not None:
                raise ConflictError(f"{out}: job {busy[0]} already writes there; wait or cancel it")
            job = transitions.submit(uuid.uuid4().hex, capture, out, options, now)
            db.execute(
                "INSERT INTO jobs (id, state, out, job) VALUES (?, ?, ?, ?)",
                (job.id, job.state, job.out, _to_json(job)),
            )
            db.execute("INSERT INTO keys VALUES (?, ?, ?)", (key, request, job.id))
            _add_event(db, job.id, "state", "state", job.public(), now)
            return job, True

        return self._write(write)

    def apply(self, job_id: str, change: Callable[[Job], Job], now: float) -> Job:
        """Apply one transition. Raises UnknownJob and what `change` raises (nothing is stored)."""
        return self._write(lambda db: _change(db, _job(db, job_id), change, now))

    def claim(self, now: float, device: str = "auto") -> Job | None:
        """Start the oldest waiting job that may run on `device`; None when there is none.

        "auto" takes any. Two workers never get the same.
        """

        def write(db: sqlite3.Connection) -> Job | None:
            rows = db.execute("SELECT job FROM jobs WHERE state = 'queued' ORDER BY number")
            for (text,) in rows:
                job = _from_json(text)
                if device == "auto" or job.options.get("device", "auto") in ("auto", device):
                    rows.close()
                    return _change(db, job, lambda job: transitions.start(job, now), now)
            return None

        return self._write(write)

    def remove(self, job_id: str) -> None:
        """Forget a job that has ended. Raises UnknownJob, TransitionError while it is active."""

        def write(db: sqlite3.Connection) -> None:
            transitions.require_ended(_job(db, job_id), "remove")
            _forget(db, job_id)

        self._write(write)

    def prune(self, now: float) -> list[str]:
        """Forget old jobs and return their ids: see KEPT_JOBS and KEPT_SECONDS. Never active ones.

        What a job wrote is the artist's and stays.
        """

        def write(db: sqlite3.Connection) -> list[str]:
            marks = ", ".join("?" * len(FINAL))
            rows = db.execute(f"SELECT job FROM jobs WHERE state IN ({marks})", sorted(FINAL))
            ended = sorted((_from_json(row[0]) for row in rows), key=lambda j: -(j.finished or 0.0))
            old = [
                job.id
                for place, job in enumerate(ended)
                if place >= KEPT_JOBS or now - (job.finished or 0.0) > KEPT_SECONDS
            ]
            for job_id in old:
                _forget(db, job_id)
            return old

        return self._write(write)

    def log(self, job_id: str, text: str, now: float) -> None:
        """Add a line for people to the job's events."""
        data = {"text": text[:MAX_LOG_LINE]}
        self._write(lambda db: _add_event(db, job_id, "log", "log", data, now))

    def recover(self, words: str, now: float) -> list[tuple[Job, Job]]:
        """At start: what is still "running" lost its server. (before, after) for each of them."""

        def write(db: sqlite3.Connection) -> list[tuple[Job, Job]]:
            rows = db.execute("SELECT job FROM jobs WHERE state = 'running' ORDER BY number")
            found = [_from_json(row[0]) for row in rows.fetchall()]
            return [
                (job, _change(db, job, lambda j: transitions.crashed(j, words, now), now))
                for job in found
            ]

        return self._write(write)

    # ---- inside --------------------------------------------------------------------------------

    def _write(self, task: Callable[[sqlite3.Connection], T]) -> T:
        future: Future = Future()
        self._tasks.put((task, future))
        return future.result()

    def _write_loop(self) -> None:
        while (item := self._tasks.get()) is not None:
            task, future = item
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                result = task(self._writer)
                self._writer.execute("COMMIT")
            except BaseException as error:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                future.set_exception(_in_words(error, self._path))
            else:
                future.set_result(result)
                self.on_change()
        self._writer.close()

    def _reader(self) -> sqlite3.Connection:
        reader = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = _connect(self._path)
            reader.execute("PRAGMA query_only = ON")
            self._readers.append(reader)
        return reader


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL: an acknowledged job survives a power cut too, and there are few writes per second.
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    if version != 0:
        raise ViewtimeError(
            f"{path}: was written by another version of Viewtime (layout {version}, this one reads "
            f"{SCHEMA_VERSION}); update Viewtime or choose another data folder"
        )
    db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _change(db: sqlite3.Connection, job: Job, change: Callable[[Job], Job], now: float) -> Job:
    new = change(job)
    if new == job:
        return job
    db.execute(
        "UPDATE jobs SET state = ?, job = ? WHERE id = ?", (new.state, _to_json(new), job.id)
    )
    if new.state == job.state == "running" and new.cancel_requested == job.cancel_requested:
        data = {
            "stage": new.stage,
            "step": new.step,
            "total": new.total,
            "message": new.message,
            "eta_seconds": new.eta_seconds,
            "fraction": new.fraction,
            "job_eta_seconds": new.job_eta_seconds,
            "preview": new.preview,
        }
        _add_event(db, job.id, "progress", f"progress:{new.stage}", data, now)
    else:
        _add_event(db, job.id, "state", "state", new.public(), now)
    return new


def _add_event(
    db: sqlite3.Connection, job_id: str, kind: str, topic: str, data: dict[str, Any], now: float
) -> None:
    if kind == "progress":
        # Only the latest progress of a stage means anything: a long job must not fill the disk.
        db.execute("DELETE FROM events WHERE job_id = ? AND topic = ?", (job_id, topic))
    db.execute(
        "INSERT INTO events (job_id, kind, topic, at, data) VALUES (?, ?, ?, ?, ?)",
        (job_id, kind, topic, now, json.dumps(data)),
    )


def _forget(db: sqlite3.Connection, job_id: str) -> None:
    db.execute("DELETE FROM events WHERE job_id = ?", (job_id,))
    db.execute("DELETE FROM keys WHERE job_id = ?", (job_id,))
    db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))


def _job(db: sqlite3.Connection, job_id: str) -> Job:
    row = db.execute("SELECT job FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise UnknownJob(f"there is no job {job_id[:64]!r}")
    return _from_json(row[0])


def _to_json(job: Job) -> str:
    return json.dumps({**job.public(), "cancel_requested": job.cancel_requested})


_FIELDS = {field.name for field in fields(Job)}


def _from_json(text: str) -> Job:
    return Job(**{name: value for name, value in json.loads(text).items() if name in _FIELDS})


def _in_words(error: BaseException, path: Path) -> BaseException:
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return ViewtimeError(f"{path}: the disk is full; free some space and try again")
    return error
