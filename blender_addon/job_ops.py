# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators on the jobs that the backend remembers: look, follow, run again, stop, remove.
They never touch what a job has written."""

from __future__ import annotations

import bpy
from bpy.props import StringProperty

from . import joblist, link, session


class _OnJob:
    """What the operators on one job share."""

    job_id: StringProperty(
        name="Job", description="Which job; empty is the one chosen in the list", default=""
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if link.keeper.current() is None:
            cls.poll_message_set("The backend is not running: start it first")
            return False
        return True

    def target(self, context: bpy.types.Context) -> str:
        """The id of the job that is meant; "" after saying that there is none."""
        job_id = self.job_id or joblist.selected_id(context)
        if not job_id:
            self.report({"ERROR"}, "Choose a job in the list, or give its id")
        return job_id

    def finish(self, name: str) -> set[str]:
        """Wait where no timer brings the answer."""
        if not bpy.app.background:
            session.ensure_timer()
            return {"FINISHED"}
        error = link.settle(name)
        joblist.bring_up_to_date()
        if error is None:
            return {"FINISHED"}
        self.report({"ERROR"}, link.sentence(str(error)))
        return {"CANCELLED"}


class VIEWTIME_OT_jobs_refresh(_OnJob, bpy.types.Operator):
    """Ask the backend for its jobs"""

    bl_idname = "viewtime.jobs_refresh"
    bl_label = "Refresh Jobs"

    def execute(self, _context: bpy.types.Context) -> set[str]:
        link.refresh()
        return self.finish("jobs")


class _Follow(_OnJob):
    """Following a job, and running it again first."""

    again = False

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if session.current() is not None:
            cls.poll_message_set("A job is being followed: cancel it or wait for its end")
            return False
        return super().poll(context)

    def execute(self, context: bpy.types.Context) -> set[str]:
        if not (job_id := self.target(context)):
            return {"CANCELLED"}
        try:
            followed = session.follow(context.scene, None, job_id, again=self.again)
        except OSError as error:
            self.report({"ERROR"}, link.sentence(str(error)))
            return {"CANCELLED"}
        if bpy.app.background:
            # Until the backend has answered; generate(resume=True) waits for the end.
            while not followed.finished and context.scene.viewtime.job_state == "submitting":
                followed.drain(wait=0.1)
        return {"FINISHED"}


class VIEWTIME_OT_job_follow(_Follow, bpy.types.Operator):
    """Watch this job from the present scene and bring its splats into it when they are done"""

    bl_idname = "viewtime.job_follow"
    bl_label = "Follow Job"


class VIEWTIME_OT_job_retry(_Follow, bpy.types.Operator):
    """Run a job that failed or was cancelled once more, with the same options"""

    bl_idname = "viewtime.job_retry"
    bl_label = "Retry Job"
    again = True


class VIEWTIME_OT_job_cancel(_OnJob, bpy.types.Operator):
    """Stop this job, waiting or running; what it wrote is removed"""

    bl_idname = "viewtime.job_cancel"
    bl_label = "Cancel Job"

    def execute(self, context: bpy.types.Context) -> set[str]:
        if not (job_id := self.target(context)):
            return {"CANCELLED"}
        followed = session.current()
        if followed is not None and context.scene.viewtime.job_id == job_id:
            followed.cancel()
        link.act_on_job("cancel", job_id)
        return self.finish("jobs")


class VIEWTIME_OT_job_remove(_OnJob, bpy.types.Operator):
    """Take this job off the list; the files that it made stay"""

    bl_idname = "viewtime.job_remove"
    bl_label = "Remove Job"

    def execute(self, context: bpy.types.Context) -> set[str]:
        if not (job_id := self.target(context)):
            return {"CANCELLED"}
        link.act_on_job("remove", job_id)
        return self.finish("jobs")


CLASSES = (
    VIEWTIME_OT_jobs_refresh,
    VIEWTIME_OT_job_follow,
    VIEWTIME_OT_job_retry,
    VIEWTIME_OT_job_cancel,
    VIEWTIME_OT_job_remove,
)
