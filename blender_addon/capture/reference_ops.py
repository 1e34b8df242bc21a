# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators that fill in the reference: times, moment, strip, pictures, shape, folder.
Each changes one setting of the scene in one undo step; none captures anything."""

from __future__ import annotations

import re
from pathlib import Path

import bpy
from bpy.props import BoolProperty, CollectionProperty, StringProperty

from viewtime_formats.errors import ViewtimeError

from .frames import most_times, nearest_times, scene_plan
from .media import PICTURES, find_strip, natural, picture_size, pictures_in
from .outlook import clip_of, remembered_clip


class ReferenceOperator:
    """An operator that edits scene.viewtime while no capture runs."""

    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if context.scene.viewtime.capture_message:
            cls.poll_message_set("A capture is running: wait for its end, or press Esc")
            return False
        return True

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            self.apply(context)
        except ViewtimeError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class VIEWTIME_OT_times_fit(ReferenceOperator, bpy.types.Operator):
    """Take the nearest number of times that the video model can make and the range can hold"""

    bl_idname = "viewtime.times_fit"
    bl_label = "Nearest Valid Times"

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        settings = scene.viewtime
        settings.times = nearest_times(settings.times, most_times(scene))
        settings.freeze_time = min(settings.freeze_time, settings.times - 1)


class VIEWTIME_OT_freeze_here(ReferenceOperator, bpy.types.Operator):
    """Freeze time at the captured frame nearest to the current one"""

    bl_idname = "viewtime.freeze_here"
    bl_label = "Freeze at Current Frame"

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        plan = scene_plan(scene)
        scene.viewtime.freeze_time = plan.nearest_time(scene.frame_current)
        frame = plan.frames[scene.viewtime.freeze_time]
        if frame != scene.frame_current:
            self.report({"INFO"}, f"Frame {frame} is the nearest of the captured times")


class VIEWTIME_OT_clip_from_strip(ReferenceOperator, bpy.types.Operator):
    """Take the fixed view's clip from the sequencer's active strip, or the only selected one"""

    bl_idname = "viewtime.clip_from_strip"
    bl_label = "Use Selected Strip"

    def apply(self, context: bpy.types.Context) -> None:
        # Blender 5 lets the sequencer show another scene than the window.
        source = getattr(context, "sequencer_scene", None) or context.scene
        editor = source.sequence_editor
        name = ""
        if editor is not None:
            chosen = [s for s in editor.strips_all if s.select and s.type != "SOUND"]
            name = chosen[0].name if len(chosen) == 1 else ""
        strip = find_strip(source, name)
        settings = context.scene.viewtime
        settings.clip_source = "STRIP"
        settings.clip_strip = strip.name
        settings.clip_scene = None if source == context.scene else source


class VIEWTIME_OT_clip_refresh(ReferenceOperator, bpy.types.Operator):
    """Look at the clip's files again, after they changed on disk"""

    bl_idname = "viewtime.clip_refresh"
    bl_label = "Look Again"

    def apply(self, context: bpy.types.Context) -> None:
        settings = context.scene.viewtime
        settings.clip_path = settings.clip_path  # its update looks the files up
        if settings.clip_problem:
            raise ViewtimeError(settings.clip_problem)


class VIEWTIME_OT_range_from_clip(ReferenceOperator, bpy.types.Operator):
    """Take the times from the frames that the clip has, from the scene's first frame on;
    for a strip, from where it lies on the timeline"""

    bl_idname = "viewtime.range_from_clip"
    bl_label = "Fit Range to Clip"

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        settings, clip = scene.viewtime, clip_of(scene)
        if clip.kind == "RENDER":
            raise ViewtimeError("Choose a movie, images or a strip first")
        first, last = clip.range(remembered_clip(scene, clip), scene.frame_start)
        settings.use_own_range = True
        settings.range_start, settings.range_end, settings.range_step = first, last, 0
        settings.times = nearest_times(settings.times, most_times(scene))
        settings.freeze_time = min(settings.freeze_time, settings.times - 1)


