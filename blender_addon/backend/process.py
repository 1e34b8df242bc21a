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
from pathlib import Path
from typing import IO, Any

from . import PROTOCOL, BackendError, BackendRefused, BackendUnreachable
from .client import Client

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


def start(python: str | Path, data_dir: Path, *, seconds: float = READY_SECONDS) -> Backend:
    """Start a backend that lives no longer than this process, and wait until it is ready.

    Blocks for up to `seconds`: in a window, call it from a thread. Raises BackendError with what
    to do about it when the interpreter or the package is missing, when the backend refuses to
    start, or when it speaks another protocol.
    """
    if not str(python):
        raise BackendError(
            "no backend Python is set: choose it in Viewtime's preferences "
            "(the Python of the environment where viewtime is installed)"
        )
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "backend.log"
    token = secrets.token_hex(32)
    process = _spawn(str(python), data_dir, log)
    try:
        ready = _handshake(process, token, log, str(python), seconds)
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


def _spawn(python: str, data_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    arguments: dict[str, Any] = {}
    if os.name == "nt":
        arguments["creationflags"] = subprocess.CREATE_NO_WINDOW
    else:
        # Ctrl-C in Blender's terminal is meant for Blender; the lease ends the backend.
        arguments["start_new_session"] = True
    command = [python, "-m", "viewtime", "serve", "--parent-lease", "--data", str(data_dir)]
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
                **arguments,
            )
    except OSError as error:
        raise BackendError(
            f"the backend's Python cannot be run: {python} ({error.strerror}); "
            "choose it again in Viewtime's preferences"
        ) from error


def _handshake(
    process: subprocess.Popen[bytes], token: str, log: Path, python: str, seconds: float
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
    try:
        line = lines.get(timeout=seconds)
    except queue.Empty:
        raise BackendError(
            f"the backend was not ready after {seconds:.0f} s; its log: {log}"
        ) from None
    if not line:
        code = _exit_code(process)
        raise BackendError(_why_it_ended(code, log, python))
    try:
        ready = json.loads(line)
        _check_protocol(ready["protocol"], f"the viewtime of {python}")
        return {"port": int(ready["port"]), "instance": str(ready["instance"])}
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(
            f"the backend's first line is not what viewtime serve says: {line[:80]!r}"
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


def _why_it_ended(code: int | None, log: Path, python: str) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    last = lines[-1] if lines else "it said nothing"
    if re.search(r"No module named '?viewtime'?$", last):
        return (
            f"{python} has no viewtime: install it into that Python, "
            "or choose another one in Viewtime's preferences"
        )
    return f"the backend did not start (exit code {code}): {last}"


def _check_protocol(protocol: object, who: str) -> None:
    if protocol != PROTOCOL:
        raise BackendError(
            f"{who} speaks protocol {protocol}, this add-on {PROTOCOL}: "
            "update the older of the two (viewtime doctor and the manifest show the versions)"
        )


def _close(stream: IO[bytes] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except OSError:
        pass  # A broken pipe: the other end is gone, which is what we wanted.


class Keeper:
    """Holds the one backend that the add-on talks to at a time. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._wanted: tuple[str, Path] | None = None

    def get(self, python: str, data_dir: Path) -> Backend:
        """The running backend, else one that a person started there, else a new one. Blocks.

        Raises BackendError as start and attach do.
        """
        with self._lock:
            if self._backend is not None:
                if self._wanted == (python, data_dir) and self._backend.alive():
                    return self._backend
                self._backend.stop()
                self._backend = None
            self._backend = attach(data_dir) or start(python, data_dir)
            self._wanted = (python, data_dir)
            return self._backend

    def current(self) -> Backend | None:
        """What get returned last, alive or not; never blocks on a start in progress."""
        return self._backend

    def drop_if_dead(self) -> None:
        """Forget a backend that no longer answers. Blocks for as long as asking takes."""
        with self._lock:
            if self._backend is not None and not self._backend.alive():
                self._backend.stop()
                self._backend = None

    def stop(self) -> bool:
        """Stop our backend, or let go of one we attached to; False when there is none."""
        with self._lock:
            backend, self._backend = self._backend, None
        if backend is None:
            return False
        backend.stop()
        return True
