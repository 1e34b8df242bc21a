# SPDX-License-Identifier: GPL-3.0-or-later
"""The job being followed, as the main thread and its timer see it.
It never blocks the window, and it writes to no scene but the one that the job belongs to."""

from __future__ import annotations

import time
from pathlib import Path

import bpy
from bpy.app.handlers import persistent

from viewtime_formats.capture import read_capture
from viewtime_formats.errors import ViewtimeError

from . import joblist, link, picture, playback, preferences
from .backend import BackendError
from .backend.process import Backend
from .backend.watch import FINAL_STATES, Request, Update, Watcher
from .link import sentence
from .properties import JOB_ACTIVE

TIMER_SECONDS = 0.2

_session: Session | None = None


class Session:
    """One job as the main thread sees it. Writes to its scene only, found again by its uid."""

    def __init__(self, scene: bpy.types.Scene, watcher: Watcher) -> None:
        self.scene_uid, self.watcher = scene.session_uid, watcher
        self.finished = False
        self.printed = ""
        self._out: Path | None = None
        self._imported = 0  # steps that the scene shows already
        self._object_uid = 0
        self.told_at = time.monotonic()
        # What the scene shows of the job: undo takes the scene back, but not the job.
        self.facts: dict[str, object] = {}

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
                link.refresh()
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
            show(scene, job_id=data["id"])
            self._out = Path(data["out"])
            link.tell("")
            # A final state comes again as the end, with everything that belongs to it.
            if not cancelling and data["state"] not in FINAL_STATES:
                show(scene, state=data["state"], message=sentence(data["message"]))
                if data["state"] == "queued":
                    show(scene, progress=0.0, eta=-1.0)
        elif update.kind == "progress" and not cancelling:
            eta = data["job_eta_seconds"]
            self.told_at = time.monotonic()
            show(
                scene,
                message=in_words(data),
                progress=data["fraction"],
                eta=-1.0 if eta is None else eta,
            )
            if data["stage"] == "reconstruct" and data["step"] > self._imported:
                self._bring(scene, data["step"])
        elif update.kind == "picture":
            if (latest := self.watcher.take_picture()) is not None:
                picture.show(latest)
        elif update.kind == "broken":
            link.desk.ask("drop", link.keeper.drop_if_dead)
            words = sentence(data["message"])
            link.tell(words, data["remedy"])
            show(scene, state="interrupted", message=words, eta=-1.0)
        elif update.kind == "end":
            self._end(scene, data)

    def _end(self, scene: bpy.types.Scene, job: dict) -> None:
        words = sentence(job.get("error") or job["message"])
        show(scene, state=job["state"], message=words, eta=-1.0)
        if "remedy" in job:
            link.tell(words, job["remedy"])
        if job["state"] == "succeeded":
            known = self._object() is not None
            words = import_result(scene, Path(job["splats"]), undo=not known)
            show(scene, progress=1.0, message=words)
        else:
            picture.hide()
            self._take_back()

    def _bring(self, scene: bpy.types.Scene, steps: int) -> None:
        """Show the timesteps that are written already, while the job goes on."""
        first, self._imported = self._imported == 0, steps
        if self._out is None:
            return
        if not first:
            playback.refresh_all()
            return
        before = {ob.session_uid for ob in scene.objects}
        import_result(scene, self._out / "splats", undo=True)
        new = [ob for ob in scene.objects if ob.session_uid not in before]
        self._object_uid = new[0].session_uid if new else 0

    def _object(self) -> bpy.types.Object | None:
        """The object that this job brought into the file, unless somebody has removed it."""
        if not self._object_uid:
            return None
        return next((o for o in bpy.data.objects if o.session_uid == self._object_uid), None)

    def _take_back(self) -> None:
        """A job that left no files leaves no object either."""
        ob = self._object()
        if ob is not None and self._out is not None and not (self._out / "splats").exists():
            data = ob.data
            bpy.data.objects.remove(ob)
            if data.users == 0:
                bpy.data.pointclouds.remove(data)


def in_words(progress: dict) -> str:
    """ "Reconstruct 3 of 9: 1200 Gaussians at time 2"."""
    count = f" {progress['step']} of {progress['total']}" if progress["total"] else ""
    return sentence(f"{progress['stage']}{count}: {progress['message']}")


def import_result(scene: bpy.types.Scene, splats: Path, *, undo: bool) -> str:
    """Import the sequence into the scene as one undo step; a sentence about how it went."""
    try:
        with bpy.context.temp_override(scene=scene, view_layer=scene.view_layers[0]):
            bpy.ops.viewtime.import_sequence("EXEC_DEFAULT", undo, directory=str(splats))
    except RuntimeError as error:
        # What an operator reports as an error arrives here; the splats are safe on the disk.
        return f"Done, but the splats were not imported: {_last_line(error)}"
    return "Done"


def current() -> Session | None:
    """The job being followed, None when there is none."""
    return _session if _session is not None and not _session.finished else None


