# SPDX-License-Identifier: Apache-2.0
"""What may happen to a job, over every order of events. Never starts a process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewtime.server import transitions
from viewtime.server.transitions import FINAL, MAX_ATTEMPTS, TransitionError

EVENTS = {
    "start": lambda job, now: transitions.start(job, now),
    "progress": lambda job, now: transitions.progress(job, "read", 1, 2, "reading", 3.0),
    "succeed": lambda job, now: transitions.succeed(job, "/out/splats", now),
    "fail": lambda job, now: transitions.fail(job, "no such thing", now),
    "request_cancel": lambda job, now: transitions.request_cancel(job, now),
    "cancelled": lambda job, now: transitions.cancelled(job, now),
    "crashed": lambda job, now: transitions.crashed(job, "killed", now),
    "released": lambda job, now: transitions.released(job, now),
    "retry": lambda job, now: transitions.retry(job, now),
}


def new_job():
    return transitions.submit("a", "/capture", "/out", {}, 1.0)


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=30))
def test_a_job_is_always_in_one_consistent_state_whatever_happens_to_it(names):
    job = new_job()
    for now, name in enumerate(names, 2):
        before = job
        try:
            job = EVENTS[name](job, float(now))
        except TransitionError:
            assert job is before
            continue
        assert job.state in transitions.STATES
        assert (job.finished is not None) == (job.state in FINAL)
        assert (job.error is not None) == (job.state in {"failed", "interrupted"})
        assert (job.splats is not None) == (job.state == "succeeded")
        assert (job.started is not None) or job.state != "running"
        assert 0 <= job.attempt <= MAX_ATTEMPTS
        assert not job.cancel_requested or job.state == "running"
        if before.state in FINAL:
            assert name in {"retry", "request_cancel"}


def test_a_crash_is_tried_once_more_and_then_told_in_words():
    job = transitions.crashed(transitions.start(new_job(), 2.0), "ended by SIGKILL", 3.0)
    assert (job.state, job.attempt) == ("queued", 1)
    job = transitions.crashed(transitions.start(job, 4.0), "ended by SIGKILL", 5.0)
    assert (job.state, job.attempt, job.finished) == ("interrupted", 2, 5.0)
    assert job.error == "given up after 2 attempts: ended by SIGKILL"


def test_a_crash_under_a_job_that_was_to_be_cancelled_is_the_cancel():
    job = transitions.request_cancel(transitions.start(new_job(), 2.0), 3.0)
    assert transitions.crashed(job, "ended by SIGKILL", 4.0).state == "cancelled"


def test_stopping_the_backend_costs_a_job_no_attempt():
    job = transitions.released(transitions.start(new_job(), 2.0), 3.0)
    assert (job.state, job.attempt) == ("queued", 0)


@pytest.mark.parametrize("state", sorted(FINAL - {"succeeded"}))
def test_a_job_that_ended_badly_can_be_tried_again_from_the_beginning(state):
    ends = {
        "failed": lambda job: transitions.fail(job, "x", 3.0),
        "cancelled": lambda job: transitions.cancelled(job, 3.0),
        "interrupted": lambda job: transitions.crashed(
            transitions.start(transitions.crashed(job, "x", 3.0), 4.0), "x", 5.0
        ),
    }
    job = transitions.retry(ends[state](transitions.start(new_job(), 2.0)), 6.0)
    assert (job.state, job.attempt, job.error, job.finished) == ("queued", 0, None, None)
