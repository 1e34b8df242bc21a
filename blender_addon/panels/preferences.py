# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of the extension in Blender's preferences. It draws and decides nothing."""

from __future__ import annotations

import bpy

from .. import link, preferences
from .layout import sentence

LINES = 6
MEBIBYTE = 2**20


def draw(page: bpy.types.AddonPreferences, context: bpy.types.Context) -> None:
    layout = page.layout
    layout.use_property_split = True
    layout.use_property_decorate = False
    draw_backend(layout.box(), page, context)
    if page.backend_mode != "ATTACH":
        draw_installation(layout.box(), page, context)
    draw_cache(layout.box(), page, context)
    column = layout.box().column()
    column.label(text="Memory and Processor", icon="MEMORY")
    column.prop(page, "memory_megabytes")
    column.prop(page, "idle_minutes")
    column.prop(page, "threads")
    column.prop(page, "prefetch_megabytes")


def draw_backend(
    layout: bpy.types.UILayout, page: bpy.types.AddonPreferences, context: bpy.types.Context
) -> None:
    layout.label(text="Backend", icon="CONSOLE")
    row = layout.row()
    row.prop(page, "backend_mode", expand=True)
    if page.backend_mode == "ATTACH":
        layout.prop(page, "address")
        layout.prop(page, "token")
        layout.prop(page, "anywhere")
    else:
        layout.prop(page, "backend_python")
        found = preferences.backend_found()
        text = f"{found.python}, {found.source}" if found.python else "No backend was found"
        if not page.backend_python:
            sentence(layout, context, text, "CHECKMARK" if found.python else "ERROR")
    row = layout.row(align=True)
    row.label(text=link.in_words())
    row.operator(
        "viewtime.backend_start", text="Start" if page.backend_mode != "ATTACH" else "Join"
    )
    row.operator("viewtime.backend_stop", text="Stop")
    if link.known.problem:
        sentence(layout, context, link.known.problem, "ERROR")


def draw_installation(
    layout: bpy.types.UILayout, page: bpy.types.AddonPreferences, context: bpy.types.Context
) -> None:
    layout.label(text="Installation", icon="IMPORT")
    installer = link.known.installer
    if not link.installing():
        layout.prop(page, "install_from")
        layout.prop(page, "install_python")
        layout.prop(page, "install_index")
    row = layout.row(align=True)
    if link.installing():
        row.label(text="Installing; you can go on working")
        row.operator("viewtime.backend_install_cancel", text="Cancel", icon="X")
    else:
        row.operator("viewtime.backend_install", icon="IMPORT")
        row.operator("viewtime.backend_uninstall", text="", icon="TRASH")
    if installer is None:
        return
    if installer.state == "done":
        layout.label(text="The backend is installed", icon="CHECKMARK")
        return
    if installer.state in ("failed", "cancelled"):
        words = link.sentence(installer.error)
        sentence(layout, context, words, "ERROR" if installer.state == "failed" else "INFO")
    column = layout.column(align=True)
    column.scale_y = 0.75
    for line in installer.lines(LINES):
        column.label(text=line)


def draw_cache(
    layout: bpy.types.UILayout, page: bpy.types.AddonPreferences, context: bpy.types.Context
) -> None:
    layout.label(text="Data", icon="FILE_CACHE")
    layout.prop(page, "data_dir", text="Folder")
    if not page.data_dir:
        sentence(layout, context, str(preferences.data_dir(create=False)), "BLANK1")
    size = link.known.size
    row = layout.row(align=True)
    row.label(
        text=f"{size.total / MEBIBYTE:.1f} MB, of which {size.cache / MEBIBYTE:.1f} MB can go"
        if size
        else "Jobs, logs and pictures of jobs"
    )
    row.operator("viewtime.cache_measure")
    row.operator("viewtime.cache_clean")
