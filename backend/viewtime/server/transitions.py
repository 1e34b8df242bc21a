# SPDX-License-Identifier: Apache-2.0
"""What may happen to a job, as pure functions of (job, event, now) that return the new job.
Never reads a clock, a database or a process, so that every case can be tested in microseconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

STATES = ("queued", "running", "succeeded", "failed", "cancelled", "interrupted")
FINAL = frozenset({"succeeded", "failed", "cancelled", "interrupted"})
RETRYABLE = frozenset({"failed", "cancelled", "interrupted"})
MAX_ATTEMPTS = 2


class TransitionError(Exception):
    """The event cannot happen to a job in this state; the message says both."""


@dataclass(frozen=True)
class Job:
    """One run of the pipeline as the store keeps it and the clients see it.

    created, started, finished: seconds since 1970. attempt: 0 before the first start.
    eta_seconds counts to the end of the present stage, job_eta_seconds to the end of the job;
    fraction (0 to 1) is of the job. preview counts the pictures made so far. measured: what a job
    that succeeded took (viewtime.estimate). cancel_requested is for the server alone.
    """

    id: str
    state: str
    capture: str
    out: str
    options: dict[str, Any] = field(default_factory=dict)
    attempt: int = 0
    error: str | None = None
    stage: str | None = None
    step: int = 0
    total: int = 0
    message: str = ""
    eta_seconds: float | None = None
    fraction: float = 0.0
    job_eta_seconds: float | None = None
    preview: int = 0
    measured: dict[str, Any] | None = None
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    splats: str | None = None
    cancel_requested: bool = False

    def public(self) -> dict[str, Any]:
        """The job as it goes over HTTP."""
        values = asdict(self)
        del values["cancel_requested"]
        return values


def submit(job_id: str, capture: str, out: str, options: dict[str, Any], now: float) -> Job:
    return Job(job_id, "queued", capture, out, options, created=now, message="waiting for its turn")


def start(job: Job, now: float) -> Job:
    """A worker takes the job."""
    _require(job, "start", {"queued"})
    return replace(
        job,
        state="running",
        attempt=job.attempt + 1,
        started=now,
        finished=None,
        error=None,
        message="starting",
        **_NO_PROGRESS,
    )


def progress(
    job: Job,
    stage: str,
    step: int,
    total: int,
    message: str,
    eta_seconds: float | None,
    fraction: float = 0.0,
    job_eta_seconds: float | None = None,
    preview: int = 0,
) -> Job:
    _require(job, "progress", {"running"})
    return replace(
        job,
        stage=stage,
        step=step,
        total=total,
        message=message,
        eta_seconds=eta_seconds,
        fraction=fraction,
        job_eta_seconds=job_eta_seconds,
        preview=preview,
    )


def succeed(job: Job, splats: str, now: float, measured: dict[str, Any] | None = None) -> Job:
    _require(job, "succeed", {"running"})
    return replace(
        job,
        state="succeeded",
        splats=splats,
        finished=now,
        eta_seconds=None,
        fraction=1.0,
        job_eta_seconds=None,
        measured=measured,
        message="done",
        cancel_requested=False,
    )


def fail(job: Job, error: str, now: float) -> Job:
    """The run raised: the same input would raise again, so it is not tried again by itself."""
    _require(job, "fail", {"running"})
    return _end(job, "failed", error, now)


def request_cancel(job: Job, now: float) -> Job:
    """A person wants it gone: at once when it waits, as soon as the worker stops when it runs.

    On a job that has ended this changes nothing, so a cancel may arrive late or twice.
    """
    if job.state == "queued":
        return cancelled(replace(job, cancel_requested=True), now)
    if job.state == "running":
        return replace(job, cancel_requested=True, message="stopping")
    return job


def cancelled(job: Job, now: float) -> Job:
    _require(job, "cancel", {"queued", "running"})
    return replace(_end(job, "cancelled", None, now), message="cancelled")


def crashed(job: Job, words: str, now: float) -> Job:
    """The worker or the server died under the job: once more, then it is given up in words."""
    _require(job, "crash", {"running"})
    if job.cancel_requested:
        return cancelled(job, now)
    if job.attempt < MAX_ATTEMPTS:
        return replace(
            job, state="queued", started=None, message=f"trying again: {words}", **_NO_PROGRESS
        )
    return _end(job, "interrupted", f"given up after {job.attempt} attempts: {words}", now)


def released(job: Job, now: float) -> Job:
    """The server stops in good order: the job waits for the next start and loses no attempt."""
    _require(job, "release", {"running"})
    if job.cancel_requested:
        return cancelled(job, now)
    return replace(
        job,
        state="queued",
        attempt=job.attempt - 1,
        started=None,
        message="waiting: the backend was stopped",
        **_NO_PROGRESS,
    )


def retry(job: Job, now: float) -> Job:
    """A person wants it run again, with a fresh count of attempts."""
    _require(job, "retry", RETRYABLE)
    return replace(
        job,
        state="queued",
        attempt=0,
        error=None,
        started=None,
        finished=None,
        message="waiting for its turn",
        cancel_requested=False,
        **_NO_PROGRESS,
    )


def require_ended(job: Job, event: str) -> None:
    """Raises TransitionError while the job waits or runs."""
    _require(job, event, FINAL)


_NO_PROGRESS: dict[str, Any] = {
    "stage": None,
    "step": 0,
    "total": 0,
    "eta_seconds": None,
    "fraction": 0.0,
    "job_eta_seconds": None,
    "preview": 0,
}


def _end(job: Job, state: str, error: str | None, now: float) -> Job:
    return replace(
        job,
        state=state,
        error=error,
        finished=now,
        eta_seconds=None,
        job_eta_seconds=None,
        message=error or "",
        cancel_requested=False,
    )


def _require(job: Job, event: str, states: set[str] | frozenset[str]) -> None:
    if job.state not in states:
        raise TransitionError(
            f"job {job.id} is {job.state}; {event} needs it to be {' or '.join(sorted(states))}"
        )
