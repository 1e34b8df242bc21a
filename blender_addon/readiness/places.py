# SPDX-License-Identifier: GPL-3.0-or-later
"""The folders that the scene's properties mean. It never makes one."""

from __future__ import annotations

from pathlib import Path

import bpy


class NotReady(Exception):
    """A step cannot be taken yet; the message is the sentence for the person."""


def absolute_folder(path: str, what: str) -> Path:
    """The folder that a property of the scene means. Raises NotReady when it means none.

    what: name of the property in a sentence, as in "the output folder".
    """
    if not path:
        raise NotReady(f"Choose {what}")
    if path.startswith("//") and not bpy.data.filepath:
        raise NotReady(f"Save the .blend first, or give {what} an absolute path")
    folder = Path(bpy.path.abspath(path))
    if not folder.is_absolute():
        raise NotReady(f"Give {what} an absolute path, or one that begins with //")
    return folder


def result_folder(scene: bpy.types.Scene) -> Path:
    """Where the splats of the scene's job are, or will be. Raises NotReady."""
    return absolute_folder(scene.viewtime.output_folder, "the output folder") / "splats"
