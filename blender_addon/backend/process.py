# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds, starts and stops the backend, which runs in an interpreter and process of its own.
It only ever stops what it started itself, by its own handle: never by a pid read from a file."""

from __future__ import annotations

import atexit
import json
import os
import queue
import re
import secrets
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, Any

from . import (
    INSTALL,
    PREFERENCES,
    PROTOCOL,
    BackendBusy,
    BackendError,
    BackendRefused,
    BackendUnreachable,
)
from .client import LOOPBACK, Client

READY_SECONDS = 60.0
STOP_SECONDS = 5.0
# What Blender's own Python leaves in the environment would break another interpreter.
NOT_INHERITED = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "PYTHONEXECUTABLE",
    "PYTHONUSERBASE",
    "__PYVENV_LAUNCHER__",
    "VIRTUAL_ENV",
)

_owned: set[Backend] = set()


class Backend:
    """A running backend. `process` is ours to stop; it is None when we only attached."""

    def __init__(
        self,
        client: Client,
        instance: str,
        log: Path | None = None,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.client, self.instance, self.log, self.process = client, instance, log, process

    @property
    def owned(self) -> bool:
        return self.process is not None

    @property
    def pid(self) -> int | None:
        """The process we started, None for one we attached to."""
        return self.process.pid if self.process is not None else None

    def alive(self) -> bool:
        """Whether this very backend still runs. Asks over HTTP only where there is no handle."""
        if self.process is not None:
            return self.process.poll() is None
        client = self.client.twin(read_seconds=2.0)
        try:
            return client.health().get("instance") == self.instance
        except BackendError:
            return False
        finally:
            client.close()

    def end_in_words(self) -> str:
        """How this backend ended, for a message."""
        code = self.process.poll() if self.process is not None else None
        how = "the backend ended" if code is None else f"the backend ended (exit code {code})"
        return f"{how}; its log: {self.log}" if self.log else how

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End the backend if it is ours; let go of one that we only attached to. Idempotent."""
        _owned.discard(self)
        self.client.close()
        if self.process is None:
            return
        # Closing the lease asks it to end its worker and exit by itself.
        _close(self.process.stdin)
        for insist in (self.process.terminate, self.process.kill):
            try:
                self.process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                insist()
        self.process.wait(seconds)


def start(
    python: str | Path,
    data_dir: Path,
    *,
    arguments: tuple[str, ...] = (),
    seconds: float = READY_SECONDS,
    give_up: threading.Event | None = None,
) -> Backend:
    """Start a backend that lives no longer than this process, and wait until it is ready.

    arguments: more words for `viewtime serve`. Blocks for up to `seconds` or until give_up is
    set: in a window, call it from a thread. Raises BackendError with what to do about it when the
    interpreter or the package is missing, when the backend refuses to start (BackendBusy when
    another one holds the data folder), or when it speaks another protocol.
    """
    if not str(python):
        raise BackendError(
            "no backend Python is set: install the backend, or choose the Python of the "
            "environment where viewtime is installed in Viewtime's preferences",
            INSTALL,
        )
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "backend.log"
    token = secrets.token_hex(32)
    process = _spawn(str(python), data_dir, log, arguments)
    try:
        ready = _handshake(process, token, log, str(python), seconds, give_up)
    except BaseException:
        _close(process.stdin)
        process.kill()
        process.wait()
        raise
    backend = Backend(Client(ready["port"], token), ready["instance"], log, process)
    _owned.add(backend)
    return backend


