# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators on the backend itself: start, stop, install, clean its cache.
They parse arguments and report; link asks, install installs."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import bpy
from bpy.props import BoolProperty, StringProperty

from . import link, preferences, session
from .backend import BackendError
from .backend.install import Order, remove

# Measured with `du` on an environment with PyTorch's CPU build; its CUDA builds are larger.
CONSENT = (
    "This downloads Viewtime's backend and the packages it needs (PyTorch, diffusers, and others) "
    "and installs them into a folder of their own. Nothing else on this computer is changed.",
    "Disk space: about 2 GB with PyTorch's CPU build, several GB more with a CUDA build, which is "
    "what the package index has for Linux. The download is somewhat smaller than that.",
)


def settle_or_go_on(operator: bpy.types.Operator, name: str) -> set[str]:
    """In a window the timer brings the answer; in background mode it is waited for."""
    if not bpy.app.background:
        session.ensure_timer()
        return {"FINISHED"}
    error = link.settle(name)
    if error is None:
        return {"FINISHED"}
    operator.report({"ERROR"}, link.sentence(str(error)))
    return {"CANCELLED"}


class VIEWTIME_OT_backend_start(bpy.types.Operator):
    """Start the backend, or join the one that runs already; the window goes on meanwhile"""

    bl_idname = "viewtime.backend_start"
    bl_label = "Start Backend"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        if link.desk.busy("start"):
            cls.poll_message_set("The backend is starting")
            return False
        return True

    def execute(self, _context: bpy.types.Context) -> set[str]:
        try:
            link.start()
        except OSError as error:
            self.report({"ERROR"}, f"The data folder cannot be used: {error}")
            return {"CANCELLED"}
        return settle_or_go_on(self, "start")


class VIEWTIME_OT_backend_stop(bpy.types.Operator):
    """Stop the backend that this Blender started; a running job waits for its next start"""

    bl_idname = "viewtime.backend_stop"
    bl_label = "Stop Backend"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        if link.keeper.current() is None:
            cls.poll_message_set("The backend is not running")
            return False
        return True

    def execute(self, _context: bpy.types.Context) -> set[str]:
        link.stop()
        return settle_or_go_on(self, "stop")


class VIEWTIME_OT_backend_install(bpy.types.Operator):
    """Install Viewtime's backend into an environment of its own, after asking"""

    bl_idname = "viewtime.backend_install"
    bl_label = "Install Backend"

    source: StringProperty(
        name="From",
        description="A wheel, an sdist or a checkout; empty is the preference, else this "
        "extension's version from the package index",
    )
    offline: BoolProperty(
        name="Offline",
        description="Download nothing: take packages from the folder of the wheel alone",
        default=False,
    )
    dependencies: BoolProperty(
        name="With Dependencies",
        description="Install what the backend needs as well",
        default=True,
    )
    python: StringProperty(
        name="Made With",
        description="Python 3.11 or later to make the environment with; empty is the preference, "
        "else Blender's own",
        subtype="FILE_PATH",
    )

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        if link.installing():
            cls.poll_message_set("An installation is running")
            return False
        return True

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_props_dialog(self, width=480, confirm_text="Install")

    def draw(self, _context: bpy.types.Context) -> None:
        column = self.layout.column(align=True)
        for paragraph in CONSENT:
            for line in textwrap.wrap(paragraph, 78):
                column.label(text=line)
            column.separator()
        column.label(text=f"Package: {self._package()}")
        for line in textwrap.wrap(f"Folder: {preferences.install_dir()}", 78):
            column.label(text=line)
        if not bpy.app.online_access:
            column.label(text="Online access is off in Blender's preferences", icon="ERROR")
        self.layout.prop(self, "offline")

    def execute(self, _context: bpy.types.Context) -> set[str]:
        if not bpy.app.online_access and not self.offline:
            self.report(
                {"ERROR"},
                "Online access is off: allow it in Preferences > System > Network, or install "
                "offline from a wheel",
            )
            return {"CANCELLED"}
        package = self._package()
        if self.offline and not Path(package).exists():
            self.report({"ERROR"}, f"Offline, a wheel or a folder is needed, not {package}")
            return {"CANCELLED"}
        maker = self.python or preferences.preferences().install_python
        order = Order(
            folder=preferences.install_dir(),
            package=package,
            offline=self.offline,
            dependencies=self.dependencies,
            index=preferences.preferences().install_index,
            python=bpy.path.abspath(maker) if maker else sys.executable,
        )
        if link.keeper.current() is not None:
            link.stop()
        installer = link.install(order)
        if not bpy.app.background:
            session.ensure_timer()
            return {"FINISHED"}
        installer.wait()
        print("\n".join(installer.lines(200)), flush=True)
        if installer.state != "done":
            self.report({"ERROR"}, link.sentence(installer.error))
            return {"CANCELLED"}
        return {"FINISHED"}

    def _package(self) -> str:
        chosen = self.source or preferences.preferences().install_from
        if chosen:
            return bpy.path.abspath(chosen)
        return f"viewtime=={version()}"


