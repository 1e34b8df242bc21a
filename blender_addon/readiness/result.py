# SPDX-License-Identifier: GPL-3.0-or-later
"""What import and export still need. It reads the scene and the disk and changes neither."""

from __future__ import annotations

import bpy

from .places import NotReady, result_folder


def missing_for_result(scene: bpy.types.Scene) -> str | None:
    try:
        folder = result_folder(scene)
    except NotReady as reason:
        return str(reason)
    if not (folder / "sequence.json").is_file():
        return "Generate first, or choose an output folder that holds splats"
    return None


def missing_for_export(scene: bpy.types.Scene, active: bpy.types.Object | None) -> str | None:
    if active is not None and active.viewtime.sequence_id:
        return None
    if any(ob.viewtime.sequence_id for ob in scene.objects):
        return "Select the object that plays the sequence"
    return "Import a splat sequence first"
