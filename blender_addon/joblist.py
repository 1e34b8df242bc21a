# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend's jobs as a list for the panel.
It lives on the window manager and is never saved: the backend remembers the jobs."""

from __future__ import annotations

import bpy
from bpy.props import (
    CollectionProperty,
    FloatProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from . import link

_seen = -1  # number of the list that the window shows


class ViewtimeJob(bpy.types.PropertyGroup):
    """One job, as last heard of."""

    job_id: StringProperty(name="Job", description="The backend's name of the job")
    state: StringProperty(name="State", description="What has become of the job")
    out: StringProperty(name="Output", description="Folder of the job's result")
    message: StringProperty(name="Message", description="What the backend says about the job")
    progress: FloatProperty(name="Progress", description="Part of the job that is done")
    created: StringProperty(name="Asked for", description="Seconds since 1970")


class ViewtimeWindow(bpy.types.PropertyGroup):
    """window_manager.viewtime: what is known of the backend's jobs."""

    jobs: CollectionProperty(
        name="Jobs",
        description="The backend's jobs, newest first",
        type=ViewtimeJob,
        options={"SKIP_SAVE"},
    )
    job_index: IntProperty(
        name="Job", description="The job that the buttons act on", options={"SKIP_SAVE"}
    )


def bring_up_to_date(*, anew: bool = False) -> None:
    """Copy the jobs that link knows into the list, when they have changed or anew is set."""
    global _seen
    if _seen == link.known.jobs_number and not anew:
        return
    _seen = link.known.jobs_number
    window = bpy.context.window_manager.viewtime
    chosen = selected_id(bpy.context)
    window.jobs.clear()
    for place, job in enumerate(link.known.jobs):
        item = window.jobs.add()
        item.name = item.job_id = job["id"]
        item.state, item.out = job["state"], job["out"]
        item.message = link.sentence(job["error"] or job["message"])
        item.progress, item.created = job["fraction"], str(job["created"])
        if job["id"] == chosen:
            window.job_index = place
    window.job_index = min(window.job_index, max(len(window.jobs) - 1, 0))


def selected(context: bpy.types.Context) -> ViewtimeJob | None:
    window = context.window_manager.viewtime
    return window.jobs[window.job_index] if 0 <= window.job_index < len(window.jobs) else None


def selected_id(context: bpy.types.Context) -> str:
    job = selected(context)
    return "" if job is None else job.job_id


CLASSES = (ViewtimeJob, ViewtimeWindow)


def register() -> None:
    global _seen
    _seen = -1
    bpy.types.WindowManager.viewtime = PointerProperty(type=ViewtimeWindow, options={"SKIP_SAVE"})


def unregister() -> None:
    del bpy.types.WindowManager.viewtime
