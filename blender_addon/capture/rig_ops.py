# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators that make a rig: arc, orbit, dolly, grid, along a curve, selected cameras.
They read their arguments and report; poses.py computes and rig.py changes the scene."""

from __future__ import annotations

import bpy
import numpy as np
from bpy.props import (
    BoolProperty,
    EnumProperty,
    FloatProperty,
    FloatVectorProperty,
    IntProperty,
    StringProperty,
)
from mathutils import Vector

from viewtime_formats.errors import RigError, ViewtimeError

from ..conventions import rigid_pose
from .poses import (
    MAX_CAMERAS,
    aimed,
    arc_places,
    common_target,
    grid_places,
    line_places,
    order_along_arc,
    path_places,
)
from .rig import (
    active_pose,
    curve_line,
    make_rig,
    selection_centre,
    set_rig,
    warnings_of,
)

AIMS = (
    ("FRAMING", "Same Framing", "The subject lies where the active camera has it in its picture"),
    ("TRACK", "At the Subject", "Every camera looks straight at the subject"),
    ("PARALLEL", "Parallel", "Every camera looks the way the active camera looks"),
)


def camera_count(default: int) -> object:
    return IntProperty(
        name="Cameras",
        description="Cameras of the rig, the active one included",
        default=default,
        min=2,
        max=MAX_CAMERAS,
        soft_max=24,
    )


def around_centre() -> object:
    return BoolProperty(
        name="Active in the Middle",
        description="Spread to both sides of the active camera instead of beginning at it",
    )


class RigOperator:
    """What all of them share: when they may run, and how they end."""

    bl_options = {"REGISTER", "UNDO"}
    needs_camera = True

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if context.mode != "OBJECT":
            cls.poll_message_set("Leave edit mode first: a rig is made in object mode")
        elif context.scene.viewtime.capture_message:
            cls.poll_message_set("A capture is running: wait for its end, or press Esc")
        elif cls.needs_camera and context.scene.camera is None:
            cls.poll_message_set(
                "The scene has no active camera: add one and frame the subject with it"
            )
        else:
            return True
        return False

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            context.view_layer.update()
            cameras = self.make(context)
            context.view_layer.update()
            for warning in warnings_of(cameras):
                self.report({"WARNING"}, warning)
        except ViewtimeError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class RigMaker(RigOperator):
    """Cameras like the active one, around a target."""

    around: EnumProperty(
        name="Around",
        description="What the cameras go around and look at",
        items=(
            ("AUTO", "Selection or cursor", "The selected objects, or else the 3D cursor"),
            ("SELECTION", "Selection", "The middle of the selected objects"),
            ("CURSOR", "3D cursor", "The 3D cursor"),
            ("POINT", "Point", "The target given below"),
        ),
        default="AUTO",
    )
    target: FloatVectorProperty(
        name="Target", description="The point to look around", size=3, subtype="TRANSLATION"
    )

    def make(self, context: bpy.types.Context) -> list[bpy.types.Object]:
        scene = context.scene
        pose, centre = active_pose(scene), np.array(self.centre(context), np.float64)
        places = self.places(context, pose, centre)
        return make_rig(scene, [aimed(pose, centre, place, self.aim) for place in places])

    def centre(self, context: bpy.types.Context) -> Vector:
        # A target that a script passed is meant, whatever `around` says.
        given = self.properties.is_property_set("target") and not (
            self.properties.is_property_set("around") and self.around != "POINT"
        )
        if given or self.around == "POINT":
            return Vector(self.target)
        if self.around != "CURSOR":
            centre = selection_centre(self.subjects(context))
            if centre is not None:
                return centre
            if self.around == "SELECTION":
                raise RigError("Nothing is selected; select the subject, or use the 3D cursor")
        return context.scene.cursor.location.copy()

    def subjects(self, context: bpy.types.Context) -> list[bpy.types.Object]:
        return context.selected_objects

    def draw(self, _context: bpy.types.Context) -> None:
        layout = self.layout
        layout.use_property_split = True
        for name in self.properties.bl_rna.properties.keys():
            if name != "rna_type" and name not in self.idle():
                layout.prop(self, name)

    def idle(self) -> set[str]:
        """Arguments that have no effect with the others as they are; they are not drawn."""
        return set() if self.around == "POINT" else {"target"}


class VIEWTIME_OT_rig_arc(RigMaker, bpy.types.Operator):
    """Put cameras on an arc around the subject, beginning at the active camera"""

    bl_idname = "viewtime.rig_arc"
    bl_label = "Rig on an Arc"

    count: camera_count(8)
    degrees: FloatProperty(
        name="Degrees",
        description="Length of the arc, anticlockwise seen from above",
        default=80.0,
        min=-360.0,
        max=360.0,
    )
    centred: around_centre()
    radius: FloatProperty(
        name="Distance",
        description="Distance from the target; 0 keeps the active camera's",
        default=0.0,
        min=0.0,
        unit="LENGTH",
    )
    height: FloatProperty(
        name="Rise",
        description="How much higher the last camera stands than the first",
        default=0.0,
        unit="LENGTH",
    )
    aim: EnumProperty(name="Look", description="Where the cameras look", items=AIMS)

    def places(self, _context, pose: np.ndarray, centre: np.ndarray) -> np.ndarray:
        return arc_places(
            pose[:3, 3], centre, self.count, self.degrees,
            radius=self.radius, height=self.height, centred=self.centred,
        )  # fmt: skip


class VIEWTIME_OT_rig_orbit(RigMaker, bpy.types.Operator):
    """Put cameras all around the subject, beginning at the active camera"""

    bl_idname = "viewtime.rig_orbit"
    bl_label = "Rig on an Orbit"

    count: camera_count(16)
    radius: FloatProperty(
        name="Distance",
        description="Distance from the target; 0 keeps the active camera's",
        default=0.0,
        min=0.0,
        unit="LENGTH",
    )
    aim: EnumProperty(name="Look", description="Where the cameras look", items=AIMS)

    def places(self, _context, pose: np.ndarray, centre: np.ndarray) -> np.ndarray:
        return arc_places(pose[:3, 3], centre, self.count, 360.0, radius=self.radius)


class VIEWTIME_OT_rig_dolly(RigMaker, bpy.types.Operator):
    """Put cameras on a straight line, beginning at the active camera"""

    bl_idname = "viewtime.rig_dolly"
    bl_label = "Rig on a Dolly"

    count: camera_count(8)
    distance: FloatProperty(
        name="Length",
        description="From the first camera to the last; negative goes the other way",
        default=2.0,
        unit="LENGTH",
    )
    direction: EnumProperty(
        name="Direction",
        description="Which way the line goes, as the active camera sees it",
        items=(
            ("SIDE", "Sideways", "To the right of the active camera"),
            ("UP", "Upwards", "Upwards in the active camera's picture"),
            ("FORWARD", "Forwards", "Along the active camera's line of sight"),
        ),
    )
    centred: around_centre()
    aim: EnumProperty(name="Look", description="Where the cameras look", items=AIMS)

    def places(self, _context, pose: np.ndarray, _centre: np.ndarray) -> np.ndarray:
        return line_places(pose, self.count, self.distance, self.direction, self.centred)


class VIEWTIME_OT_rig_grid(RigMaker, bpy.types.Operator):
    """Put cameras in rows and columns with the active camera in their middle"""

    bl_idname = "viewtime.rig_grid"
    bl_label = "Rig in a Grid"

    rows: IntProperty(name="Rows", description="Cameras upwards", default=3, min=1, max=16)
    columns: IntProperty(name="Columns", description="Cameras across", default=3, min=1, max=16)
    unit: EnumProperty(
        name="Spread",
        description="How the size of the grid is measured",
        items=(
            ("DEGREES", "Degrees", "On a sphere around the subject"),
            ("METRES", "Length", "On a plane across the active camera's line of sight"),
        ),
    )
    degrees: FloatVectorProperty(
        name="Degrees",
        description="Whole width and height of the grid around the subject, in degrees",
        size=2,
        default=(40.0, 20.0),
        min=0.0,
        max=180.0,
    )
    metres: FloatVectorProperty(
        name="Length",
        description="Whole width and height of the grid on the plane",
        size=2,
        default=(1.0, 1.0),
        min=0.0,
        unit="LENGTH",
    )
    aim: EnumProperty(name="Look", description="Where the cameras look", items=AIMS)

    def idle(self) -> set[str]:
        return super().idle() | ({"metres"} if self.unit == "DEGREES" else {"degrees"})

    def places(self, _context, pose: np.ndarray, centre: np.ndarray) -> np.ndarray:
        spread = tuple(self.degrees if self.unit == "DEGREES" else self.metres)
        return grid_places(
            pose, centre, self.rows, self.columns, spread, degrees=self.unit == "DEGREES"
        )


class VIEWTIME_OT_rig_curve(RigMaker, bpy.types.Operator):
    """Put cameras along a curve, evenly by its length, with the active camera's lens"""

    bl_idname = "viewtime.rig_curve"
    bl_label = "Rig along a Curve"

    count: camera_count(8)
    curve: StringProperty(
        name="Curve", description="Name of the curve object; empty takes the selected one"
    )
    reverse: BoolProperty(name="Backwards", description="Begin at the other end of the curve")
    aim: EnumProperty(
        name="Look", description="Where the cameras look", items=AIMS, default="TRACK"
    )

    def places(self, context, _pose: np.ndarray, _centre: np.ndarray) -> np.ndarray:
        line, closed = curve_line(self.curve_object(context))
        return path_places(line[::-1] if self.reverse else line, self.count, closed=closed)

    def curve_object(self, context: bpy.types.Context) -> bpy.types.Object:
        chosen = [ob for ob in context.selected_objects if ob.type == "CURVE"]
        if self.curve:
            chosen = [ob for ob in context.scene.objects if ob.name == self.curve]
            if not chosen or chosen[0].type != "CURVE":
                raise RigError(f"The scene has no curve '{self.curve}'")
        if len(chosen) != 1:
            raise RigError(f"{len(chosen)} curves are selected; select the one to follow")
        return chosen[0]

    def subjects(self, context: bpy.types.Context) -> list[bpy.types.Object]:
        # The curve itself is selected too; it is the way, not the subject.
        return [ob for ob in context.selected_objects if ob.type != "CURVE"]