class VIEWTIME_OT_freeze_files_choose(ReferenceOperator, bpy.types.Operator):
    """Choose the pictures of the frozen moment: one for each camera, in view order by their names.
    Choose a folder to take all of its pictures"""

    bl_idname = "viewtime.freeze_files_choose"
    bl_label = "Choose Freeze-Time Pictures"

    directory: StringProperty(
        name="Folder",
        description="Folder of the pictures",
        subtype="DIR_PATH",
        options={"SKIP_SAVE", "PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    files: CollectionProperty(
        name="Files",
        description="Names of the pictures; without any, all of the folder",
        type=bpy.types.OperatorFileListElement,
        options={"SKIP_SAVE"},
    )
    filter_image: BoolProperty(default=True, options={"HIDDEN", "SKIP_SAVE"})
    filter_folder: BoolProperty(default=True, options={"HIDDEN", "SKIP_SAVE"})

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def apply(self, context: bpy.types.Context) -> None:
        folder = Path(bpy.path.abspath(self.directory))
        names = [item.name for item in self.files if item.name]
        paths = sorted((folder / name for name in names), key=natural)
        if not paths or any(path.is_dir() for path in paths):
            paths = pictures_in(paths[0] if paths else folder)
        paths = [path for path in paths if path.suffix.lower() in PICTURES] or paths
        sizes = [picture_size(path) for path in paths]
        for path, size in zip(paths, sizes):
            if size != sizes[0]:
                raise ViewtimeError(
                    f"{path.name} is {size[0]} x {size[1]} pixels, {paths[0].name} "
                    f"{sizes[0][0]} x {sizes[0][1]}; pictures of one size are needed"
                )
        settings = context.scene.viewtime
        relative = self.directory.startswith("//") and bpy.data.filepath
        settings.freeze_files.clear()
        for path, size in zip(paths, sizes):
            item = settings.freeze_files.add()
            item.name = path.name
            item.path = bpy.path.relpath(str(path)) if relative else str(path)
            item.width, item.height = size
        settings.freeze_source = "FILES"


class VIEWTIME_OT_render_shape(ReferenceOperator, bpy.types.Operator):
    """Give the scene's render the size of the chosen clip or pictures, so that cameras fit them"""

    bl_idname = "viewtime.render_shape"
    bl_label = "Match Render to Pictures"

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        settings = scene.viewtime
        if settings.clip_source in {"MOVIE", "SEQUENCE"}:
            size = remembered_clip(scene, clip_of(scene)).size
        elif settings.freeze_source == "FILES" and len(settings.freeze_files):
            size = settings.freeze_files[0].width, settings.freeze_files[0].height
        else:
            raise ViewtimeError("Choose a movie or pictures first")
        scene.render.resolution_x, scene.render.resolution_y = size


class VIEWTIME_OT_capture_folder_next(ReferenceOperator, bpy.types.Operator):
    """Go on to the next free capture folder; the present one stays as it is"""

    bl_idname = "viewtime.capture_folder_next"
    bl_label = "Next Free Folder"

    def apply(self, context: bpy.types.Context) -> None:
        settings = context.scene.viewtime
        path = settings.capture_folder.rstrip("/\\")
        stem, number = re.fullmatch(r"(.*?)(?:\.(\d{3,}))?", path, re.DOTALL).groups()
        count = int(number or 1)
        while Path(bpy.path.abspath(path)).exists():
            count += 1
            path = f"{stem}.{count:03d}"
        settings.capture_folder = path


CLASSES = (
    VIEWTIME_OT_times_fit,
    VIEWTIME_OT_freeze_here,
    VIEWTIME_OT_clip_from_strip,
    VIEWTIME_OT_clip_refresh,
    VIEWTIME_OT_range_from_clip,
    VIEWTIME_OT_freeze_files_choose,
    VIEWTIME_OT_render_shape,
    VIEWTIME_OT_capture_folder_next,
)
