# SPDX-License-Identifier: Apache-2.0
"""A real backend in a process of its own, and the requests a client makes of it.
Never sleeps: every wait is a long poll or a read of a pipe, with a deadline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

TOKEN = "a-token-that-only-the-tests-know"
DEADLINE_SECONDS = 60.0
FINAL = {"succeeded", "failed", "cancelled", "interrupted"}


class Backend:
    """`viewtime serve --parent-lease` with this process as the parent."""

    def __init__(self, data: Path, device: str = "auto", memory_megabytes: int = 0) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "viewtime",
                "serve",
                "--parent-lease",
                "--data",
                str(data),
                "--device",
                device,
                "--memory-megabytes",
                str(memory_megabytes),
                "--threads",
                "1",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"token": TOKEN}).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.communicate()[1].decode())
        self.ready: dict[str, Any] = json.loads(line)
        self.url = f"http://127.0.0.1:{self.ready['port']}"
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {TOKEN}"

    def get(self, path: str, **kwargs: Any) -> requests.Response:
        return self.session.get(self.url + path, timeout=DEADLINE_SECONDS, **kwargs)

    def post(self, path: str, body: Any = None, **headers: str) -> requests.Response:
        return self.session.post(
            self.url + path, json=body, headers=headers, timeout=DEADLINE_SECONDS
        )

    def delete(self, path: str) -> requests.Response:
        return self.session.delete(self.url + path, timeout=DEADLINE_SECONDS)

    def submit(self, capture: Path, out: Path, key: str | None = None, **options: Any) -> str:
        body = {"capture": str(capture), "out": str(out), "options": options}
        answer = self.post("/jobs", body, **{"Idempotency-Key": key or uuid.uuid4().hex})
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def job(self, job_id: str) -> dict[str, Any]:
        return self.get(f"/jobs/{job_id}").json()

    def wait(self, job_id: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Follow the job's events until one satisfies `until`; that event."""
        after, deadline = 0, time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            answer = self.get(f"/jobs/{job_id}/events", params={"after": after, "wait": 5})
            for event in answer.json()["events"]:
                after = event["seq"]
                if until(event):
                    return event
        raise AssertionError(f"waited in vain; the job is {self.job(job_id)}")

    def wait_state(self, job_id: str, *states: str, attempt: int | None = None) -> dict[str, Any]:
        wanted = states or tuple(FINAL)
        return self.wait(
            job_id,
            lambda event: (
                event["kind"] == "state"
                and event["data"]["state"] in wanted
                and attempt in (None, event["data"]["attempt"])
            ),
        )["data"]

    def wait_step(self, job_id: str, attempt: int = 1) -> None:
        """Until the worker of this attempt has written at least one timestep."""
        running = False

        def written(event: dict[str, Any]) -> bool:
            nonlocal running
            data = event["data"]
            if event["kind"] == "state":
                running = (data["state"], data["attempt"]) == ("running", attempt)
            return running and data.get("stage") == "reconstruct" and data["step"] > 0

        self.wait(job_id, written)

    def worker_pid(self) -> int:
        """The one child of the server."""
        return child_of(self.process.pid)

    def close(self) -> int:
        """End as Blender does: let go of the pipe. The exit code."""
        self.session.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(DEADLINE_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return code


def child_of(pid: int) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in brackets may hold spaces: the parent is the second field behind it.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                return int(entry.name)
    raise AssertionError(f"process {pid} has no child")


@pytest.fixture
def start_backend(tmp_path) -> Iterator[Callable[..., Backend]]:
    """Start backends; whatever still runs at the end of the test is ended."""
    started: list[Backend] = []

    def start(data: Path | None = None, **kwargs: Any) -> Backend:
        started.append(Backend(data or tmp_path / "data", **kwargs))
        return started[-1]

    yield start
    for backend in started:
        if backend.process.poll() is None:
            backend.close()


@pytest.fixture
def wait_gone() -> Callable[[int], None]:
    """Wait for a process that is not our child, without sleeping: through a pidfd."""

    def wait(pid: int) -> None:
        import select

        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            ready, _, _ = select.select([descriptor], [], [], 10.0)
            assert ready, f"process {pid} lives on"
        finally:
            os.close(descriptor)

    return wait
