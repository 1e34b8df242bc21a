# SPDX-License-Identifier: GPL-3.0-or-later
"""The job being followed and the backend behind it, as the main thread and its timer see them.
It never blocks the window, and it writes to no scene but the one that the job belongs to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import bpy
from bpy.app.handlers import persistent

from viewtime_formats.capture import read_capture
from viewtime_formats.errors import ViewtimeError

from . import preferences
from .backend import BackendError
from .backend.process import Backend, Keeper, stop_all
from .backend.watch import FINAL_STATES, Request, Update, Watcher
from .properties import JOB_ACTIVE

TIMER_SECONDS = 0.2

keeper = Keeper()
_session: Session | None = None
# A start or stop of the backend on its way, and the line about it (what went wrong, at its end).
_aside: threading.Thread | None = None
_aside_words = ""


class Session:
    """One job as the main thread sees it. Writes to its scene only, found again by its uid."""

    def __init__(self, scene: bpy.types.Scene, watcher: Watcher) -> None:
        self.scene_uid, self.watcher = scene.session_uid, watcher
        self.finished = False
        self.printed = ""

    def scene(self) -> bpy.types.Scene | None:
        """The scene, None when its file was closed or it was deleted."""
        return next((s for s in bpy.data.scenes if s.session_uid == self.scene_uid), None)

    def drain(self, wait: float = 0.0) -> None:
        """Write to the scene what has happened; waits up to `wait` seconds for the first."""
        for update in self.watcher.updates(wait):
            scene = self.scene()
            if scene is None:
                self.leave()
                return
            self._write(scene, update)
            if update.kind in ("end", "broken"):
                self.finished = True
                return

    def cancel(self) -> None:
        """Ask for the job's end; returns at once."""
        scene = self.scene()
        if self.watcher.cancel():
            if scene is not None:
                show(scene, state="cancelling", message="Cancelling", eta=-1.0)
            return
        self.leave()
        if scene is not None:
            show(scene, state="cancelled", message="Cancelled", eta=-1.0)

    def leave(self) -> None:
        """Stop following; the job goes on in the backend."""
        self.watcher.leave()
        self.finished = True

    def _write(self, scene: bpy.types.Scene, update: Update) -> None:
        data = update.data
        cancelling = scene.viewtime.job_state == "cancelling"
        if update.kind == "job":
            scene.viewtime.job_id = data["id"]
            # A final state comes again as the end, with everything that belongs to it.
            if not cancelling and data["state"] not in FINAL_STATES:
                show(scene, state=data["state"], message=sentence(data["message"]))
        elif update.kind == "progress" and not cancelling:
            fraction = data["step"] / data["total"] if data["total"] else 0.0
            eta = data["eta_seconds"]
            show(
                scene,
                message=sentence(data["message"]),
                progress=fraction,
                eta=-1.0 if eta is None else eta,
            )
        elif update.kind == "broken":
            threading.Thread(target=keeper.drop_if_dead, daemon=True).start()
            show(scene, state="interrupted", message=sentence(data["message"]), eta=-1.0)
        elif update.kind == "end":
            words = data.get("error") or data["message"]
            show(scene, state=data["state"], message=sentence(words), eta=-1.0)
            if data["state"] == "succeeded":
                show(scene, progress=1.0, message=import_result(scene, Path(data["splats"])))


def import_result(scene: bpy.types.Scene, splats: Path) -> str:
    """Import the sequence into the scene; a sentence about how it went."""
    try:
        with bpy.context.temp_override(scene=scene, view_layer=scene.view_layers[0]):
            bpy.ops.viewtime.import_sequence(directory=str(splats))
    except RuntimeError as error:
        # What an operator reports as an error arrives here; the splats are safe on the disk.
        return f"Done, but the splats were not imported: {_last_line(error)}"
    return "Done"


def current() -> Session | None:
    """The job being followed, None when there is none."""
    return _session if _session is not None and not _session.finished else None


def pump(seconds: float) -> str:
    """Follow the present job for up to `seconds` and return its state; for scripts without timers.

    The state is that of scene.viewtime.job_state, "" when no job is being followed.
    """
    deadline = time.monotonic() + seconds
    followed = _session
    if followed is None:
        return ""
    while not followed.finished and time.monotonic() < deadline:
        followed.drain(wait=min(0.1, seconds))
    scene = followed.scene()
    return "" if scene is None else scene.viewtime.job_state


