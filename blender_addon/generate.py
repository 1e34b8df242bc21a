# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators that send a capture to the backend and cancel its job.
They parse arguments and report; session follows the job and writes what happens into the scene."""

from __future__ import annotations

import bpy
from bpy.props import BoolProperty

from . import link, preferences, readiness, session
from .backend.watch import Request
from .readiness.generate import job_options

# How long viewtime.cancel waits for the end where no timer can bring it (background mode).
CANCEL_SECONDS = 10.0


class VIEWTIME_OT_generate(bpy.types.Operator):
    """Send the capture to the backend and bring the splats it makes into the scene"""

    bl_idname = "viewtime.generate"
    bl_label = "Generate"
    bl_options = {"REGISTER"}

    wait: BoolProperty(
        name="Wait",
        description="Return when the job has ended; in background mode this is the default",
        default=False,
        options={"SKIP_SAVE"},
    )
    resume: BoolProperty(
        name="Follow",
        description="Follow the scene's last job again instead of starting a new one",
        default=False,
        options={"SKIP_SAVE"},
    )

    @classmethod
    def description(cls, _context: bpy.types.Context, properties: bpy.types.OperatorProperties):
        if properties.resume:
            return "Follow the scene's last job again, as far as the backend has come with it"
        return "Send the capture to the backend and bring the splats it makes into the scene"

    def execute(self, context: bpy.types.Context) -> set[str]:
        scene = context.scene
        if session.current() is not None:
            self.report({"ERROR"}, "A job is running: cancel it or wait for its end")
            return {"CANCELLED"}
        try:
            request, job_id = self._subject(scene)
            current = session.follow(scene, request, job_id)
        except (readiness.NotReady, OSError) as error:
            session.show(scene, state="failed", message=link.sentence(str(error)))
            self.report({"ERROR"}, link.sentence(str(error)))
            return {"CANCELLED"}
        asked = self.properties.is_property_set("wait")
        if self.wait or (bpy.app.background and not asked):
            return self._wait_for(current)
        return {"FINISHED"}

    def _subject(self, scene: bpy.types.Scene) -> tuple[Request | None, str | None]:
        """The request for a new job, or the id of the one to follow again."""
        settings = scene.viewtime
        if self.resume:
            if not settings.job_id:
                raise readiness.NotReady("This scene has no job to follow")
            return None, settings.job_id
        reason = readiness.missing_for_generate(
            scene, preferences.backend_python(), preferences.announced()
        )
        if reason:
            raise readiness.NotReady(reason)
        capture = readiness.absolute_folder(settings.capture_folder, "the capture folder")
        output = readiness.absolute_folder(settings.output_folder, "the output folder")
        options = job_options(settings)
        return Request(str(capture), str(output), options, settings.job_id or None), None

    def _wait_for(self, current: session.Session) -> set[str]:
        while not current.finished:
            try:
                current.drain(wait=0.2)
            except KeyboardInterrupt:
                current.cancel()
            _print_progress(current)
        scene = current.scene()
        if scene is None:
            return {"CANCELLED"}
        settings = scene.viewtime
        if settings.job_state == "succeeded":
            self.report({"INFO"}, settings.job_message)
            return {"FINISHED"}
        level = "WARNING" if settings.job_state == "cancelled" else "ERROR"
        self.report({level}, settings.job_message)
        return {"CANCELLED"}


class VIEWTIME_OT_cancel(bpy.types.Operator):
    """Stop the running job; what it wrote is removed"""

    bl_idname = "viewtime.cancel"
    bl_label = "Cancel"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        if session.current() is None:
            cls.poll_message_set("No job is being followed")
            return False
        return True

    def execute(self, _context: bpy.types.Context) -> set[str]:
        current = session.current()
        assert current is not None
        current.cancel()
        if bpy.app.background:
            session.pump(CANCEL_SECONDS)
        return {"FINISHED"}


def _print_progress(current: session.Session) -> None:
    """One line per change, for whoever watches the console."""
    scene = current.scene()
    if scene is None:
        return
    settings = scene.viewtime
    line = f"viewtime: {settings.job_state} {settings.job_progress:4.0%} {settings.job_message}"
    if line != current.printed:
        current.printed = line
        print(line, flush=True)


CLASSES = (
    VIEWTIME_OT_generate,
    VIEWTIME_OT_cancel,
)
