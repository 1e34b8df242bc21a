# SPDX-License-Identifier: Apache-2.0
"""What the supervisor does between jobs, in this process with a real worker.
Never waits without a deadline."""

from __future__ import annotations

import sys
import threading

import pytest

from viewtime.server import supervisor
from viewtime.server.service import Service
from viewtime.server.transitions import FINAL


def run_one(service: Service, capture, out, key: str):
    """Submit a job and wait for its end, woken by the store."""
    changed = threading.Condition()

    def ring():
        with changed:
            changed.notify_all()

    service.store.on_change = ring
    job = service.submit(key, str(capture), str(out), {})
    with changed:
        assert changed.wait_for(lambda: service.store.job(job.id).state in FINAL, 60.0)
    return service.store.job(job.id)


@pytest.mark.skipif(sys.platform != "linux", reason="waits for a process through a pidfd")
def test_a_worker_without_work_gives_its_memory_back_and_the_next_job_gets_a_new_one(
    tmp_path, full_capture, wait_gone, monkeypatch
):
    monkeypatch.setattr(supervisor, "IDLE_SECONDS", 1.0)
    service = Service(tmp_path / "data")
    try:
        assert run_one(service, full_capture, tmp_path / "a", "a").state == "succeeded"
        pid = service.supervisors[0].worker_pid
        assert pid is not None
        wait_gone(pid)
        job = run_one(service, full_capture, tmp_path / "b", "b")
        assert (job.state, job.attempt) == ("succeeded", 1)
        assert service.supervisors[0].worker_pid != pid
    finally:
        service.close()


def test_an_interpreter_that_cannot_start_is_told_in_words(tmp_path, full_capture, monkeypatch):
    service = Service(tmp_path / "data")
    monkeypatch.setattr(supervisor.sys, "executable", str(tmp_path / "no-python"))
    try:
        job = run_one(service, full_capture, tmp_path / "out", "a")
    finally:
        monkeypatch.undo()
        service.close()
    assert job.state == "interrupted"
    assert "no worker process" in job.error and "no-python" in job.error
