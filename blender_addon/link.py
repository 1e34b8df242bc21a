# SPDX-License-Identifier: GPL-3.0-or-later
"""What the main thread knows of the backend, and how it asks for more without ever waiting.
It writes to no scene: session does that for the one job that is followed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import preferences
from .backend import BackendError
from .backend.cache import Size, clean, size_of
from .backend.desk import Answer, Desk
from .backend.install import Installer, Order
from .backend.keeper import Keeper
from .backend.process import Backend, stop_all
from .backend.watch import FINAL_STATES
from .properties.generate import OFFERS

keeper = Keeper()
desk = Desk()
BACKGROUND_SECONDS = 90.0
MACHINE_SECONDS = 0.5  # between two looks while torch is still being asked
ESTIMATES_KEPT = 64


@dataclass
class Known:
    """What was last heard. problem is a sentence and remedy the button that belongs to it."""

    problem: str = ""
    remedy: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    machine_asked: float = 0.0
    jobs: list[dict[str, Any]] = field(default_factory=list)
    jobs_number: int = 0  # grows with every list that arrives
    estimates: dict[Any, dict[str, Any] | str] = field(default_factory=dict)
    size: Size | None = None
    installer: Installer | None = None
    words: dict[str, str] = field(default_factory=dict)


# The one state of this module; a disabled add-on leaves it empty.
known = Known()


def ask(name: str, action: Callable[[], Any], words: str = "") -> None:
    """Have the desk's thread do something; what comes of it is heard by `listen`."""
    known.words[name] = words
    desk.ask(name, action)


def listen(wait: float = 0.0) -> list[Answer]:
    """Take in what the desk has answered; waits up to `wait` seconds for the first."""
    answers = list(desk.answers(wait))
    for answer in answers:
        _take(answer)
    return answers


def settle(name: str, seconds: float = BACKGROUND_SECONDS) -> BackendError | None:
    """Wait for this question's answer, where no timer can bring it; its error if it has one."""
    deadline, heard = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        waits = desk.busy(name)  # before listening: what it still has to say comes after
        for answer in listen(0.1):
            if answer.name == name:
                heard = answer
        # An earlier question of this name may be answered first.
        if heard is not None and not waits:
            return heard.error
    return BackendError("the backend takes too long; its log is in the data folder")


# ---- questions -----------------------------------------------------------------------------------


def start() -> None:
    """Start the backend or join it. Raises OSError when its folder cannot be made."""
    choice = preferences.choice()
    ask("start", lambda: keeper.get(choice), "Backend: starting")


def stop() -> None:
    ask("stop", keeper.stop, "Backend: stopping")


def refresh() -> None:
    """Ask for the jobs, and for the machine where that is not known yet."""
    if keeper.current() is None:
        return
    ask("jobs", lambda: _backend().client.jobs())
    if not known.machine.get("ready"):
        known.machine_asked = time.monotonic()
        ask("machine", lambda: _backend().client.machine())


def act_on_job(verb: str, job_id: str) -> None:
    """verb: "cancel" or "remove"."""

    def act() -> list[dict[str, Any]]:
        client = _backend().client
        getattr(client, verb)(job_id)
        return client.jobs()

    ask("jobs", act)


def estimate(capture: str, options: dict[str, Any]) -> dict[str, Any] | str | None:
    """The estimate of such a job, a sentence where it is refused, None while it is on its way.

    Cheap enough for every redraw: the answer is kept until the capture changes.
    """
    backend = keeper.current()
    if backend is None:
        return None
    try:
        changed = (Path(capture) / "capture.json").stat().st_mtime_ns
    except OSError:
        return None
    done = sum(job["state"] == "succeeded" for job in known.jobs)
    key = (capture, changed, tuple(sorted(options.items())), backend.instance, done)
    if key in known.estimates:
        return known.estimates[key]
    if not desk.busy("estimate"):
        ask("estimate", lambda: (key, _estimate(capture, options)))
    return None


