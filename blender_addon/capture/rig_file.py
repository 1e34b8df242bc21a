# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator that makes Blender cameras of a rig.json or a capture folder: the way back.
It changes the scene only when every camera of the file can be made."""

from __future__ import annotations

from pathlib import Path

import bpy
from bpy.props import StringProperty

from viewtime_formats.errors import RigError
from viewtime_formats.rig import Camera, read_rig

from ..conventions import blender_from_camera
from .rig import add_camera, remove_old_rig, set_rig
from .rig_ops import RigOperator


class VIEWTIME_OT_rig_from_file(RigOperator, bpy.types.Operator):
    """Make Blender cameras of a rig.json, or of a capture folder, and make them the rig"""

    bl_idname = "viewtime.rig_from_file"
    bl_label = "Rig from File"
    needs_camera = False

    filepath: StringProperty(
        name="File",
        description="A rig.json, or a capture folder that holds one",
        subtype="FILE_PATH",
        options={"SKIP_SAVE"},
    )
    filter_glob: StringProperty(default="*.json", options={"HIDDEN"})

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def make(self, context: bpy.types.Context) -> list[bpy.types.Object]:
        scene = context.scene
        path = Path(bpy.path.abspath(self.filepath))
        if not self.filepath or not path.exists():
            raise RigError(f"{self.filepath or 'Rig from File'}: choose a rig.json that exists")
        rig = read_rig(path / "rig.json" if path.is_dir() else path)
        seen = [square_pixels(camera, scene) for camera in rig.cameras]
        # A camera that cannot be made must not leave a half-made rig behind.
        trial = bpy.data.cameras.new("Viewtime trial")
        ob = bpy.data.objects.new("Viewtime trial", trial)
        try:
            for camera in seen:
                blender_from_camera(camera, ob, scene)
        finally:
            bpy.data.objects.remove(ob)
            bpy.data.cameras.remove(trial)
        remove_old_rig(scene)
        cameras = []
        for camera in seen:
            cameras.append(add_camera(scene, bpy.data.cameras.new(camera.name), camera.name))
            blender_from_camera(camera, cameras[-1], scene)
        set_rig(scene, cameras)
        if scene.camera is None:
            scene.camera = cameras[0]
        self.tell_shape(scene, seen[0])
        if rig.world != "blender":
            self.report({"INFO"}, f"The cameras stand in the file's own world ({rig.world})")
        return cameras

    def tell_shape(self, scene: bpy.types.Scene, camera: Camera) -> None:
        x, y = scene.render.resolution_x, scene.render.resolution_y
        if abs(camera.width / camera.height / (x / y) - 1) > 0.01:
            self.report(
                {"WARNING"},
                f"The rig is for pictures of {camera.width} x {camera.height} pixels, the render "
                f"is {x} x {y}: give the render that shape to see what the cameras saw",
            )


def square_pixels(camera: Camera, scene: bpy.types.Scene) -> Camera:
    """The camera at a size where its pixels have the scene's aspect, if it is nearly so already.

    Pictures scaled to a multiple of 16 pixels have pixels that are not quite square; the same
    camera, at a fine size of another height, has.
    """
    fx, fy = camera.intrinsics[0, 0], camera.intrinsics[1, 1]
    render = scene.render
    ratio = fx / fy * render.pixel_aspect_x / render.pixel_aspect_y
    if not 1e-4 < abs(ratio - 1) < 0.2:
        return camera
    fine = max(1, 50_000 // max(camera.width, camera.height))
    return camera.resized(camera.width * fine, round(camera.height * fine * ratio))


CLASSES = (VIEWTIME_OT_rig_from_file,)
