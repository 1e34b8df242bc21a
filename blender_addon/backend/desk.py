# SPDX-License-Identifier: GPL-3.0-or-later
"""The one thread of the add-on that talks to the backend: questions in, answers out of a queue.
It never touches bpy, and nobody on the main thread ever waits for it in a window."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from . import BackendError

CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Answer:
    """What came of a question: its name and its value, or the error in place of it."""

    name: str
    value: Any = None
    error: BackendError | None = None


class Steady(Protocol):
    """Something that goes on in small steps between the questions, such as following a job."""

    def step(self) -> bool:
        """Do what takes at most about a quarter of a second; False when it has ended."""


class Desk:
    """Runs questions one after the other. The thread starts with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, Callable[[], Any]] = {}
        self._wake = threading.Condition(self._lock)
        self._steady: Steady | None = None
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._running = ""
        self._closing = False

    def ask(self, name: str, action: Callable[[], Any]) -> None:
        """Have `action` run in the thread. One that still waits under this name is replaced."""
        with self._wake:
            self._asked.pop(name, None)
            self._asked[name] = action
            self._begin()

    def follow(self, steady: Steady | None) -> None:
        """Step this between the questions, in place of what was stepped before."""
        with self._wake:
            self._steady = steady
            self._begin()

    def busy(self, name: str) -> bool:
        """Whether this question waits or runs."""
        with self._lock:
            return name in self._asked or self._running == name

    def idle(self) -> bool:
        """Whether nothing is asked, followed, or answered without having been heard."""
        with self._lock:
            nothing = not self._asked and not self._running and self._steady is None
            return nothing and self._answers.empty()

    def answers(self, wait: float = 0.0) -> Iterator[Answer]:
        """What has come since the last call; waits up to `wait` seconds for the first."""
        try:
            yield self._answers.get(timeout=wait) if wait > 0 else self._answers.get_nowait()
            while True:
                yield self._answers.get_nowait()
        except queue.Empty:
            return

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Drop what waits and end the thread, waiting for its present call at most `seconds`."""
        with self._wake:
            self._closing, self._steady = True, None
            self._asked.clear()
            self._wake.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)
        with self._lock:
            self._closing, self._thread = False, None

    # ---- the thread ----------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="viewtime desk", daemon=True)
            self._thread.start()
        self._wake.notify()

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._wake:
                while not self._asked and self._steady is None and self._mine(me):
                    self._wake.wait()
                if not self._mine(me):
                    return
                steady, name = self._steady, next(iter(self._asked), "")
                action = self._asked.pop(name, None)
                self._running = name
            if action is not None:
                answer = _run(name, action)
                with self._lock:
                    self._answers.put(answer)
                    self._running = ""
            elif steady is not None and not steady.step():
                with self._lock:
                    if self._steady is steady:
                        self._steady = None

    def _mine(self, me: threading.Thread) -> bool:
        return self._thread is me and not self._closing


def _run(name: str, action: Callable[[], Any]) -> Answer:
    try:
        return Answer(name, action())
    except BackendError as error:
        return Answer(name, error=error)
    except OSError as error:
        return Answer(name, error=BackendError(str(error)))
    except Exception as error:  # A mistake of ours must not end the thread that all need.
        traceback.print_exc()
        words = f"internal error, {type(error).__name__}: {error} (see the console)"
        return Answer(name, error=BackendError(words))
