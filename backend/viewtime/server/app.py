# SPDX-License-Identifier: Apache-2.0
"""The HTTP routes of the backend: JSON in, JSON out, one line of `detail` for each error.
Never holds state of its own, never blocks the event loop, never answers without the token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from viewtime import __version__
from viewtime.server import PROTOCOL
from viewtime.server.security import ALLOWED_HOSTS, Gate
from viewtime.server.service import Service
from viewtime.server.store import ConflictError, Event, UnknownJob
from viewtime.server.transitions import TransitionError
from viewtime_formats.errors import ViewtimeError

MAX_WAIT_SECONDS = 60.0


class JobRequest(BaseModel):
    """The body of POST /jobs. capture and out are absolute paths on this machine."""

    model_config = ConfigDict(extra="forbid", strict=True)

    capture: str = Field(min_length=1, max_length=4096)
    out: str = Field(min_length=1, max_length=4096)
    options: dict[str, Any] = Field(default_factory=dict)


class EstimateRequest(BaseModel):
    """The body of POST /estimate: a job that is not to be run."""

    model_config = ConfigDict(extra="forbid", strict=True)

    capture: str = Field(min_length=1, max_length=4096)
    options: dict[str, Any] = Field(default_factory=dict)


class Bell:
    """Wakes every waiting long poll when something was stored; rung from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()
        self.closed = False

    def attach(self) -> None:
        self._loop = asyncio.get_running_loop()

    def ring(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ring)

    def close(self) -> None:
        """From now on nobody waits: the server is leaving."""
        self.closed = True
        self.ring()

    def next_ring(self) -> asyncio.Event:
        """The event of the next ring; take it before looking, so that no ring is missed."""
        return self._event

    def _ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()


def create_app(service: Service, token: str, bell: Bell, leave: Callable[[], None]) -> FastAPI:
    """The application. `leave` is called once by POST /shutdown and must return at once."""
    # The descriptions of the routes are of no use to the add-on and a gift to a scanner.
    app = FastAPI(title="Viewtime", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, token=token)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=ALLOWED_HOSTS)  # outermost
    _add_error_handlers(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"protocol": PROTOCOL, "instance": service.instance, "version": __version__}

    @app.get("/doctor")
    def doctor() -> Response:
        return Response(service.doctor(), media_type="application/json")

    @app.post("/jobs", status_code=202)
    def submit(
        request: JobRequest,
        idempotency_key: Annotated[str, Header(min_length=1, max_length=200)],
    ) -> dict[str, Any]:
        job = service.submit(idempotency_key, request.capture, request.out, request.options)
        return job.public()

    @app.get("/jobs")
    def jobs(limit: Annotated[int, Query(ge=1, le=1000)] = 200) -> dict[str, Any]:
        return {"jobs": [job.public() for job in service.store.jobs(limit)]}

    @app.post("/estimate")
    def estimate(request: EstimateRequest) -> dict[str, Any]:
        return service.estimate(request.capture, request.options)

    @app.get("/machine")
    def machine() -> dict[str, Any]:
        return service.machine.described()

    @app.get("/jobs/{job_id}/preview")
    def preview(job_id: str) -> Response:
        picture = service.preview(job_id)
        if picture is None:
            return Response(status_code=204)
        return Response(picture, media_type="application/octet-stream")

    @app.delete("/jobs/{job_id}")
    def remove(job_id: str) -> dict[str, Any]:
        service.remove(job_id)
        return {"id": job_id}

    @app.get("/jobs/{job_id}")
    def job(job_id: str) -> dict[str, Any]:
        return service.store.job(job_id).public()

    @app.get("/jobs/{job_id}/events")
    async def events(
        request: Request,
        job_id: str,
        after: Annotated[int, Query(ge=0)] = 0,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)] = 0.0,
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            ring = bell.next_ring()
            found = await run_in_threadpool(service.store.events, job_id, after)
            left = deadline - loop.time()
            if found or left <= 0 or bell.closed:
                return {"events": [_event(event) for event in found]}
            try:
                await asyncio.wait_for(ring.wait(), left)
            except TimeoutError:
                pass

    @app.post("/jobs/{job_id}/cancel")
    def cancel(job_id: str) -> dict[str, Any]:
        return service.cancel(job_id).public()

    @app.post("/jobs/{job_id}/retry", status_code=202)
    def retry(job_id: str) -> dict[str, Any]:
        return service.retry(job_id).public()

    @app.post("/shutdown", status_code=202)
    async def shutdown() -> dict[str, Any]:
        leave()
        return {"instance": service.instance}

    return app


def _event(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "kind": event.kind, "data": event.data}


def _add_error_handlers(app: FastAPI) -> None:
    def answer(status: int, detail: str) -> JSONResponse:
        return JSONResponse({"detail": " ".join(detail.split())}, status_code=status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return answer(422, f"{place}: {first['msg']}")

    @app.exception_handler(ViewtimeError)
    async def refused(_request: Request, error: ViewtimeError) -> JSONResponse:
        return answer(422, str(error))

    @app.exception_handler(UnknownJob)
    async def unknown(_request: Request, error: UnknownJob) -> JSONResponse:
        return answer(404, str(error))

    @app.exception_handler(ConflictError)
    async def conflict(_request: Request, error: ConflictError) -> JSONResponse:
        return answer(409, str(error))

    @app.exception_handler(TransitionError)
    async def impossible(_request: Request, error: TransitionError) -> JSONResponse:
        return answer(409, str(error))

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail))
