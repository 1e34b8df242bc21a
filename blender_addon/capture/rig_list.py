# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators on the list of views: order, add, remove, make active, look through and back.
Looking through a view changes the 3D view alone, never the scene's active camera."""

from __future__ import annotations

import bpy
from bpy.props import EnumProperty, IntProperty

from .lend import put_view_back, view_3d, view_state
from .rig import MADE_BY_US

# The address of a 3D view's space, and how it looked.
Preview = tuple[int, dict]


class ListOperator:
    """An operator on scene.viewtime.rig."""

    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if context.scene.viewtime.capture_message:
            cls.poll_message_set("A capture is running: wait for its end, or press Esc")
            return False
        if not len(context.scene.viewtime.rig):
            cls.poll_message_set("There is no rig; make one, or use the selected cameras")
            return False
        return True

    def refuse(self, words: str) -> set[str]:
        self.report({"ERROR"}, words)
        return {"CANCELLED"}

    def view_of(self, context: bpy.types.Context) -> int:
        """The view that is meant: the argument, or else the list's highlighted row."""
        settings = context.scene.viewtime
        return self.index if self.index >= 0 else settings.rig_index

    def camera_of(self, context: bpy.types.Context) -> bpy.types.Object | None:
        rig, view = context.scene.viewtime.rig, self.view_of(context)
        return rig[view].camera if view < len(rig) else None


def view_index() -> object:
    return IntProperty(
        name="View",
        description="View number, from 0; -1 takes the highlighted row",
        default=-1,
        min=-1,
        options={"SKIP_SAVE"},
    )


