# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend's HTTP interface as Python methods, every call with a timeout.
It never reads proxy settings, never sends its token anywhere else, and never imports bpy."""

from __future__ import annotations

import io
import time
import uuid
from typing import Any

import numpy as np
import requests

from . import PREFERENCES, BackendRefused, BackendUnreachable

CONNECT_SECONDS = 2.0
READ_SECONDS = 10.0
SUBMIT_ATTEMPTS = 4
LOOPBACK = "127.0.0.1"


def new_key() -> str:
    """A key that makes one submission one job, however often it is sent."""
    return uuid.uuid4().hex


class Client:
    """Talks to the backend on host:port with its token.

    Every method raises BackendUnreachable when nobody answers in time and BackendRefused when the
    backend answers with an error. A Client belongs to one thread; twin() makes one for another.
    """

    def __init__(
        self,
        port: int,
        token: str,
        *,
        host: str = LOOPBACK,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self.host, self.port, self.token, self.read_seconds = host, port, token, read_seconds
        self._session = requests.Session()
        # No proxies, no .netrc: the token must never travel anywhere else.
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {token}"

    def twin(self, *, read_seconds: float | None = None) -> Client:
        seconds = read_seconds or self.read_seconds
        return Client(self.port, self.token, host=self.host, read_seconds=seconds)

    def close(self) -> None:
        self._session.close()

    def health(self) -> dict[str, Any]:
        """{"protocol", "instance", "version"}."""
        return self._call("GET", "/health")

    def doctor(self) -> dict[str, Any]:
        """What the backend found on this machine. Takes seconds: it loads torch to look."""
        return self._call("GET", "/doctor", read_seconds=130.0)

    def machine(self) -> dict[str, Any]:
        """Devices, models and options of jobs, and whether torch works; "ready": all is known."""
        return self._call("GET", "/machine")

    def estimate(self, capture: str, options: dict[str, Any]) -> dict[str, Any]:
        """{"seconds", "memory_bytes", "basis", "stages", "work"} of a job that is not run."""
        return self._call("POST", "/estimate", json={"capture": capture, "options": options})

    def preview(self, job_id: str) -> np.ndarray | None:
        """The latest picture of the job's grid, uint8 (h, w, 3); None when there is none."""
        content = self._answer("GET", f"/jobs/{job_id}/preview").content
        if not content:
            return None
        try:
            picture = np.load(io.BytesIO(content), allow_pickle=False)
        except ValueError:
            return None
        fits = picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
        return picture if fits and max(picture.shape) <= 4096 else None

    def remove(self, job_id: str) -> None:
        """Forget a job that has ended; its output stays."""
        self._call("DELETE", f"/jobs/{job_id}")

    def submit(
        self, capture: str, out: str, options: dict[str, Any], *, key: str | None = None
    ) -> dict[str, Any]:
        """Queue one job and return it. capture and out are absolute paths.

        A lost answer is asked for again with the same key, which gives the same job.
        """
        headers = {"Idempotency-Key": key or new_key()}
        body = {"capture": capture, "out": out, "options": options}
        for attempt in range(SUBMIT_ATTEMPTS):
            try:
                return self._call("POST", "/jobs", json=body, headers=headers)
            except BackendUnreachable:
                if attempt == SUBMIT_ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    def jobs(self) -> list[dict[str, Any]]:
        """The newest jobs, newest first."""
        return self._call("GET", "/jobs")["jobs"]

    def job(self, job_id: str) -> dict[str, Any]:
        return self._call("GET", f"/jobs/{job_id}")

    def events(self, job_id: str, *, after: int, wait: float) -> list[dict[str, Any]]:
        """Events with seq > after; waits up to `wait` seconds for the first one."""
        answer = self._call(
            "GET",
            f"/jobs/{job_id}/events",
            params={"after": after, "wait": wait},
            read_seconds=wait + self.read_seconds,
        )
        return answer["events"]

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._call("POST", f"/jobs/{job_id}/cancel")

    def retry(self, job_id: str) -> dict[str, Any]:
        return self._call("POST", f"/jobs/{job_id}/retry")

    def shutdown(self) -> None:
        self._call("POST", "/shutdown")

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self._answer(method, path, **arguments)
        try:
            return answer.json()
        except requests.exceptions.JSONDecodeError as error:
            raise BackendRefused(
                f"what answers on port {self.port} is not Viewtime's backend: another program has "
                "taken the port",
                502,
                PREFERENCES,
            ) from error

    def _answer(
        self, method: str, path: str, *, read_seconds: float | None = None, **arguments: Any
    ) -> requests.Response:
        timeout = (CONNECT_SECONDS, read_seconds or self.read_seconds)
        try:
            answer = self._session.request(
                method,
                f"http://{self.host}:{self.port}{path}",
                timeout=timeout,
                allow_redirects=False,
                **arguments,
            )
        except requests.exceptions.RequestException as error:
            raise BackendUnreachable(
                f"the backend does not answer on port {self.port} ({type(error).__name__})"
            ) from error
        if answer.status_code == 401:
            raise BackendRefused(
                f"the backend on port {self.port} refused the token: take the one from the "
                "backend.json in its data folder",
                401,
                PREFERENCES,
            )
        if answer.status_code >= 300:
            raise BackendRefused(_refusal(answer), answer.status_code)
        return answer


def _refusal(answer: requests.Response) -> str:
    """One line out of an error answer, whatever its shape."""
    try:
        detail = answer.json().get("detail", "")
    except (ValueError, AttributeError):
        detail = answer.text[:200]
    if isinstance(detail, list):
        # The validation errors of FastAPI: [{"loc": [...], "msg": "..."}].
        parts = (f"{'.'.join(map(str, e.get('loc', [])))}: {e.get('msg', '')}" for e in detail)
        detail = "; ".join(parts)
    text = " ".join(str(detail).split()) or answer.reason
    # These are about what was asked, in sentences written for people; the rest is about us.
    if answer.status_code in (404, 409, 422):
        return text
    return f"the backend refused: {text} (HTTP {answer.status_code})"
