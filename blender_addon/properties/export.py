# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scene remembers of its exports and farm jobs. Plain values; it never acts on them."""

from __future__ import annotations

from bpy.props import EnumProperty, IntProperty, StringProperty

EXPORT_FRAMES = (
    ("SEQUENCE", "All", "Every frame that the sequence covers"),
    ("SCENE", "Scene", "The scene's frame range"),
    ("CURRENT", "Current", "The scene's present frame alone"),
)
FARM_WORK = (
    ("EXPORT", "Export", "Write the splats of the active sequence as PLY files"),
    ("RENDER", "Render", "Render the scene's frames as its output settings say"),
)
FARM_KINDS = (
    (
        "OPENJD",
        "OpenJD",
        "A job template of the Open Job Description, for Deadline Cloud and others",
    ),
    ("FLAMENCO", "Flamenco", "A job type script for the scripts folder of Flamenco's Manager"),
)


class ExportSettings:
    """The part of scene.viewtime about files for other programs."""

    export_folder: StringProperty(
        name="Folder",
        description="Folder for the numbered PLY files",
        subtype="DIR_PATH",
        default="//viewtime/ply",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    export_frames: EnumProperty(
        name="Frames",
        description="Which frames are exported, one PLY file each",
        items=EXPORT_FRAMES,
        default="SEQUENCE",
    )
    farm_kind: EnumProperty(
        name="For", description="What the farm job is written for", items=FARM_KINDS
    )
    farm_work: EnumProperty(
        name="Work", description="What the farm's machines shall do", items=FARM_WORK
    )
    farm_chunk: IntProperty(
        name="Frames a Task",
        description="Frames that one machine works on at a time",
        default=10,
        min=1,
        max=10000,
    )