def measure_cache() -> None:
    folder = preferences.data_dir(create=False)
    ask("size", lambda: size_of(folder))


def clean_cache() -> None:
    """Remove what can be made again, but nothing of jobs that wait or run."""
    folder = preferences.data_dir(create=False)

    def act() -> Size:
        backend = keeper.current()
        running = backend is not None and backend.alive()
        jobs = backend.client.jobs() if backend is not None and running else []
        active = {job["id"] for job in jobs if job["state"] not in FINAL_STATES}
        if running or not (folder / "server.lock").exists() or not _lock_held(folder):
            clean(folder, active=active, running=running)
            return size_of(folder)
        raise BackendError(
            "another backend uses the data folder: join it (Start Backend), then clean"
        )

    ask("clean", act)


def install(order: Order) -> Installer:
    known.installer = Installer(order)
    known.installer.start()
    return known.installer


def installing() -> bool:
    return known.installer is not None and known.installer.state == "running"


def in_words() -> str:
    """One line about the backend, for the panel. Does not ask over the network."""
    for name in ("start", "stop"):
        if desk.busy(name):
            return known.words[name]
    backend = keeper.current()
    if backend is None:
        return "Backend: not running"
    if not backend.owned:
        return f"Backend: joined on port {backend.client.port}"
    if backend.alive():
        return f"Backend: running (process {backend.pid})"
    return "Backend: ended"


def busy() -> bool:
    """Whether something is on its way that a person waits to see."""
    return not desk.idle() or installing() or (bool(known.machine) and not known.machine["ready"])


def look_again() -> None:
    """Called by the timer: ask for what was not ready the last time."""
    pending = bool(known.machine) and not known.machine.get("ready")
    if pending and time.monotonic() - known.machine_asked > MACHINE_SECONDS:
        refresh()


def tell(message: str, remedy: str = "") -> None:
    """What the panel says is wrong, and its button; "" when all is well."""
    known.problem, known.remedy = message, remedy


def forget() -> None:
    """End everything; for the add-on's end."""
    global known
    if known.installer is not None:
        known.installer.cancel()
    keeper.stop()
    desk.close()
    stop_all()
    OFFERS.clear()
    known = Known()


# ---- inside --------------------------------------------------------------------------------------


def _take(answer: Answer) -> None:
    name, value, error = answer.name, answer.value, answer.error
    if error is not None:
        # How a backend ended says more than the questions that it then leaves unanswered.
        if not (known.problem and name in ("jobs", "machine", "estimate")):
            tell(sentence(str(error)), error.remedy)
        if name != "drop":
            desk.ask("drop", keeper.drop_if_dead)
        return
    if name in ("start", "stop"):
        tell("")
        known.machine, known.jobs = {}, []
        known.jobs_number += 1
        if name == "start":
            refresh()
    elif name == "jobs":
        known.jobs = value
        known.jobs_number += 1
    elif name == "machine":
        known.machine = value
        OFFERS.update(value)
    elif name in ("size", "clean"):
        known.size = value
    elif name == "estimate":
        key, found = value
        while len(known.estimates) >= ESTIMATES_KEPT:
            known.estimates.pop(next(iter(known.estimates)))
        known.estimates[key] = found


def _backend() -> Backend:
    """For the desk's thread. Raises BackendError."""
    backend = keeper.current()
    if backend is None:
        raise BackendError("the backend is not running", "START")
    return backend


def _estimate(capture: str, options: dict[str, Any]) -> dict[str, Any] | str:
    try:
        return _backend().client.estimate(capture, options)
    except BackendError as error:
        if getattr(error, "status", 0) == 422:
            return sentence(str(error))
        raise


def _lock_held(folder: Path) -> bool:
    """Whether a backend that we have not joined announces itself there."""
    return (folder / "backend.json").exists()


def sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]
