# SPDX-License-Identifier: GPL-3.0-or-later
"""Which frames an export would write, and whether it can. It reads the scene and the disk alone."""

from __future__ import annotations

import bpy

from viewtime_formats import ViewtimeError

from ..export import chosen_frames
from .places import NotReady, absolute_folder


def export_frames(
    scene: bpy.types.Scene, ob: bpy.types.Object
) -> tuple[tuple[int, int] | None, str]:
    """(first, last) and where they go in words; or None and what is missing."""
    try:
        folder = absolute_folder(scene.viewtime.export_folder, "the export folder")
        first, last = chosen_frames(scene, ob)
    except (NotReady, ViewtimeError) as reason:
        return None, str(reason)
    name = bpy.path.clean_name(ob.name)
    files = f"{name}.{first:04d}.ply"
    if last > first:
        files = f"{last - first + 1} files, {files} to {last:04d}"
    return (first, last), f"{files}, in {folder}"
