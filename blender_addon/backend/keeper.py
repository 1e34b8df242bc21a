# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds the one backend that the add-on talks to, and gets it by the rule of the preferences.
It never stops a backend that it only attached to, and never imports bpy."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from . import BackendBusy, BackendError
from .process import Backend, attach, connect, parse_address, start

SHARED, OWN, ATTACH = "SHARED", "OWN", "ATTACH"
MOST_OWN = 8
JOIN_SECONDS = 5.0


@dataclass(frozen=True)
class Choice:
    """What the preferences say, read on the main thread.

    mode: SHARED joins the backend of the data folder or starts it; OWN starts one for this Blender
    alone, in a folder of its own below data_dir; ATTACH only ever joins the one at `address`.
    idle_minutes, memory_megabytes, threads: what its jobs may take, 0 as much as there is.
    """

    python: str
    data_dir: Path
    mode: str = SHARED
    address: str = ""
    token: str = ""
    anywhere: bool = False
    idle_minutes: float = 15.0
    memory_megabytes: int = 0
    threads: int = 0

    def arguments(self) -> tuple[str, ...]:
        """The budgets as words for `viewtime serve`."""
        words = ["--idle-minutes", f"{self.idle_minutes:g}"]
        words += ["--memory-megabytes", str(self.memory_megabytes)]
        return (*words, "--threads", str(self.threads)) if self.threads else tuple(words)


class Keeper:
    """Holds the one backend that the add-on talks to at a time. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._give_up = threading.Event()
        self._backend: Backend | None = None
        self._wanted: Choice | None = None

    def get(self, choice: Choice) -> Backend:
        """The running backend, else one that there is to join, else a new one. Blocks.

        Raises BackendError as start, attach and connect do.
        """
        with self._lock:
            if self._backend is not None:
                if self._wanted == choice and self._backend.alive():
                    return self._backend
                self._backend.stop()
                self._backend = None
            self._backend = self._open(choice)
            self._wanted = choice
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
        """Stop our backend, or let go of one we attached to; False when there is none.

        A start on its way in another thread is given up, so that nobody waits for it.
        """
        self._give_up.set()
        try:
            with self._lock:
                backend, self._backend = self._backend, None
        finally:
            self._give_up.clear()
        if backend is None:
            return False
        backend.stop()
        return True

    def _open(self, choice: Choice) -> Backend:
        if choice.mode == ATTACH:
            host, port = parse_address(choice.address, anywhere=choice.anywhere)
            return connect(host, port, choice.token)
        if choice.mode == OWN:
            return self._open_own(choice)
        deadline = time.monotonic() + JOIN_SECONDS
        while True:
            if (joined := attach(choice.data_dir)) is not None:
                return joined
            try:
                return self._start(choice, choice.data_dir)
            except BackendBusy:
                # Another Blender starts it at this very moment, or its last one is ending.
                if time.monotonic() > deadline or self._give_up.wait(0.1):
                    raise

    def _open_own(self, choice: Choice) -> Backend:
        for number in range(1, MOST_OWN + 1):
            try:
                return self._start(choice, choice.data_dir / f"own-{number}")
            except BackendBusy:
                continue
        raise BackendError(f"{MOST_OWN} Blenders have a backend of their own already: share one")

    def _start(self, choice: Choice, folder: Path) -> Backend:
        more = choice.arguments()
        return start(choice.python, folder, arguments=more, give_up=self._give_up)