def attach(data_dir: Path) -> Backend | None:
    """The backend that `viewtime serve` announces in data_dir/backend.json, if it is that one.

    None when there is no such file or nobody answers there any more (a stale file). Raises
    BackendError when somebody answers with another protocol.
    """
    path = data_dir / "backend.json"
    try:
        announced = json.loads(path.read_text(encoding="utf-8"))
        port, token = int(announced["port"]), str(announced["token"])
        instance = str(announced["instance"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(
            f"{path} cannot be read ({error}); delete it, or start viewtime serve again"
        ) from error
    client = Client(port, token)
    try:
        health = client.twin(read_seconds=2.0).health()
    except (BackendUnreachable, BackendRefused):
        return None
    # The port may belong to somebody else by now; only the instance proves who answers.
    if health.get("instance") != instance:
        return None
    _check_protocol(health.get("protocol"), "the running backend")
    return Backend(client, instance)


def connect(host: str, port: int, token: str) -> Backend:
    """A backend that runs somewhere already; it is never ours to stop.

    Raises BackendError: nobody answers, the token is refused, another program has the port, or
    another protocol is spoken.
    """
    client = Client(port, token, host=host, read_seconds=5.0)
    try:
        health = client.health()
    except BackendUnreachable as error:
        raise BackendUnreachable(
            f"no backend answers at {host}:{port}: start it there (viewtime serve), or correct "
            "the address in Viewtime's preferences",
            PREFERENCES,
        ) from error
    finally:
        client.close()
    if not isinstance(health, dict) or "instance" not in health:
        raise BackendRefused(f"what answers at {host}:{port} is no backend", 502, PREFERENCES)
    _check_protocol(health.get("protocol"), f"the backend at {host}:{port}")
    return Backend(Client(port, token, host=host), str(health["instance"]))


def parse_address(text: str, *, anywhere: bool = False) -> tuple[str, int]:
    """("127.0.0.1", 4711) from "4711", "localhost:4711" or the like. Raises BackendError.

    anywhere: whether a host that is not this computer is wanted.
    """
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("http://").strip("/") or LOOPBACK
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise BackendError(
            f"the backend's address is {text!r}; a port, or HOST:PORT, is needed", PREFERENCES
        )
    if host == "localhost":
        host = LOOPBACK
    if host != LOOPBACK and not anywhere:
        raise BackendError(
            f"the backend's address is {text!r}, which is not this computer: allow that in "
            "Viewtime's preferences, or use an SSH tunnel to a port of this computer",
            PREFERENCES,
        )
    return host, int(port)


def stop_all() -> None:
    """Stop every backend this process started (at exit, and when the add-on is disabled)."""
    for backend in tuple(_owned):
        backend.stop()


atexit.register(stop_all)


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead another Python astray."""
    environment = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
    environment["PYTHONUTF8"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def quiet() -> dict[str, Any]:
    """For subprocess: no console window on Windows, no Ctrl-C from Blender's terminal elsewhere."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def _spawn(
    python: str, data_dir: Path, log: Path, more: tuple[str, ...]
) -> subprocess.Popen[bytes]:
    command = [python, "-m", "viewtime", "serve", "--parent-lease", "--data", str(data_dir), *more]
    try:
        with log.open("wb") as stderr:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=clean_environment(),
                # -m looks in the working folder first; this one holds nothing to import.
                cwd=data_dir,
                # The lease ends the backend, not a signal meant for Blender.
                **quiet(),
            )
    except OSError as error:
        raise BackendError(
            f"the backend's Python cannot be run: {python} ({error.strerror}); "
            "choose it again in Viewtime's preferences",
            PREFERENCES,
        ) from error


def _handshake(
    process: subprocess.Popen[bytes],
    token: str,
    log: Path,
    python: str,
    seconds: float,
    give_up: threading.Event | None,
) -> dict[str, Any]:
    """Hand over the token and return the ready line. Raises BackendError."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps({"token": token}).encode() + b"\n")
        process.stdin.flush()
    except OSError:
        pass  # It has ended already; the ready line that never comes says so below.
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(
        target=_read_stdout, args=(process.stdout, lines), name="viewtime stdout", daemon=True
    ).start()
    line, deadline = None, time.monotonic() + seconds
    while line is None:
        if give_up is not None and give_up.is_set():
            raise BackendError("the start of the backend was given up")
        try:
            line = lines.get(timeout=0.05)
        except queue.Empty:
            if time.monotonic() > deadline:
                raise BackendError(
                    f"the backend was not ready after {seconds:.0f} s; its log: {log}"
                ) from None
    if not line:
        raise _why_it_ended(_exit_code(process), log, python)
    try:
        ready = json.loads(line)
        _check_protocol(ready["protocol"], f"the viewtime of {python}")
        return {"port": int(ready["port"]), "instance": str(ready["instance"])}
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(
            f"the backend's first line is not what viewtime serve says: {line[:80]!r}", INSTALL
        ) from error


def _read_stdout(stdout: IO[bytes], lines: queue.Queue[bytes]) -> None:
    """First line (b"" at the end of the stream) to the queue; the rest is read and dropped."""
    try:
        lines.put(stdout.readline())
        while stdout.read(65536):
            pass
    except (OSError, ValueError):
        lines.put(b"")
    finally:
        _close(stdout)


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _why_it_ended(code: int | None, log: Path, python: str) -> BackendError:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    last = lines[-1] if lines else "it said nothing"
    if re.search(r"No module named '?viewtime'?$", last):
        return BackendError(
            f"{python} has no viewtime: install it into that Python, "
            "or choose another one in Viewtime's preferences",
            INSTALL,
        )
    if missing := re.search(r"No module named '?([\w.]+)'?$", last):
        return BackendError(
            f"the backend's Python lacks {missing[1]}: its installation is incomplete; "
            "install the backend again",
            INSTALL,
        )
    if "another Viewtime backend" in last:
        return BackendBusy(last.removeprefix("viewtime: "))
    if "unrecognized arguments" in last:
        return BackendError(_OTHER_VERSION.format(who=f"the viewtime of {python}"), INSTALL)
    return BackendError(f"the backend did not start (exit code {code}): {last}", INSTALL)


_OTHER_VERSION = "{who} is of another version than this add-on: install the backend again"


def _check_protocol(protocol: object, who: str) -> None:
    if protocol != PROTOCOL:
        raise BackendError(
            f"{who} speaks protocol {protocol}, this add-on {PROTOCOL}: "
            "install the backend again, or update the add-on, whichever is older",
            INSTALL,
        )


def _close(stream: IO[bytes] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except OSError:
        pass  # A broken pipe: the other end is gone, which is what we wanted.
