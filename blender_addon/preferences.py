# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension's preferences: which Python holds the backend, and where its data lies.
They never install anything and never reach out of this computer."""

from __future__ import annotations

import os
from pathlib import Path

import bpy
from bpy.props import IntProperty, StringProperty

PYTHON_VARIABLE = "VIEWTIME_BACKEND_PYTHON"


class ViewtimePreferences(bpy.types.AddonPreferences):
    bl_idname = __package__

    backend_python: StringProperty(
        name="Backend Python",
        description="Interpreter of the environment in which viewtime is installed; "
        f"when empty, the environment variable {PYTHON_VARIABLE} is used",
        subtype="FILE_PATH",
    )
    data_dir: StringProperty(
        name="Data",
        description="Folder of the backend's jobs and logs; when empty, the extension's own folder",
        subtype="DIR_PATH",
    )

    prefetch_megabytes: IntProperty(
        name="Read ahead",
        description="Memory (MB) for steps of splat sequences that are read before the timeline "
        "reaches them; 0 reads each step when it is shown",
        default=512,
        min=0,
        soft_max=8192,
    )

    def draw(self, _context: bpy.types.Context) -> None:
        column = self.layout.column()
        column.prop(self, "backend_python")
        if not self.backend_python:
            from_environment = os.environ.get(PYTHON_VARIABLE)
            column.label(
                text=f"Taken from {PYTHON_VARIABLE}: {from_environment}"
                if from_environment
                else "Choose the Python of the environment where viewtime is installed, "
                "for example .venv/bin/python or .venv\\Scripts\\python.exe",
                icon="INFO" if from_environment else "ERROR",
            )
        column.prop(self, "data_dir")
        column.prop(self, "prefetch_megabytes")


def preferences() -> ViewtimePreferences:
    return bpy.context.preferences.addons[__package__].preferences


def backend_python() -> str:
    """Path of the backend's interpreter: the preference, else the environment, else ''."""
    chosen = preferences().backend_python or os.environ.get(PYTHON_VARIABLE, "")
    return bpy.path.abspath(chosen) if chosen else ""


def prefetch_bytes() -> int:
    """Memory for steps that are read ahead of the timeline, in bytes."""
    return preferences().prefetch_megabytes << 20


def data_dir(*, create: bool = True) -> Path:
    """Folder of the backend's data. Raises OSError when it cannot be made."""
    chosen = preferences().data_dir
    if not chosen:
        return Path(bpy.utils.extension_path_user(__package__, path="backend", create=create))
    folder = Path(bpy.path.abspath(chosen))
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def announced() -> bool:
    """Whether a backend started by hand says in the data folder that it runs."""
    return (data_dir(create=False) / "backend.json").is_file()


CLASSES = (ViewtimePreferences,)
