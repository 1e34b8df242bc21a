# SPDX-License-Identifier: Apache-2.0
"""Whole jobs through a real backend: success, cancel, and every way in which a process can die.
Never fakes a job: the worker runs the captured route on a small real capture."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import requests

from viewtime.server import supervisor
from viewtime_formats.splats import read_sequence

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


KEY = {"Idempotency-Key": "k"}
TOKEN = "a-token-that-only-the-tests-know"
DEADLINE_SECONDS = 60.0


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


def test_a_cancel_stops_the_job_within_a_few_of_its_steps_and_leaves_nothing(
    start_backend, long_capture, tmp_path
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "new" / "out")
    backend.wait_step(job_id)
    assert (tmp_path / "new" / "out" / "splats").is_dir()
    before = backend.post(f"/jobs/{job_id}/cancel").json()
    assert before["message"] == "stopping"
    job = backend.wait_state(job_id)
    assert (job["state"], job["error"]) == ("cancelled", None)
    # Not in seconds, which a busy machine stretches: of 600 steps it made a few more at most.
    # Its own word travels at most five times a second, hence the room.
    assert job["total"] == 600 and job["step"] - before["step"] <= 60
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "data").glob("previews/*"))
    assert backend.post(f"/jobs/{job_id}/cancel").json()["state"] == "cancelled"


def test_a_worker_gets_half_a_second_to_stop_by_itself():
    """What the tests below rely on: whoever does not listen is ended after this, not later."""
    assert supervisor.CANCEL_GRACE_SECONDS == 0.5


def test_a_cancel_while_the_worker_still_starts_does_not_wait_for_it(
    start_backend, long_capture, tmp_path
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "out")
    backend.wait_state(job_id, "running")
    before = backend.post(f"/jobs/{job_id}/cancel").json()
    job = backend.wait_state(job_id)
    assert job["state"] == "cancelled"
    # Had anybody waited for the worker to listen, the job would have come to its steps.
    assert job["step"] - before["step"] <= 60
    assert not (tmp_path / "out").exists()


@linux
def test_a_worker_that_does_not_listen_is_killed_and_its_remains_are_removed(
    start_backend, long_capture, full_capture, tmp_path, wait_gone
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "out")
    backend.wait_step(job_id)
    worker = backend.worker_pid()
    os.kill(worker, signal.SIGSTOP)  # deaf, as in a long call into C
    backend.post(f"/jobs/{job_id}/cancel")
    # It can never say that it has stopped: only its end at the deadline can end the job.
    assert backend.wait_state(job_id)["state"] == "cancelled"
    wait_gone(worker)
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
    last = backend.wait_state(job_id)
    after = backend.get(f"/jobs/{job_id}/events").json()["events"][-1]["seq"]
    answers = []
    poll = threading.Thread(
        target=lambda: answers.append(
            backend.get(f"/jobs/{job_id}/events", params={"after": after, "wait": 50})
        )
    )
    poll.start()
    other = requests.Session()
    other.trust_env = False
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert other.post(f"{backend.url}/shutdown", headers=headers, timeout=30).status_code == 202
    backend.process.wait(DEADLINE_SECONDS)
    poll.join(DEADLINE_SECONDS)
    # Answered with what there is, nothing, and not cut off.
    assert last["state"] == "succeeded" and answers[0].json() == {"events": []}


def test_a_job_tells_the_time_left_of_the_whole_and_shows_its_grid(
    start_backend, long_capture, tmp_path
):
    backend = start_backend()
    job_id = backend.submit(long_capture, tmp_path / "out")
    backend.wait_step(job_id)
    event = backend.wait(job_id, lambda e: e["data"].get("preview", 0) >= 2)["data"]
    assert 0 < event["fraction"] < 1 and event["job_eta_seconds"] > 0
    answer = backend.get(f"/jobs/{job_id}/preview")
    picture = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and max(picture.shape) <= 384
    # Its first columns show frames by now; its last ones are still the grey of the unknown.
    assert picture[:, :8].std() > 10 and picture[:, -8:].std() == 0
    backend.post(f"/jobs/{job_id}/cancel")
    backend.wait_state(job_id)
    assert backend.get("/jobs/nobody/preview").status_code == 404


def test_an_estimate_is_by_formula_first_and_measured_after_a_job(
    start_backend, full_capture, long_capture, tmp_path
):
    backend = start_backend()
    body = {"capture": str(full_capture), "options": {}}
    before = backend.post("/estimate", body).json()
    assert before["basis"] == "formula" and before["seconds"] > 0
    assert backend.wait_state(backend.submit(full_capture, tmp_path / "out"))["measured"]
    after = backend.post("/estimate", body).json()
    job = backend.get("/jobs").json()["jobs"][0]["measured"]
    assert after["basis"] == "measured"
    assert after["stages"] == {n: job["seconds"][n] for n in ("read", "reconstruct")}
    longer = backend.post("/estimate", {"capture": str(long_capture), "options": {}}).json()
    assert longer["stages"]["reconstruct"] == pytest.approx(120 * after["stages"]["reconstruct"])
    assert longer["memory_bytes"] == after["memory_bytes"]  # it holds one time at a time
    refused = backend.post("/estimate", {"capture": str(tmp_path), "options": {}})
    assert refused.status_code == 422 and "\n" not in refused.json()["detail"]


def test_a_job_is_removed_when_it_has_ended_and_its_output_stays(
    start_backend, full_capture, long_capture, tmp_path
):
    backend = start_backend()
    done = backend.submit(full_capture, tmp_path / "out")
    backend.wait_state(done)
    running = backend.submit(long_capture, tmp_path / "long")
    backend.wait_state(running, "running")
    assert backend.delete(f"/jobs/{running}").status_code == 409
    assert backend.delete(f"/jobs/{done}").status_code == 200
    assert backend.delete(f"/jobs/{done}").status_code == 404
    assert [job["id"] for job in backend.get("/jobs").json()["jobs"]] == [running]
    assert read_sequence(tmp_path / "out" / "splats").complete
    backend.post(f"/jobs/{running}/cancel")
    backend.wait_state(running, "cancelled")


def test_a_job_over_its_memory_limit_fails_in_words_and_leaves_nothing(
    start_backend, long_capture, tmp_path
):
    backend = start_backend(memory_megabytes=20)
    job = backend.wait_state(backend.submit(long_capture, tmp_path / "out"))
    assert job["state"] == "failed" and "its limit is 20 MiB" in job["error"]
    assert not (tmp_path / "out").exists()


def test_a_device_that_the_backend_has_not_is_refused_at_once(
    start_backend, full_capture, tmp_path
):
    backend = start_backend(device="cpu")
    body = {"capture": str(full_capture), "out": str(tmp_path / "out")}
    refused = backend.post("/jobs", {**body, "options": {"device": "cuda:3"}}, **KEY)
    assert refused.status_code == 422
    assert refused.json()["detail"] == "device is 'cuda:3'; this backend was started for cpu"
    assert backend.post("/jobs", {**body, "options": {"device": "cpu"}}, **KEY).status_code == 202


def test_the_machine_is_described_without_waiting_for_torch(start_backend):
    backend = start_backend()
    found = backend.get("/machine").json()
    assert found["ready"] is False and found["devices"][0]["id"] == "cpu"
    assert {"steps", "seed", "device"} <= set(found["options"])
    assert found["generators"][0] == {"id": "bundled", "name": "Bundled"}


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)