def backend_in_words() -> str:
    """One line about the backend, for the panel. Does not ask over the network."""
    if _aside is not None and _aside.is_alive():
        return _aside_words
    backend = keeper.current()
    if backend is None:
        return _aside_words or "Backend: not running"
    if not backend.owned:
        return f"Backend: attached on port {backend.client.port}"
    if backend.alive():
        return f"Backend: running (process {backend.pid})"
    return "Backend: ended"


def run_aside(action: Callable[[], object], words: str) -> str | None:
    """Run a backend action without blocking the window; what went wrong, as far as known.

    In background mode there is no timer to bring the news, so there it is waited for.
    """
    global _aside, _aside_words
    failure: list[str] = []

    def run() -> None:
        global _aside_words
        try:
            action()
            _aside_words = ""
        except (BackendError, OSError) as error:
            failure.append(sentence(str(error)))
            _aside_words = failure[0]

    _aside_words = words
    _aside = threading.Thread(target=run, name="viewtime backend", daemon=True)
    _aside.start()
    if bpy.app.background:
        _aside.join()
    else:
        _ensure_timer()
    return failure[0] if failure else None


def backend_choice() -> tuple[str, Path]:
    """What opening the backend needs from bpy, read on the main thread. Raises OSError."""
    return preferences.backend_python(), preferences.data_dir()


def follow(scene: bpy.types.Scene, request: Request | None, job_id: str | None) -> Session:
    """Submit the request, or follow the job that exists, in a thread. Raises OSError."""
    global _session
    python, data_dir = backend_choice()

    def open_backend() -> Backend:
        if request is not None:
            _check_capture(request.capture)
        return keeper.get(python, data_dir)

    watcher = Watcher(open_backend, request, job_id)
    _session = Session(scene, watcher)
    show(scene, state="submitting", message="Starting the backend", progress=0.0, eta=-1.0)
    watcher.start()
    if not bpy.app.background:
        _ensure_timer()
    return _session


def _check_capture(folder: str) -> None:
    """Refuse a broken capture before a backend is started. Slow for thousands of frames."""
    try:
        read_capture(folder)
    except ViewtimeError as error:
        raise BackendError(str(error)) from error


def show(
    scene: bpy.types.Scene,
    *,
    state: str | None = None,
    message: str | None = None,
    progress: float | None = None,
    eta: float | None = None,
) -> None:
    settings = scene.viewtime
    if state is not None:
        settings.job_state = state
    if message is not None:
        settings.job_message = message
    if progress is not None:
        settings.job_progress = progress
    if eta is not None:
        settings.job_eta = eta


def sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def _last_line(error: Exception) -> str:
    """The sentence in what bpy.ops raises: an error or a traceback, then where it was called."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Location:")]
    return lines[-1].removeprefix("Error: ") if lines else "no message"


# ---- the timer of the window ---------------------------------------------------------------------


def _ensure_timer() -> None:
    if not bpy.app.timers.is_registered(_tick):
        bpy.app.timers.register(_tick, first_interval=TIMER_SECONDS, persistent=True)


def _tick() -> float | None:
    if _session is not None and not _session.finished:
        _session.drain()
    _redraw()
    busy = current() is not None or (_aside is not None and _aside.is_alive())
    return TIMER_SECONDS if busy else None


def _redraw() -> None:
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                area.tag_redraw()


@persistent
def _file_loaded(_path: str) -> None:
    """Let go of the job of the closed file, and say it when the new one was saved mid-job."""
    if _session is not None and _session.scene() is None:
        _session.leave()
    for scene in bpy.data.scenes:
        scene.viewtime.capture_message = ""
        if scene.viewtime.job_state in JOB_ACTIVE:
            show(
                scene,
                state="interrupted",
                message="This file was saved while its job ran: follow the job to see how it ended",
                eta=-1.0,
            )


def register() -> None:
    bpy.app.handlers.load_post.append(_file_loaded)


def unregister() -> None:
    bpy.app.handlers.load_post.remove(_file_loaded)
    if bpy.app.timers.is_registered(_tick):
        bpy.app.timers.unregister(_tick)
    if _session is not None:
        _session.leave()
    keeper.stop()
    stop_all()
