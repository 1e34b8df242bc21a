# SPDX-License-Identifier: Apache-2.0
"""Whole jobs through a real backend: success, cancel, and every way in which a process can die.
Never fakes a job: the worker runs the captured route on a small real capture."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from viewtime_formats.splats import read_sequence

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_job_runs_to_splats_and_tells_its_way_there(start_backend, full_capture, tmp_path):
    backend = start_backend()
    job_id = backend.submit(full_capture, tmp_path / "out")
    job = backend.wait_state(job_id)
    assert (job["state"], job["error"], job["attempt"]) == ("succeeded", None, 1)
    assert job["splats"] == str(tmp_path / "out" / "splats")
    assert read_sequence(job["splats"]).complete
    events = backend.get(f"/jobs/{job_id}/events").json()["events"]
    states = [event["data"]["state"] for event in events if event["kind"] == "state"]
    assert states == ["queued", "running", "succeeded"]
    last = [event["data"] for event in events if event["kind"] == "progress"][-1]
    assert (last["stage"], last["step"], last["total"]) == ("reconstruct", 5, 5)
    assert backend.get("/jobs").json()["jobs"] == [backend.job(job_id)]


def test_the_models_stay_warm_a_second_job_uses_the_same_worker(
    start_backend, full_capture, tmp_path
):
    backend = start_backend()
    backend.wait_state(backend.submit(full_capture, tmp_path / "a"))
    pid = backend.worker_pid()
    job = backend.wait_state(backend.submit(full_capture, tmp_path / "b"))
    assert (job["state"], backend.worker_pid()) == ("succeeded", pid)


def test_a_cancel_takes_less_than_a_second_and_leaves_nothing(
    start_backend, long_capture, tmp_path
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "new" / "out")
    backend.wait_step(job_id)
    assert (tmp_path / "new" / "out" / "splats").is_dir()
    began = time.monotonic()
    backend.post(f"/jobs/{job_id}/cancel")
    job = backend.wait_state(job_id)
    assert time.monotonic() - began < 1.0
    assert (job["state"], job["error"]) == ("cancelled", None)
    assert not (tmp_path / "new").exists()
    assert backend.post(f"/jobs/{job_id}/cancel").json()["state"] == "cancelled"


def test_a_cancel_while_the_worker_still_starts_takes_less_than_a_second(
    start_backend, long_capture, tmp_path
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "out")
    backend.wait_state(job_id, "running")
    began = time.monotonic()
    backend.post(f"/jobs/{job_id}/cancel")
    assert backend.wait_state(job_id)["state"] == "cancelled"
    assert time.monotonic() - began < 1.0
    assert not (tmp_path / "out").exists()


@linux
def test_a_worker_that_does_not_listen_is_killed_and_its_remains_are_removed(
    start_backend, long_capture, full_capture, tmp_path
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "out")
    backend.wait_step(job_id)
    os.kill(backend.worker_pid(), signal.SIGSTOP)  # deaf, as in a long call into C
    began = time.monotonic()
    backend.post(f"/jobs/{job_id}/cancel")
    assert backend.wait_state(job_id)["state"] == "cancelled"
    assert time.monotonic() - began < 1.0
    assert not (tmp_path / "out").exists()
    again = backend.submit(full_capture, tmp_path / "out")
    assert backend.wait_state(again)["state"] == "succeeded"


def test_a_waiting_job_is_cancelled_at_once_and_can_be_tried_again(
    start_backend, long_capture, full_capture, tmp_path
):
    backend = start_backend()
    first = backend.submit(long_capture, tmp_path / "a")
    second = backend.submit(full_capture, tmp_path / "b")
    assert backend.post(f"/jobs/{second}/cancel").json()["state"] == "cancelled"
    assert backend.post(f"/jobs/{second}/retry").json()["state"] == "queued"
    assert backend.post(f"/jobs/{second}/retry").status_code == 409
    backend.post(f"/jobs/{first}/cancel")
    backend.wait(second, lambda event: event["data"].get("state") == "succeeded")


@linux
def test_a_killed_worker_costs_one_attempt_and_a_second_kill_is_told_in_words(
    start_backend, long_capture, tmp_path
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "out")
    for attempt in (1, 2):
        backend.wait_step(job_id, attempt)
        os.kill(backend.worker_pid(), signal.SIGKILL)
    job = backend.wait_state(job_id)
    assert (job["state"], job["attempt"]) == ("interrupted", 2)
    assert job["error"].startswith("given up after 2 attempts: the worker was ended by SIGKILL")
    assert "\n" not in job["error"]
    assert not (tmp_path / "out").exists()


@linux
def test_the_last_lines_of_a_worker_that_crashed_are_in_the_error(
    start_backend, long_capture, tmp_path
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "out")
    for attempt in (1, 2):
        backend.wait_step(job_id, attempt)
        os.kill(backend.worker_pid(), signal.SIGSEGV)
    error = backend.wait_state(job_id)["error"]
    assert "ended by SIGSEGV; its last lines: Fatal Python error: Segmentation fault" in error
    assert ", line " in error


@linux
def test_a_killed_backend_leaves_no_worker_and_its_job_is_done_by_the_next(
    start_backend, long_capture, tmp_path, wait_gone
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "out")
    backend.wait_step(job_id)
    worker = backend.worker_pid()
    backend.process.kill()
    backend.process.wait()
    wait_gone(worker)
    backend = start_backend()
    backend.wait_step(job_id, attempt=2)
    backend.process.kill()
    backend.process.wait()
    backend = start_backend()
    job = backend.job(job_id)
    assert (job["state"], job["attempt"]) == ("interrupted", 2)
    assert "the backend was ended while it ran" in job["error"]
    assert not (tmp_path / "out").exists()


@linux
def test_a_closed_pipe_ends_backend_and_worker_and_the_job_waits_without_losing_an_attempt(
    start_backend, long_capture, tmp_path, wait_gone
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "out")
    backend.wait_step(job_id)
    worker = backend.worker_pid()
    assert backend.close() == 0
    wait_gone(worker)
    assert not (tmp_path / "out").exists()
    backend = start_backend()
    job = backend.wait_state(job_id, "running", attempt=1)
    assert job["attempt"] == 1
    backend.post(f"/jobs/{job_id}/cancel")
    backend.wait_state(job_id, "cancelled")


@linux
def test_a_killed_parent_takes_the_backend_with_it(tmp_path, wait_gone):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "data")], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    server = json.loads(parent.stdout.readline())["pid"]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_gone(server)


PARENT = """
import subprocess, sys
server = subprocess.Popen(
    [sys.executable, "-m", "viewtime", "serve", "--parent-lease", "--data", sys.argv[1]],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
server.stdin.write(b'{"token": "0123456789abcdef"}\\n')
server.stdin.flush()
print(server.stdout.readline().decode(), flush=True)
server.wait()
"""


def test_doctor_answers_over_http_from_a_process_of_its_own(start_backend):
    findings = start_backend().get("/doctor").json()["findings"]
    assert {"python", "torch", "backend data"} <= {finding["name"] for finding in findings}


def test_shutdown_over_http_ends_the_backend_in_good_order(start_backend):
    backend = start_backend()
    assert backend.post("/shutdown").status_code == 202
    assert backend.process.wait(10.0) == 0


def test_a_job_that_cannot_work_fails_once_with_one_line(start_backend, full_capture, tmp_path):
    broken = tmp_path / "broken"
    _copy(full_capture, broken)
    image = broken / "frames" / "1.3.png"
    image.write_bytes(image.read_bytes()[:60])  # the header stands, the pixels are gone
    backend = start_backend()
    job = backend.wait_state(backend.submit(broken, tmp_path / "out"))
    assert (job["state"], job["attempt"]) == ("failed", 1)
    assert "1.3.png" in job["error"] and "\n" not in job["error"]
    assert not (tmp_path / "out").exists()


def test_two_backends_on_one_data_folder_the_second_says_so(start_backend, tmp_path):
    backend = start_backend()
    with pytest.raises(RuntimeError) as refused:
        start_backend()
    message = str(refused.value).strip()
    assert f"another Viewtime backend (process {backend.process.pid})" in message
    assert "\n" not in message and left_in(tmp_path) == ["data"]


def test_a_long_poll_returns_when_the_backend_leaves(start_backend, full_capture, tmp_path):
    backend = start_backend()
    job_id = backend.submit(full_capture, tmp_path / "out")
    backend.wait_state(job_id)
    backend.post("/shutdown")
    began = time.monotonic()
    backend.process.wait(10.0)
    assert time.monotonic() - began < 5.0


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)
