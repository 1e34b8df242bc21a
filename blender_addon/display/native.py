# SPDX-License-Identifier: GPL-3.0-or-later
"""Native Gaussian splats of Blender 5.3: one property of the point cloud, behind a check.
It never does anything on versions without them."""

from __future__ import annotations

import bpy

NATIVE_TYPE = "GAUSSIAN_SPLAT"


def available() -> bool:
    """Whether this Blender draws Gaussian splats itself."""
    kind = bpy.types.PointCloud.bl_rna.properties.get("type")
    return kind is not None and NATIVE_TYPE in getattr(kind, "enum_items", ())


def mark(cloud: bpy.types.PointCloud, native: bool = True) -> None:
    """Let Blender draw the cloud as splats, or as points again; only where available()."""
    wanted = NATIVE_TYPE if native else type(cloud).bl_rna.properties["type"].default
    if cloud.type != wanted:
        cloud.type = wanted
