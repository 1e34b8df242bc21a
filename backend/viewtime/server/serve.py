# SPDX-License-Identifier: Apache-2.0
"""`viewtime serve`: binds a loopback port, says where, serves until its parent or a person ends it.
Never listens on another interface, never puts the token on a command line or into a log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from viewtime.server import PROTOCOL
from viewtime_formats.errors import ViewtimeError

LEASE_LINE_BYTES = 4096
MIN_TOKEN_CHARACTERS = 16
EXIT_SECONDS = 5.0


class LeaseError(ViewtimeError):
    """The parent did not open with a line that holds a token."""


def default_data_folder() -> Path:
    """Where the backend keeps its database and logs on this system."""
    import platformdirs

    return Path(platformdirs.user_data_dir("viewtime", appauthor=False))


def serve(
    data: Path,
    *,
    parent_lease: bool,
    devices: tuple[str, ...] = ("auto",),
    idle_seconds: float | None = None,
    memory_megabytes: int = 0,
) -> int:
    """Serve until told to stop; the exit code.

    parent_lease: the token comes as one JSON line on stdin, and the end of stdin is the order to
    exit. Otherwise a token is made and told. Either way port and token are written to
    DATA/backend.json, which only this user may read: that is how a second Blender finds the
    backend of the first. idle_seconds, memory_megabytes: see Supervisor.
    Raises ViewtimeError when the data folder is in use or unusable.
    """
    token = _leased_token() if parent_lease else secrets.token_urlsafe(32)

    import uvicorn

    from viewtime.server.app import Bell, create_app
    from viewtime.server.service import Service

    service = Service(
        data.absolute(), devices, idle_seconds=idle_seconds, memory_megabytes=memory_megabytes
    )
    listener = _listen()
    note = data / "backend.json"
    bell = Bell()

    def announce() -> None:
        ready = {
            "protocol": PROTOCOL,
            "port": listener.getsockname()[1],
            "pid": os.getpid(),
            "instance": service.instance,
        }
        _write_private(note, {**ready, "token": token})
        ready["note"] = str(note)
        print(json.dumps(ready), flush=True)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            bell.attach()
            service.store.on_change = bell.ring
            await super().startup(sockets)
            announce()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            bell.close()
            # While connections drain, so that Blender sees its job go back into the queue.
            stopping = asyncio.get_running_loop().run_in_executor(None, service.close)
            await super().shutdown(sockets)
            await stopping

    def leave() -> None:
        server.should_exit = True

    server = Server(
        uvicorn.Config(
            create_app(service, token, bell, leave),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
    )
    if parent_lease:
        _watch_stdin(leave)
    # uvicorn leaves in good order on these and then raises them once more, for whoever started
    # it. That is us: without a handler of ours the second one would end the process on the spot.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            note.unlink()
    return 0


def _listen() -> socket.socket:
    # With proto 0 asyncio does not recognise TCP and leaves Nagle's algorithm on: 44 ms per
    # request instead of 1.3 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    listener.setblocking(False)
    return listener


def _leased_token() -> str:
    """The token from the first line on stdin, read without Python's buffering (see the watcher)."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise LeaseError("stdin ended before the line with the token: the parent is gone")
        line += byte
        if len(line) > LEASE_LINE_BYTES:
            raise LeaseError("the first line on stdin is too long; one JSON line is needed")
    try:
        token = json.loads(line)["token"]
    except (ValueError, TypeError, KeyError):
        token = None
    if not isinstance(token, str) or len(token) < MIN_TOKEN_CHARACTERS or not token.isascii():
        raise LeaseError(
            'the first line on stdin must be {"token": "..."} with at least '
            f"{MIN_TOKEN_CHARACTERS} characters"
        )
    return token


def _watch_stdin(leave: Callable[[], None]) -> None:
    """Leave when stdin ends. The system closes the pipe however the parent dies."""

    def watch() -> None:
        # os.read and not sys.stdin: a thread inside a Python file object can hang the exit.
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        leave()
        # Whatever the event loop is stuck in, an orphan must not stay. Closing our end of the
        # worker's stdin, which exiting does, ends the worker too.
        timer = threading.Timer(EXIT_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()

    threading.Thread(target=watch, name="viewtime-lease", daemon=True).start()


def _write_private(path: Path, values: dict[str, Any]) -> None:
    """Write JSON that only this user may read, from the first byte on."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(values, file)
    os.replace(part, path)