def progress_now(settings: bpy.types.PropertyGroup) -> tuple[float, float]:
    """(fraction, seconds left) of the followed job at this moment; seconds < 0 while unknown.

    Stages without steps say nothing for a while, and a clock that stands still looks broken.
    """
    fraction, left = settings.job_progress, settings.job_eta
    followed = current()
    if followed is None or left < 0 or settings.job_state != "running":
        return fraction, left
    since = min(time.monotonic() - followed.told_at, left)
    whole = left / max(1.0 - fraction, 1e-3)
    return min(fraction + since / max(whole, 1e-3), 0.99), left - since


def pump(seconds: float) -> str:
    """Follow the present job for up to `seconds` and return its state; for scripts without timers.

    The state is that of scene.viewtime.job_state, "" when no job is being followed.
    """
    deadline = time.monotonic() + seconds
    link.listen()
    followed = _session
    if followed is None:
        return ""
    while not followed.finished and time.monotonic() < deadline:
        followed.drain(wait=min(0.1, seconds))
    link.listen()
    scene = followed.scene()
    return "" if scene is None else scene.viewtime.job_state


def estimate(capture: str, options: dict) -> dict | str | None:
    """What such a job would take: see link.estimate. A window is redrawn when the answer comes."""
    found = link.estimate(capture, options)
    if found is None:
        ensure_timer()
    return found


def follow(
    scene: bpy.types.Scene, request: Request | None, job_id: str | None, *, again: bool = False
) -> Session:
    """Submit the request, or follow the job that exists, in the desk's thread. Raises OSError.

    again: have the backend run that job once more.
    """
    global _session
    choice = preferences.choice()

    def open_backend() -> Backend:
        if request is not None:
            _check_capture(request.capture)
        return link.keeper.get(choice)

    watcher = Watcher(open_backend, request, job_id, again=again)
    _session = Session(scene, watcher)
    picture.hide()
    show(scene, state="submitting", message="Starting the backend", progress=0.0, eta=-1.0)
    link.desk.follow(watcher)
    ensure_timer()
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
    job_id: str | None = None,
) -> None:
    facts: dict[str, object] = {
        "job_state": state,
        "job_message": message,
        "job_progress": progress,
        "job_eta": eta,
        "job_id": job_id,
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    if _session is not None and _session.scene_uid == scene.session_uid:
        _session.facts.update(facts)
    for name, value in facts.items():
        setattr(scene.viewtime, name, value)


def _last_line(error: Exception) -> str:
    """The sentence in what bpy.ops raises: an error or a traceback, then where it was called."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Location:")]
    return lines[-1].removeprefix("Error: ") if lines else "no message"


# ---- the timer of the window ---------------------------------------------------------------------


def ensure_timer() -> None:
    """Have the window take in what the desk's thread brings; scripts in background use pump."""
    if not bpy.app.background and not bpy.app.timers.is_registered(_tick):
        bpy.app.timers.register(_tick, first_interval=TIMER_SECONDS, persistent=True)


def _tick() -> float | None:
    link.listen()
    link.look_again()
    if _session is not None and not _session.finished:
        _session.drain()
    joblist.bring_up_to_date()
    _redraw()
    if current() is not None or link.busy():
        return TIMER_SECONDS
    # A panel that shrank leaves a gap until it is drawn again: once more when all is quiet.
    if not bpy.app.timers.is_registered(_redraw):
        bpy.app.timers.register(_redraw, first_interval=2 * TIMER_SECONDS)
    return None


def _redraw() -> None:
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type in ("VIEW_3D", "PREFERENCES"):
                area.tag_redraw()


@persistent
def _file_loaded(_path: str) -> None:
    """Let go of the job of the closed file, and say it when the new one was saved mid-job."""
    if _session is not None and _session.scene() is None:
        _session.leave()
    joblist.bring_up_to_date(anew=True)
    for scene in bpy.data.scenes:
        scene.viewtime.capture_message = ""
        if scene.viewtime.job_state in JOB_ACTIVE:
            show(
                scene,
                state="interrupted",
                message="This file was saved while its job ran: follow the job to see how it ended",
                eta=-1.0,
            )


@persistent
def _undone(*_arguments: object) -> None:
    """After undo or redo: the scene may tell of a job as it was then; put that right."""
    scene = None if _session is None else _session.scene()
    if scene is not None and _session is not None:
        for name, value in _session.facts.items():
            setattr(scene.viewtime, name, value)


def register() -> None:
    bpy.app.handlers.load_post.append(_file_loaded)
    bpy.app.handlers.undo_post.append(_undone)
    bpy.app.handlers.redo_post.append(_undone)


def unregister() -> None:
    bpy.app.handlers.load_post.remove(_file_loaded)
    bpy.app.handlers.undo_post.remove(_undone)
    bpy.app.handlers.redo_post.remove(_undone)
    for timer in (_tick, _redraw):
        if bpy.app.timers.is_registered(timer):
            bpy.app.timers.unregister(timer)
    if _session is not None:
        _session.leave()
    link.forget()
    picture.unregister()
