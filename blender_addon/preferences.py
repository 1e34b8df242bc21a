# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension's preferences: where the backend is, where its data lies, what it may take.
They hold values; backend_ops acts on them and panels.preferences draws them."""

from __future__ import annotations

import os
from pathlib import Path

import bpy
from bpy.props import BoolProperty, EnumProperty, FloatProperty, IntProperty, StringProperty

from .backend.find import INSTALLED, PYTHON_VARIABLE, Found, find_python
from .backend.keeper import ATTACH, OWN, SHARED, Choice

MODES = (
    (SHARED, "Share", "One backend for all Blenders of this user; the first one starts it"),
    (OWN, "Own", "A backend for this Blender alone, with jobs of its own"),
    (ATTACH, "Join", "Only ever join the backend at the address below, which somebody started"),
)


class ViewtimePreferences(bpy.types.AddonPreferences):
    bl_idname = __package__

    backend_mode: EnumProperty(
        name="Backend", description="Which backend this Blender talks to", items=MODES
    )
    backend_python: StringProperty(
        name="Python",
        description="Interpreter of the environment in which viewtime is installed; when empty, "
        f"the variable {PYTHON_VARIABLE}, our own installation or a checkout's .venv is used",
        subtype="FILE_PATH",
    )
    address: StringProperty(
        name="Address",
        description="Port of the running backend, or HOST:PORT; it stands in the line that "
        "viewtime serve prints",
    )
    token: StringProperty(
        name="Token",
        description="Token of the running backend, from the backend.json in its data folder; "
        "kept in Blender's preferences, never in a .blend",
        subtype="PASSWORD",
    )
    anywhere: BoolProperty(
        name="Allow Other Computers",
        description="Send captures' paths and the token, unencrypted, to a host that is not this "
        "computer. An SSH tunnel is safer",
        default=False,
    )
    data_dir: StringProperty(
        name="Data",
        description="Folder of the backend's jobs and logs; when empty, the extension's own folder",
        subtype="DIR_PATH",
    )
    install_from: StringProperty(
        name="From",
        description="A wheel, an sdist or a checkout of viewtime to install; when empty, the "
        "version of this extension from the Python Package Index",
        subtype="FILE_PATH",
    )
    install_python: StringProperty(
        name="Made With",
        description="Python 3.11 or later to make the environment with, with its venv package; "
        "when empty, Blender's own",
        subtype="FILE_PATH",
    )
    install_index: StringProperty(
        name="Extra Index",
        description="Address of a further package index, such as that of PyTorch's CPU or CUDA "
        "builds; may be empty",
    )
    memory_megabytes: IntProperty(
        name="Job Memory (MB)",
        description="A job that holds more than this is ended with a message; 0 is no limit. "
        "Takes effect when the backend is started the next time",
        default=0,
        min=0,
        soft_max=262144,
        step=512,
    )
    idle_minutes: FloatProperty(
        name="Keep Models (min)",
        description="How long the backend keeps its models in memory after the last job",
        default=15.0,
        min=0.1,
        soft_max=240.0,
        precision=1,
    )
    threads: IntProperty(
        name="CPU Threads",
        description="Threads of the backend's jobs; 0 takes as many as there are cores",
        default=0,
        min=0,
        soft_max=128,
    )
    prefetch_megabytes: IntProperty(
        name="Read ahead",
        description="Memory (MB) for steps of splat sequences that are read before the timeline "
        "reaches them; 0 reads each step when it is shown",
        default=512,
        min=0,
        soft_max=8192,
    )

    def draw(self, context: bpy.types.Context) -> None:
        # Here, because what is drawn (jobs, installation) in turn reads the preferences.
        from .panels import preferences as page

        page.draw(self, context)


def preferences() -> ViewtimePreferences:
    """Looked up each time: Blender frees what one would hold when a file is opened."""
    return bpy.context.preferences.addons[__package__].preferences


def backend_found() -> Found:
    """The backend's interpreter and where it was found; python is "" when there is none."""
    chosen = preferences().backend_python
    return find_python(
        bpy.path.abspath(chosen) if chosen else "",
        os.environ.get(PYTHON_VARIABLE, ""),
        install_dir(),
        Path(__file__).parent,
    )


def backend_python() -> str:
    """Path of the backend's interpreter, "" when there is none."""
    return backend_found().python


def choice() -> Choice:
    """Everything that opening the backend needs from bpy. Raises OSError."""
    settings = preferences()
    return Choice(
        python=backend_python(),
        data_dir=data_dir(),
        mode=settings.backend_mode,
        address=settings.address,
        token=settings.token,
        anywhere=settings.anywhere,
        idle_minutes=round(settings.idle_minutes, 2),
        memory_megabytes=settings.memory_megabytes,
        threads=settings.threads,
    )


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


def install_dir() -> Path:
    """Where "Install Backend" puts its virtual environment, whether it exists or not."""
    return Path(bpy.utils.extension_path_user(__package__, path="environment", create=False))


def installed() -> bool:
    return (install_dir() / INSTALLED).is_file()


def announced() -> bool:
    """Whether there is a backend to join, so that no interpreter is needed here."""
    settings = preferences()
    if settings.backend_mode == ATTACH:
        return True
    return settings.backend_mode == SHARED and (data_dir(create=False) / "backend.json").is_file()


CLASSES = (ViewtimePreferences,)
