# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sidebar's panels share: sentences that wrap, durations in words, a step's button.
It knows no panel and no operator."""

from __future__ import annotations

import textwrap

import bpy

# Widths of Blender's interface font at scale 1, in pixels, for breaking sentences into labels.
CHARACTER_PIXELS = 6.5
MARGIN_PIXELS = 70


def sentence(
    layout: bpy.types.UILayout, context: bpy.types.Context, text: str, icon: str = "NONE"
) -> None:
    """A sentence over as many lines as the sidebar's width asks for: labels do not wrap."""
    scale = context.preferences.system.ui_scale
    characters = int((context.region.width / scale - MARGIN_PIXELS) / CHARACTER_PIXELS)
    column = layout.column(align=True)
    column.scale_y = 0.8
    for line in textwrap.wrap(text, max(20, characters)):
        column.label(text=line, icon=icon)
        icon = "BLANK1" if icon != "NONE" else "NONE"


def duration(seconds: float) -> str:
    """A remaining time in words: "about 8 s", "about 3 min"."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


class SidebarPanel:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Viewtime"
    layout: bpy.types.UILayout

    def step(self, context: bpy.types.Context, missing: str | None) -> bpy.types.UILayout:
        """A row for the step's button, disabled with the reason above it when it cannot be taken"""
        if missing:
            sentence(self.layout, context, missing, "INFO")
        row = self.layout.row()
        row.enabled = missing is None
        return row