class VIEWTIME_OT_rig_from_selection(RigOperator, bpy.types.Operator):
    """Make the selected cameras the rig, in the order in which they stand around the subject"""

    bl_idname = "viewtime.rig_from_selection"
    bl_label = "Rig from Selected Cameras"
    needs_camera = False

    def make(self, context: bpy.types.Context) -> list[bpy.types.Object]:
        scene = context.scene
        cameras = [ob for ob in context.selected_objects if ob.type == "CAMERA"]
        if len(cameras) < 2:
            raise RigError(f"{len(cameras)} cameras are selected; select at least 2")
        poses = [rigid_pose(camera.matrix_world, camera.name) for camera in cameras]
        centres = np.array([pose[:3, 3] for pose in poses])
        near = active_pose(scene)[:3, 3] if scene.camera else centres[0]
        order = order_along_arc(centres, common_target(poses), near)
        cameras = [cameras[i] for i in order]
        set_rig(scene, cameras)
        return cameras


CLASSES = (
    VIEWTIME_OT_rig_arc,
    VIEWTIME_OT_rig_orbit,
    VIEWTIME_OT_rig_dolly,
    VIEWTIME_OT_rig_grid,
    VIEWTIME_OT_rig_curve,
    VIEWTIME_OT_rig_from_selection,
)
