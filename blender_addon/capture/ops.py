# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators viewtime.capture and viewtime.capture_probe: arguments in, capture_steps through.
They decide nothing about rendering; in a window a capture stays cancellable with Esc."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bpy
from bpy.props import BoolProperty, EnumProperty, IntProperty, StringProperty

from viewtime_formats.errors import CaptureError, ViewtimeError

from . import estimate
from .frames import Plan, capture_frames, even_plan, scene_range
from .media import pictures_in
from .outlook import absolute, clip_of, freeze_files_of, settings_of, what_of
from .render import CaptureSettings, Measured, Progress, capture_steps, probe_steps
from .sources import ClipSource

WHAT = (
    ("FIXED", "Clip", "The fixed view over the frame range"),
    ("FREEZE", "Freeze time", "All cameras of the rig at one moment"),
    ("GRID", "Full grid", "All cameras at all times"),
    ("DEPTH", "Depth", "The depth of every rendered frame"),
)
CLIPS = ("RENDER", "MOVIE", "SEQUENCE", "STRIP")
ENGINES = ("SCENE", "CYCLES", "EEVEE", "WORKBENCH", "VIEWPORT")
# What is left out of a call is the scene's, in a window too, where Blender would else repeat the
# last call's values.
UNSET = {"SKIP_SAVE"}


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
    """Bring the clip, the rig's frames and their depth into the capture folder; Esc cancels"""

    bl_idname = "viewtime.capture"
    bl_label = "Capture"
    bl_options = {"REGISTER"}

    folder: StringProperty(
        name="Folder",
        description="New or empty folder; empty takes the scene's",
        subtype="DIR_PATH",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"} | UNSET,
    )
    what: EnumProperty(
        name="What",
        description="Unset: what the scene's settings say",
        items=WHAT,
        options={"ENUM_FLAG"} | UNSET,
        default={"FIXED", "FREEZE", "DEPTH"},
    )
    frame_start: IntProperty(name="First frame", description="Unset: the scene's", options=UNSET)
    frame_end: IntProperty(name="Last frame", description="Unset: the scene's", options=UNSET)
    times: IntProperty(name="Times", description="1 + 4k moments", default=9, options=UNSET)
    freeze_time: IntProperty(
        name="Freeze at", description="Moment, counted from 0", default=0, options=UNSET
    )
    freeze_frame: IntProperty(
        name="Freeze at frame",
        description="The moment as a frame of the scene; one of the captured ones",
        options=UNSET,
    )
    clip: EnumProperty(
        name="Clip",
        description="Where the fixed view's frames come from",
        items=[(name, name.capitalize(), "") for name in CLIPS],
        options=UNSET,
    )
    clip_path: StringProperty(
        name="Clip's file",
        description="The movie; or a picture of the sequence, or its folder",
        subtype="FILE_PATH",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"} | UNSET,
    )
    clip_start: IntProperty(
        name="Clip's first frame", description="Counted from 1", default=1, min=1, options=UNSET
    )
    clip_strip: StringProperty(name="Strip", description="Name of the strip", options=UNSET)
    freeze_folder: StringProperty(
        name="Freeze-time pictures",
        description="Folder with one picture for each camera, in view order by their names; "
        "given but empty, they are rendered",
        subtype="DIR_PATH",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"} | UNSET,
    )
    engine: EnumProperty(
        name="Engine",
        description="What renders the frames",
        items=[(name, name.capitalize(), "") for name in ENGINES],
        options=UNSET,
    )
    samples: IntProperty(
        name="Samples", description="Render samples; 0: the scene's", min=0, options=UNSET
    )
    size: IntProperty(
        name="Size", description="Pixels of the longer side", default=256, min=16, max=4096,
        options=UNSET,
    )  # fmt: skip
    crop: BoolProperty(
        name="Crop", description="Crop pictures to the render's shape", options=UNSET
    )
    prompt: StringProperty(name="Prompt", description="What the scene shows", options=UNSET)

    # Of a modal run alone; a Blender operator has no other place for them.
    _steps: Iterator[Progress] | None = None
    _timer: bpy.types.Timer | None = None
    _started: float = 0.0
    _settings: CaptureSettings
    _measured: Measured

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if context.scene.viewtime.capture_message:
            cls.poll_message_set("A capture is running: wait for its end, or press Esc")
            return False
        return True

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
        self._end(context)

    # ---- arguments ----

    def _begin(self, context: bpy.types.Context) -> Iterator[Progress]:
        self._settings, self._measured = self._asked(context.scene), Measured()
        return capture_steps(context, self._settings, self._measured)

    def _asked(self, scene: bpy.types.Scene) -> CaptureSettings:
        """The call's arguments, and the scene's settings for what it leaves out."""
        given = self.properties.is_property_set
        folder = capture_folder(self.folder or scene.viewtime.capture_folder)
        plan = self._plan(scene, given)
        what = frozenset(self.what) if given("what") else what_of(scene)
        freeze_time = min(scene.viewtime.freeze_time, plan.times - 1)
        if given("freeze_time"):
            freeze_time = self.freeze_time
        if given("freeze_frame"):
            freeze_time = plan.nearest_time(self.freeze_frame)
            if plan.frames[freeze_time] != self.freeze_frame:
                raise CaptureError(
                    f"Frame {self.freeze_frame} is none of the {plan}; the nearest is "
                    f"{plan.frames[freeze_time]}"
                )
        simple = ("engine", "samples", "size", "crop", "prompt")
        chosen = {name: getattr(self, name) for name in simple if given(name)}
        kept = {
            name: getattr(scene.viewtime, "prompt" if name == "prompt" else f"capture_{name}")
            for name in simple
        }
        return CaptureSettings(
            folder=folder,
            what=what,
            frame_start=plan.start,
            frame_end=plan.end,
            times=plan.times,
            freeze_time=freeze_time,
            clip=self._clip(scene, given) if "FIXED" in what else ClipSource(),
            freeze_files=self._freeze_files(scene, given) if "FREEZE" in what else (),
            **(kept | chosen),
        )

    def _plan(self, scene: bpy.types.Scene, given) -> Plan:
        times = self.times if given("times") else scene.viewtime.times
        start, end, step = scene_range(scene)
        if not (given("frame_start") or given("frame_end")):
            return even_plan(start, end, times, step)
        # A range that a caller gives is meant to the frame.
        start = self.frame_start if given("frame_start") else start
        frames = capture_frames(start, self.frame_end if given("frame_end") else end, times)
        return Plan(frames[0], frames[1] - frames[0] if len(frames) > 1 else 1, len(frames))

    def _clip(self, scene: bpy.types.Scene, given) -> ClipSource:
        if not any(given(name) for name in ("clip", "clip_path", "clip_start", "clip_strip")):
            return clip_of(scene)
        kind = self.clip if given("clip") else scene.viewtime.clip_source
        path = self.clip_path or scene.viewtime.clip_path
        if kind == "STRIP":
            place = scene.viewtime.clip_scene or scene
            return ClipSource(kind, scene=place, strip=self.clip_strip)
        if kind == "RENDER":
            return ClipSource()
        return ClipSource(kind, absolute(path, "the clip") if path else None, self.clip_start)

    def _freeze_files(self, scene: bpy.types.Scene, given) -> tuple[Path, ...]:
        if not given("freeze_folder"):
            return freeze_files_of(scene)
        folder = self.freeze_folder
        return tuple(pictures_in(absolute(folder, "the pictures"))) if folder else ()

    # ---- telling ----

    def _show(self, context: bpy.types.Context, done: int, total: int, message: str) -> None:
        manager, settings = context.window_manager, context.scene.viewtime
        if done == 0:
            self._started = time.monotonic()
            manager.progress_begin(0, total)
        manager.progress_update(done)
        words = f"{message} ({done} of {total})"
        if done:
            left = (time.monotonic() - self._started) / done * (total - done)
            words += f", about {left:.0f} s left"
        settings.capture_message, settings.capture_progress = words, done / total
        for area in context.screen.areas if context.screen else ():
            area.tag_redraw()
        # For whoever watches a terminal or a farm's log, at every fifth of the way.
        if bpy.app.background and done and (done == total or done % max(1, total // 5) == 0):
            print(f"viewtime: {words}", file=sys.stderr, flush=True)

    def _end(self, context: bpy.types.Context) -> None:
        context.window_manager.progress_end()
        context.scene.viewtime.capture_message = ""
        context.scene.viewtime.capture_progress = 0.0
        if self._timer is not None:
            context.window_manager.event_timer_remove(self._timer)
        self._steps = self._timer = None
        for area in context.screen.areas if context.screen else ():
            area.tag_redraw()

    def _failed(self, context: bpy.types.Context, error: ViewtimeError) -> set[str]:
        self._end(context)
        self.report({"ERROR"}, str(error))
        return {"CANCELLED"}

    def _finished(self, context: bpy.types.Context) -> set[str]:
        asked = self._settings
        estimate.remember(
            context.scene, self._measured, asked.engine, asked.samples, "DEPTH" in asked.what
        )
        self._end(context)
        self.report({"INFO"}, f"Captured into {asked.folder}")
        return {"FINISHED"}


class VIEWTIME_OT_capture_probe(bpy.types.Operator):
    """Render one frame, throw it away, and estimate from it how long the capture takes"""

    bl_idname = "viewtime.capture_probe"
    bl_label = "Time One Frame"
    bl_options = {"REGISTER"}

    poll = VIEWTIME_OT_capture.poll

    def execute(self, context: bpy.types.Context) -> set[str]:
        scene = context.scene
        try:
            with tempfile.TemporaryDirectory(prefix="viewtime-") as folder:
                # The clip and the files of the frozen moment take no rendering.
                asked = replace(settings_of(scene, Path(folder) / "one"), freeze_files=())
                measured = probe_steps(context, asked)
        except ViewtimeError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        estimate.remember(scene, measured, asked.engine, asked.samples, "DEPTH" in asked.what)
        self.report({"INFO"}, f"One frame takes {measured.rendered[-1]:.2f} s")
        return {"FINISHED"}


CLASSES = (VIEWTIME_OT_capture, VIEWTIME_OT_capture_probe)
