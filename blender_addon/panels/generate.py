# SPDX-License-Identifier: GPL-3.0-or-later
"""The third step in the sidebar: the job, its options, estimate and progress.
It draws and decides nothing."""

from __future__ import annotations

import time

import bpy

from .. import joblist, link, picture, preferences, readiness, session
from ..properties import JOB_ACTIVE
from ..readiness.generate import job_options
from .layout import SidebarPanel, duration, sentence

GIBIBYTE = 2**30
STATE_ICONS = {
    "queued": "TIME",
    "running": "PLAY",
    "succeeded": "CHECKMARK",
    "failed": "ERROR",
    "cancelled": "X",
    "interrupted": "ERROR",
}
RETRYABLE = ("failed", "cancelled", "interrupted")
PICTURE_MARGIN, PICTURE_UNIT = 50, 20  # pixels at scale 1: beside the picture, of an icon


class VIEWTIME_PT_generate(SidebarPanel, bpy.types.Panel):
    bl_label = "Generate"
    bl_idname = "VIEWTIME_PT_generate"
    bl_order = 2

    def draw(self, context: bpy.types.Context) -> None:
        layout, scene = self.layout, context.scene
        settings = scene.viewtime
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.enabled = not settings.capture_message
        column = layout.column()
        column.enabled = session.current() is None
        column.prop(settings, "route")
        column.prop(settings, "output_folder")
        if session.current() is not None:
            draw_progress(context, layout, settings)
        else:
            missing = readiness.missing_for_generate(
                scene, preferences.backend_python(), preferences.announced()
            )
            if missing is None:
                draw_estimate(context, layout, settings)
            row = self.step(context, missing)
            row.scale_y = 1.3
            row.operator("viewtime.generate", icon="PLAY")
            draw_last_job(context, layout, settings)
        draw_problem(context, layout)
        row = layout.row(align=True)
        row.label(text=link.in_words())
        row.operator("viewtime.backend_start", text="", icon="PLAY")
        row.operator("viewtime.backend_stop", text="", icon="SNAP_FACE")


def draw_progress(
    context: bpy.types.Context, layout: bpy.types.UILayout, settings: bpy.types.PropertyGroup
) -> None:
    progress, eta = session.progress_now(settings)
    text = f"{progress:.0%}"
    if eta >= 0:
        text = f"{text}, {duration(eta)} left"
    row = layout.row(align=True)
    row.progress(factor=progress, type="BAR", text=text)
    row.operator("viewtime.cancel", text="", icon="X")
    sentence(layout, context, settings.job_message)
    if icons := picture.icon_ids():
        # Together as wide as the sidebar.
        width = context.region.width / context.preferences.system.ui_scale
        row = layout.row(align=True)
        for icon in icons:
            scale = (width - PICTURE_MARGIN) / PICTURE_UNIT / len(icons)
            row.template_icon(icon_value=icon, scale=max(scale, 2.0))


def draw_estimate(
    context: bpy.types.Context, layout: bpy.types.UILayout, settings: bpy.types.PropertyGroup
) -> None:
    """Time and memory of the job that the button would start, where a backend runs to ask."""
    if link.keeper.current() is None:
        sentence(layout, context, "Start the backend to see time and memory", "INFO")
        return
    capture = readiness.absolute_folder(settings.capture_folder, "the capture folder")
    found = session.estimate(str(capture), job_options(settings))
    if found is None:
        layout.label(text="Estimating", icon="TIME")
    elif isinstance(found, str):
        sentence(layout, context, found, "ERROR")
    else:
        sentence(layout, context, estimate_in_words(found), "TIME")
        machine = link.known.machine
        if found["work"]["route"] == "generated" and machine.get("problem"):
            sentence(layout, context, f"PyTorch does not work: {machine['problem']}", "ERROR")
            layout.operator("viewtime.backend_install", text="Install Backend Again", icon="IMPORT")


def draw_last_job(
    context: bpy.types.Context, layout: bpy.types.UILayout, settings: bpy.types.PropertyGroup
) -> None:
    if not settings.job_state or link.known.problem:
        return
    failed = settings.job_state in ("failed", "interrupted")
    icon = "ERROR" if failed else "INFO"
    text = settings.job_message or settings.job_state.capitalize()
    sentence(layout, context, text, icon)
    unseen = settings.job_state == "interrupted" or settings.job_state in JOB_ACTIVE
    if unseen and settings.job_id:
        layout.operator("viewtime.generate", text="Follow the Job").resume = True
    elif settings.job_state in ("failed", "cancelled") and settings.job_id:
        layout.operator("viewtime.job_retry", icon="FILE_REFRESH").job_id = settings.job_id


