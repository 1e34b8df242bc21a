# SPDX-License-Identifier: Apache-2.0
"""The store: durable, ordered, one writer. Never starts a process."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from viewtime.server import transitions
from viewtime.server.lock import LockedError, ProcessLock
from viewtime.server.store import KEPT_SECONDS, ConflictError, Store, UnknownJob
from viewtime.server.transitions import TransitionError
from viewtime_formats.errors import ViewtimeError


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "jobs.sqlite")
    yield store
    store.close()


def submit(store, key="k", out="/out", **options):
    return store.submit(key, "/capture", out, options, 1.0)


def test_what_was_stored_is_there_after_opening_it_again(tmp_path):
    store = Store(tmp_path / "jobs.sqlite")
    job, _ = submit(store, seed=3)
    store.close()
    store = Store(tmp_path / "jobs.sqlite")
    assert store.job(job.id) == job
    assert [event.kind for event in store.events(job.id)] == ["state"]
    store.close()


def test_the_same_key_and_request_give_the_same_job_and_another_request_is_refused(store):
    job, new = submit(store, seed=1)
    again, new_again = submit(store, seed=1)
    assert (new, new_again, again.id) == (True, False, job.id)
    with pytest.raises(ConflictError, match="was used for another request"):
        submit(store, seed=2)
    assert len(store.jobs()) == 1


def test_a_repeated_request_is_answered_even_when_a_new_one_would_be_refused(store):
    job, _ = submit(store)

    def refuse():
        raise ViewtimeError("the capture is gone")

    assert store.submit("k", "/capture", "/out", {}, 2.0, check=refuse)[0].id == job.id
    with pytest.raises(ViewtimeError, match="the capture is gone"):
        store.submit("other", "/capture", "/elsewhere", {}, 2.0, check=refuse)


def test_two_unfinished_jobs_never_share_an_output_folder(store):
    first, _ = submit(store, key="a")
    with pytest.raises(ConflictError, match="already writes there"):
        submit(store, key="b")
    store.apply(first.id, lambda job: transitions.cancelled(job, 2.0), 2.0)
    assert submit(store, key="b")[1]


def test_jobs_are_taken_in_order_and_by_one_worker_each(store):
    ids = [submit(store, key=str(n), out=f"/out/{n}")[0].id for n in range(20)]
    taken: list[str] = []

    def work():
        while (job := store.claim(2.0)) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)
    assert {store.job(i).attempt for i in ids} == {1}


def test_claims_go_oldest_first(store):
    ids = [submit(store, key=str(n), out=f"/out/{n}")[0].id for n in range(3)]
    assert [store.claim(2.0).id for _ in ids] == ids


def test_events_are_numbered_upwards_and_read_from_any_number_on(store):
    job, _ = submit(store)
    store.claim(2.0)
    store.log(job.id, "a line", 2.5)
    store.apply(job.id, lambda j: transitions.succeed(j, "/out/splats", 3.0), 3.0)
    events = store.events(job.id)
    assert [event.kind for event in events] == ["state", "state", "log", "state"]
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert store.events(job.id, after=events[1].seq) == events[2:]
    assert events[-1].data["splats"] == "/out/splats"
    assert "cancel_requested" not in events[-1].data


def test_a_long_job_keeps_one_progress_event_for_each_stage(store):
    job, _ = submit(store)
    store.claim(2.0)
    for stage in ("read", "reconstruct"):
        for step in range(50):
            store.apply(
                job.id,
                lambda j, at=(stage, step): transitions.progress(j, at[0], at[1], 50, "", None),
                3.0,
            )
    progress = [event.data for event in store.events(job.id) if event.kind == "progress"]
    assert [(data["stage"], data["step"]) for data in progress] == [
        ("read", 49),
        ("reconstruct", 49),
    ]


def test_a_transition_that_cannot_happen_changes_nothing(store):
    job, _ = submit(store)
    with pytest.raises(TransitionError, match="is queued"):
        store.apply(job.id, lambda j: transitions.succeed(j, "/x", 2.0), 2.0)
    assert store.job(job.id) == job
    assert len(store.events(job.id)) == 1


def test_an_unknown_job_is_called_unknown(store):
    for ask in (store.job, store.events, lambda i: store.apply(i, lambda j: j, 1.0)):
        with pytest.raises(UnknownJob, match="there is no job 'nobody'"):
            ask("nobody")


def test_after_a_crash_of_the_server_running_jobs_wait_again_and_then_are_given_up(store):
    job, _ = submit(store)
    for state in ("queued", "interrupted"):
        store.claim(2.0)
        ((before, after),) = store.recover("the backend was ended while it ran", 3.0)
        assert (before.state, after.state) == ("running", state)
    assert "the backend was ended" in store.job(job.id).error
    assert store.claim(4.0) is None


def test_a_database_of_another_version_is_refused_in_words(tmp_path):
    path = tmp_path / "jobs.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ViewtimeError, match="another version of Viewtime"):
        Store(path)


def test_a_lock_is_exclusive_and_ends_with_its_holder(tmp_path):
    path = tmp_path / "server.lock"
    lock = ProcessLock(path, "held by {pid}")
    with pytest.raises(LockedError, match=r"held by \d+"):
        ProcessLock(path, "held by {pid}")
    lock.close()
    ProcessLock(path, "held by {pid}").close()


def ended(store, key: str, at: float) -> str:
    job, _ = submit(store, key=key, out=f"/{key}")
    return store.apply(job.id, lambda j: transitions.cancelled(j, at), at).id


def test_old_jobs_are_forgotten_by_number_and_by_age_and_active_ones_never(store, monkeypatch):
    monkeypatch.setattr("viewtime.server.store.KEPT_JOBS", 3)
    waiting, _ = submit(store, key="waits for ever")
    jobs = [ended(store, f"k{n}", 100.0 + n) for n in range(5)]
    assert sorted(store.prune(200.0)) == sorted(jobs[:2])
    assert {job.id for job in store.jobs()} == {waiting.id, *jobs[2:]}
    with pytest.raises(UnknownJob):
        store.events(jobs[0])
    # The key of a forgotten job makes a new one.
    assert submit(store, key="k0", out="/k0")[1] is True
    later = 103.5 + KEPT_SECONDS
    assert set(store.prune(later)) == set(jobs[2:4])
    assert store.prune(later) == []


def test_a_job_is_claimed_by_the_device_that_it_asks_for(store):
    submit(store, key="a", out="/a", device="cuda:1")
    submit(store, key="b", out="/b", device="auto")
    assert store.claim(2.0, "cuda:0").out == "/b"
    assert store.claim(3.0, "cuda:0") is None
    assert store.claim(4.0, "cuda:1").out == "/a"