class VIEWTIME_OT_backend_install_cancel(bpy.types.Operator):
    """Stop the installation and remove what it has made"""

    bl_idname = "viewtime.backend_install_cancel"
    bl_label = "Cancel Installation"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        if not link.installing():
            cls.poll_message_set("No installation is running")
            return False
        return True

    def execute(self, _context: bpy.types.Context) -> set[str]:
        assert link.known.installer is not None
        link.known.installer.cancel()
        return {"FINISHED"}


class VIEWTIME_OT_backend_uninstall(bpy.types.Operator):
    """Remove the environment that Install Backend made; jobs and results stay"""

    bl_idname = "viewtime.backend_uninstall"
    bl_label = "Remove Installed Backend"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        if link.installing() or not preferences.installed():
            cls.poll_message_set("This extension has installed no backend")
            return False
        return True

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, _context: bpy.types.Context) -> set[str]:
        folder = preferences.install_dir()

        def act() -> None:
            link.keeper.stop()
            try:
                remove(folder)
            except OSError as error:
                raise BackendError(f"{folder} could not be removed: {error}") from error

        link.ask("stop", act, "Backend: removing")
        return settle_or_go_on(self, "stop")


class VIEWTIME_OT_cache_measure(bpy.types.Operator):
    """Measure how large the backend's data folder is"""

    bl_idname = "viewtime.cache_measure"
    bl_label = "Measure"

    def execute(self, _context: bpy.types.Context) -> set[str]:
        link.measure_cache()
        return settle_or_go_on(self, "size")


class VIEWTIME_OT_cache_clean(bpy.types.Operator):
    """Remove pictures of jobs that have ended and old logs; jobs, results and captures stay"""

    bl_idname = "viewtime.cache_clean"
    bl_label = "Clean"

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, _context: bpy.types.Context) -> set[str]:
        link.clean_cache()
        return settle_or_go_on(self, "clean")


class VIEWTIME_OT_preferences_show(bpy.types.Operator):
    """Open the preferences of Viewtime"""

    bl_idname = "viewtime.preferences_show"
    bl_label = "Preferences"

    def execute(self, _context: bpy.types.Context) -> set[str]:
        if bpy.app.background:
            self.report({"ERROR"}, "There is no window to show preferences in")
            return {"CANCELLED"}
        bpy.ops.preferences.addon_show(module=__package__)
        return {"FINISHED"}


def version() -> str:
    """Of this extension, as its manifest states it."""
    for line in (Path(__file__).parent / "blender_manifest.toml").read_text().splitlines():
        if line.startswith("version ="):
            return line.split('"')[1]
    raise ValueError("the manifest states no version")


CLASSES = (
    VIEWTIME_OT_backend_start,
    VIEWTIME_OT_backend_stop,
    VIEWTIME_OT_backend_install,
    VIEWTIME_OT_backend_install_cancel,
    VIEWTIME_OT_backend_uninstall,
    VIEWTIME_OT_cache_measure,
    VIEWTIME_OT_cache_clean,
    VIEWTIME_OT_preferences_show,
)