class VIEWTIME_OT_rig_move(ListOperator, bpy.types.Operator):
    """Move the view up or down in the order of views"""

    bl_idname = "viewtime.rig_move"
    bl_label = "Move View"

    index: view_index()
    direction: EnumProperty(
        name="Direction",
        description="Which way the view moves in the order",
        items=(("UP", "Up", "Earlier"), ("DOWN", "Down", "Later")),
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        settings = context.scene.viewtime
        view = self.view_of(context)
        to = view + (1 if self.direction == "DOWN" else -1)
        if not (view < len(settings.rig) and 0 <= to < len(settings.rig)):
            return {"CANCELLED"}
        settings.rig.move(view, to)
        settings.rig_index = to
        return {"FINISHED"}


class VIEWTIME_OT_rig_reverse(ListOperator, bpy.types.Operator):
    """Turn the order of views around"""

    bl_idname = "viewtime.rig_reverse"
    bl_label = "Reverse View Order"

    def execute(self, context: bpy.types.Context) -> set[str]:
        rig = context.scene.viewtime.rig
        for view in range(len(rig)):
            rig.move(len(rig) - 1, view)
        return {"FINISHED"}


class VIEWTIME_OT_rig_remove(ListOperator, bpy.types.Operator):
    """Take the view out of the rig; a camera that a rig maker made is deleted"""

    bl_idname = "viewtime.rig_remove"
    bl_label = "Remove View"

    index: view_index()

    def execute(self, context: bpy.types.Context) -> set[str]:
        scene, settings = context.scene, context.scene.viewtime
        view = self.view_of(context)
        if view >= len(settings.rig):
            return self.refuse(f"There is no view {view}; the rig has {len(settings.rig)} views")
        camera = settings.rig[view].camera
        settings.rig.remove(view)
        settings.rig_index = max(0, min(settings.rig_index, len(settings.rig) - 1))
        ours = camera is not None and camera.get(MADE_BY_US) and camera is not scene.camera
        if ours and camera.users_scene == (scene,):
            data = camera.data
            bpy.data.objects.remove(camera)
            if data.users == 0:
                bpy.data.cameras.remove(data)
        return {"FINISHED"}


class VIEWTIME_OT_rig_add(ListOperator, bpy.types.Operator):
    """Add the selected cameras to the end of the rig"""

    bl_idname = "viewtime.rig_add"
    bl_label = "Add Selected Cameras"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if context.scene.viewtime.capture_message:
            cls.poll_message_set("A capture is running: wait for its end, or press Esc")
        elif not any(ob.type == "CAMERA" for ob in context.selected_objects):
            cls.poll_message_set("No camera is selected")
        else:
            return True
        return False

    def execute(self, context: bpy.types.Context) -> set[str]:
        rig = context.scene.viewtime.rig
        known = {item.camera for item in rig}
        new = [ob for ob in context.selected_objects if ob.type == "CAMERA" and ob not in known]
        if not new:
            return self.refuse("The selected cameras are in the rig already")
        for camera in sorted(new, key=lambda ob: ob.name):
            rig.add().camera = camera
        context.scene.viewtime.rig_index = len(rig) - 1
        return {"FINISHED"}


class VIEWTIME_OT_rig_activate(ListOperator, bpy.types.Operator):
    """Make this view's camera the scene's active camera: the fixed view, which the clip is from"""

    bl_idname = "viewtime.rig_activate"
    bl_label = "Make Fixed View"

    index: view_index()

    def execute(self, context: bpy.types.Context) -> set[str]:
        camera = self.camera_of(context)
        if camera is None:
            return self.refuse(f"View {self.view_of(context)} has no camera")
        context.scene.camera = camera
        return {"FINISHED"}


# ---- looking through a view ----

# The 3D view that looks through a camera of a rig, and how it looked before. A window's state is
# in no undo step and in no scene, so it cannot be kept there.
_preview: list[Preview] = []


def previewed(context: bpy.types.Context) -> bpy.types.Object | None:
    """The camera that a 3D view looks through for a preview, None when none does."""
    space = _previewed_space(context)
    return space.camera if space else None


def end_preview(context: bpy.types.Context) -> bool:
    """Put the 3D view back as it was; whether there was anything to put back."""
    space = _previewed_space(context)
    if space is not None:
        put_view_back(space, _preview[0][1])
    _preview.clear()
    return space is not None


def _previewed_space(context: bpy.types.Context) -> bpy.types.SpaceView3D | None:
    """The space of the preview, while it exists and still looks through its local camera."""
    if not _preview:
        return None
    spaces = [
        space
        for screen in bpy.data.screens
        for area in screen.areas
        for space in area.spaces
        if space.type == "VIEW_3D"
    ]
    space = next((space for space in spaces if space.as_pointer() == _preview[0][0]), None)
    return space if space is not None and space.use_local_camera and space.camera else None


class VIEWTIME_OT_look_through(ListOperator, bpy.types.Operator):
    """Look through this view's camera in the 3D view; the scene's active camera stays"""

    bl_idname = "viewtime.look_through"
    bl_label = "Look Through View"
    bl_options = {"REGISTER"}

    index: view_index()

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if not super().poll(context):
            return False
        if view_3d(context) is None:
            cls.poll_message_set("There is no 3D view to look through the camera")
            return False
        return True

    def execute(self, context: bpy.types.Context) -> set[str]:
        camera = self.camera_of(context)
        if camera is None or camera.name not in context.view_layer.objects:
            return self.refuse(f"The camera of view {self.view_of(context)} is gone")
        _window, area, _region = view_3d(context)
        space = area.spaces.active
        if _previewed_space(context) != space:
            end_preview(context)
            _preview[:] = [(space.as_pointer(), view_state(space))]
        space.use_local_camera = True
        space.camera = camera
        space.region_3d.view_perspective = "CAMERA"
        if self.index >= 0:
            context.scene.viewtime.rig_index = self.index
        area.tag_redraw()
        return {"FINISHED"}


class VIEWTIME_OT_look_back(bpy.types.Operator):
    """End the preview: the 3D view is again as it was before"""

    bl_idname = "viewtime.look_back"
    bl_label = "Back to My View"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if previewed(context) is None:
            cls.poll_message_set("No view is being looked through")
            return False
        return True

    def execute(self, context: bpy.types.Context) -> set[str]:
        end_preview(context)
        return {"FINISHED"}


CLASSES = (
    VIEWTIME_OT_rig_move,
    VIEWTIME_OT_rig_reverse,
    VIEWTIME_OT_rig_remove,
    VIEWTIME_OT_rig_add,
    VIEWTIME_OT_rig_activate,
    VIEWTIME_OT_look_through,
    VIEWTIME_OT_look_back,
)
