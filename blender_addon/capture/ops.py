# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator viewtime.capture: reads its arguments, then steps through render.capture_steps.
It decides nothing about rendering; in a window it stays cancellable with Esc between frames."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bpy
from bpy.props import EnumProperty, IntProperty, StringProperty

from viewtime_formats.errors import CaptureError, ViewtimeError

from .render import CaptureSettings, Progress, capture_steps

WHAT = (
    ("FIXED", "Clip", "The active camera over the frame range"),
    ("FREEZE", "Freeze time", "All cameras of the rig at one moment"),
    ("GRID", "Full grid", "All cameras at all times"),
    ("DEPTH", "Depth", "The depth of every captured frame"),
)


def capture_folder(path: str) -> Path:
    """The absolute folder that a person meant. Raises CaptureError when there is none."""
    if not path:
        raise CaptureError("No capture folder is set; choose one")
    if path.startswith("//") and not bpy.data.filepath:
        raise CaptureError(
            f"The capture folder {path} lies beside the .blend, which is not saved yet: save it"
        )
    folder = Path(bpy.path.abspath(path))
    if not folder.is_absolute():
        raise CaptureError(f"The capture folder {path} is relative; begin it with // or a drive")
    return folder


class VIEWTIME_OT_capture(bpy.types.Operator):
    """Render the rig's frames and their depth into the capture folder"""

    bl_idname = "viewtime.capture"
    bl_label = "Capture"
    bl_options = {"REGISTER"}

    folder: StringProperty(
        name="Folder",
        description="New or empty folder; empty takes the scene's",
        subtype="DIR_PATH",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    what: EnumProperty(
        name="What", items=WHAT, options={"ENUM_FLAG"}, default={"FIXED", "FREEZE", "DEPTH"}
    )
    frame_start: IntProperty(name="First frame", description="Unset: the scene's")
    frame_end: IntProperty(name="Last frame", description="Unset: the scene's")
    times: IntProperty(name="Times", description="1 + 4k moments", default=9)
    freeze_time: IntProperty(name="Freeze at", description="Moment, counted from 0", default=0)

    # Of a modal run alone; a Blender operator has no other place for them.
    _steps: Iterator[Progress] | None = None
    _timer: bpy.types.Timer | None = None
    _started: float = 0.0

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            for done, total, message in self._begin(context):
                self._show(context, done, total, message)
        except ViewtimeError as error:
            return self._failed(context, error)
        return self._finished(context)

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if bpy.app.background:
            return self.execute(context)
        try:
            self._steps = self._begin(context)
            self._show(context, *next(self._steps))
        except ViewtimeError as error:
            return self._failed(context, error)
        manager = context.window_manager
        # The pause lets the window draw the progress and notice Esc.
        self._timer = manager.event_timer_add(0.02, window=context.window)
        manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if event.type == "ESC":
            self.cancel(context)
            self.report({"INFO"}, "Capture cancelled; nothing was kept")
            return {"CANCELLED"}
        if event.type != "TIMER" or self._steps is None:
            return {"RUNNING_MODAL"}
        try:
            self._show(context, *next(self._steps))
        except StopIteration:
            return self._finished(context)
        except ViewtimeError as error:
            return self._failed(context, error)
        return {"RUNNING_MODAL"}

    def cancel(self, context: bpy.types.Context) -> None:
        """Blender calls this when the window closes; Esc comes here too."""
        if self._steps is not None:
            self._steps.close()  # puts the scene back and removes the folder
        self._end(context, "")

    def _begin(self, context: bpy.types.Context) -> Iterator[Progress]:
        scene = context.scene
        given = self.properties.is_property_set
        settings = CaptureSettings(
            folder=capture_folder(self.folder or scene.viewtime.capture_folder),
            what=frozenset(self.what),
            frame_start=self.frame_start if given("frame_start") else scene.frame_start,
            frame_end=self.frame_end if given("frame_end") else scene.frame_end,
            times=self.times,
            freeze_time=self.freeze_time,
            size=scene.viewtime.capture_size,
            prompt=scene.viewtime.prompt,
        )
        return capture_steps(context, settings)

    def _show(self, context: bpy.types.Context, done: int, total: int, message: str) -> None:
        manager = context.window_manager
        if done == 0:
            manager.progress_begin(0, total)
        manager.progress_update(done)
        context.scene.viewtime.capture_message = f"{message} ({done} of {total})"
        for area in context.screen.areas if context.screen else ():
            area.tag_redraw()
        if bpy.app.background:
            self._tell(done, total, message)

    def _tell(self, done: int, total: int, message: str) -> None:
        """Progress for whoever watches a terminal or a farm's log, at every fifth of the way."""
        if done == 0:
            self._started = time.monotonic()
        elif done == total or done % max(1, total // 5) == 0:
            left = (time.monotonic() - self._started) / done * (total - done)
            print(
                f"viewtime: {message} ({done} of {total}), about {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def _end(self, context: bpy.types.Context, message: str) -> None:
        context.window_manager.progress_end()
        context.scene.viewtime.capture_message = message
        if self._timer is not None:
            context.window_manager.event_timer_remove(self._timer)
        self._steps = self._timer = None

    def _failed(self, context: bpy.types.Context, error: ViewtimeError) -> set[str]:
        self._end(context, "")
        self.report({"ERROR"}, str(error))
        return {"CANCELLED"}

    def _finished(self, context: bpy.types.Context) -> set[str]:
        self._end(context, "")
        self.report({"INFO"}, "Captured")
        return {"FINISHED"}


CLASSES = (VIEWTIME_OT_capture,)
