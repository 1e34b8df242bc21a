# SPDX-License-Identifier: GPL-3.0-or-later
"""The fourth step in the sidebar: the sequence. It draws and decides nothing."""

from __future__ import annotations

import bpy

from .. import display, playback, readiness
from ..readiness.result import is_lost, missing_for_native, sequence_in_words
from .layout import SidebarPanel, sentence


class VIEWTIME_PT_result(SidebarPanel, bpy.types.Panel):
    bl_label = "Result"
    bl_idname = "VIEWTIME_PT_result"
    bl_order = 3

    def draw(self, context: bpy.types.Context) -> None:
        layout, scene, ob = self.layout, context.scene, context.active_object
        layout.use_property_split = True
        layout.use_property_decorate = False
        missing = readiness.missing_for_result(scene)
        row = self.step(context, missing)
        button = row.operator("viewtime.import_sequence", text="Import Result", icon="IMPORT")
        if missing is None:
            button.directory = str(readiness.result_folder(scene))
        layout.operator("viewtime.import_sequence", text="Import from Folder", icon="FILE_FOLDER")
        if ob is not None and ob.viewtime.sequence_id:
            self.draw_sequence(context, layout, ob)

    @staticmethod
    def draw_sequence(
        context: bpy.types.Context, layout: bpy.types.UILayout, ob: bpy.types.Object
    ) -> None:
        if problem := playback.message(ob):
            sentence(layout, context, problem, "ERROR")
        if is_lost(ob):
            row = layout.row(align=True)
            row.operator(
                "viewtime.relink_sequence", text="Find Nearby", icon="VIEWZOOM"
            ).nearby = True
            row.operator("viewtime.relink_sequence", text="Relink", icon="FILE_FOLDER")
        header, body = layout.panel("viewtime_sequence")
        header.label(text="Sequence")
        if body is not None:
            for line in sequence_in_words(ob):
                sentence(body, context, line)
            row = body.row(align=True)
            row.prop(ob.viewtime, "folder", text="Folder")
        header, body = layout.panel("viewtime_playback")
        header.label(text="Playback")
        if body is not None:
            draw_playback(body, ob)
        header, body = layout.panel("viewtime_farm", default_closed=True)
        header.label(text="Render without Viewtime")
        if body is not None:
            missing = missing_for_native(ob)
            if missing:
                sentence(body, context, missing, "INFO")
            row = body.row()
            row.enabled = missing is None
            row.operator("viewtime.make_native_sequence", icon="GEOMETRY_NODES")
        advice = display.advice(context.scene)
        for line in advice:
            sentence(layout, context, line, "INFO")
        if advice:
            layout.operator("viewtime.prepare_render")


def draw_playback(layout: bpy.types.UILayout, ob: bpy.types.Object) -> None:
    """When what is shown. Values that take keyframes have the dot for them."""
    settings = ob.viewtime
    column = layout.column()
    column.prop(settings, "enabled")
    column.prop(settings, "use_time")
    column = layout.column(align=True)
    column.use_property_decorate = True
    if settings.use_time:
        column.prop(settings, "time")
    else:
        column.prop(settings, "offset")
        column.prop(settings, "speed")
    column = layout.column()
    column.prop(settings, "loop")
    column.prop(settings, "sampling")


CLASSES = (VIEWTIME_PT_result,)
