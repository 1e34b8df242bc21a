# SPDX-License-Identifier: GPL-3.0-or-later
"""From scene cameras, clips and files to a Capture folder: rigs, cells, sources, operators.
It leaves the scene as it found it, and never talks to the backend."""

import bpy

from . import ops, reference_ops, rig_file, rig_list, rig_ops

CLASSES = (
    *rig_ops.CLASSES,
    *rig_file.CLASSES,
    *rig_list.CLASSES,
    *reference_ops.CLASSES,
    *ops.CLASSES,
)


def unregister() -> None:
    rig_list.end_preview(bpy.context)