def draw_problem(context: bpy.types.Context, layout: bpy.types.UILayout) -> None:
    """What is wrong with the backend, and the button that helps."""
    if link.installing():
        row = layout.row(align=True)
        row.label(text="Installing the backend", icon="IMPORT")
        row.operator("viewtime.preferences_show", text="", icon="PREFERENCES")
        return
    missing_backend = not preferences.announced() and not preferences.backend_python()
    remedy = "INSTALL" if missing_backend else link.known.remedy
    if link.known.problem:
        sentence(layout, context, link.known.problem, "ERROR")
    if remedy == "START":
        layout.operator("viewtime.backend_start", icon="PLAY")
    elif remedy == "INSTALL":
        layout.operator("viewtime.backend_install", icon="IMPORT")
    if remedy in ("INSTALL", "PREFERENCES"):
        layout.operator("viewtime.preferences_show", icon="PREFERENCES")


def estimate_in_words(found: dict) -> str:
    """ "About 2 min, 1.2 GB for 8 x 25 frames of 434 x 350 px, as measured here before"."""
    work = found["work"]
    basis = "as measured here before" if found["basis"] == "measured" else "a first guess"
    memory = f"{found['memory_bytes'] / GIBIBYTE:.1f} GB"
    frames = f"{work['views']} x {work['times']} frames of {work['width']} x {work['height']} px"
    return link.sentence(f"{duration(found['seconds'])}, {memory} for {frames}, {basis}")


class VIEWTIME_PT_generate_options(SidebarPanel, bpy.types.Panel):
    bl_label = "Options"
    bl_idname = "VIEWTIME_PT_generate_options"
    bl_parent_id = "VIEWTIME_PT_generate"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.scene.viewtime
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.enabled = session.current() is None
        layout.prop(settings, "work_size")
        layout.prop(settings, "device")
        if settings.route != "CAPTURED":
            column = layout.column()
            column.prop(settings, "generator")
            column.prop(settings, "steps")
            if "guidance" in link.known.machine.get("options", ["guidance"]):
                column.prop(settings, "guidance")
            column.prop(settings, "seed")


class VIEWTIME_UL_jobs(bpy.types.UIList):
    """The backend's jobs, newest first"""

    def draw_item(self, _context, layout, _data, item, _icon, _active, _property, _index) -> None:
        row = layout.row(align=True)
        row.label(text=folder_name(item.out), icon=STATE_ICONS.get(item.state, "DOT"))
        right = row.row()
        right.alignment = "RIGHT"
        running = item.state == "running"
        right.label(text=f"{item.progress:.0%}" if running else age(float(item.created)))


class VIEWTIME_PT_jobs(SidebarPanel, bpy.types.Panel):
    bl_label = "Jobs"
    bl_idname = "VIEWTIME_PT_jobs"
    bl_parent_id = "VIEWTIME_PT_generate"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        layout, window = self.layout, context.window_manager.viewtime
        if link.keeper.current() is None:
            sentence(layout, context, "Start the backend to see its jobs", "INFO")
            return
        row = layout.row()
        row.template_list("VIEWTIME_UL_jobs", "", window, "jobs", window, "job_index", rows=3)
        column = row.column(align=True)
        column.operator("viewtime.jobs_refresh", text="", icon="FILE_REFRESH")
        column.operator("viewtime.job_remove", text="", icon="REMOVE")
        job = joblist.selected(context)
        if job is None:
            return
        sentence(layout, context, f"{job.state.capitalize()}: {job.message}")
        sentence(layout, context, job.out, "FILE_FOLDER")
        row = layout.row(align=True)
        if job.state in RETRYABLE:
            row.operator("viewtime.job_retry", text="Retry")
        else:
            row.operator("viewtime.job_follow", text="Follow" if waits(job) else "Import")
        if waits(job):
            row.operator("viewtime.job_cancel", text="Cancel")


def waits(job: bpy.types.PropertyGroup) -> bool:
    return job.state in ("queued", "running")


def folder_name(path: str) -> str:
    """The last two parts of a path: "shot_010/run"."""
    return "/".join(path.replace("\\", "/").rstrip("/").split("/")[-2:])


def age(created: float) -> str:
    """How long ago: "now", "5 min", "3 h", "2 d"."""
    seconds = time.time() - created
    for unit, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {word}"
    return "now"


CLASSES = (
    VIEWTIME_PT_generate,
    VIEWTIME_PT_generate_options,
    VIEWTIME_UL_jobs,
    VIEWTIME_PT_jobs,
)
