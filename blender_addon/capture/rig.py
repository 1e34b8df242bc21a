# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes rigs: cameras in view order along an arc, or in the order in which selected ones stand.
It never moves the scene's active camera and never renders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import bpy
import numpy as np
from bpy.props import EnumProperty, FloatProperty, FloatVectorProperty, IntProperty
from mathutils import Matrix, Vector

from viewtime_formats.errors import RigError

from ..conventions import rigid_pose

COLLECTION = "Viewtime Rig"
# Marks cameras that the arc made, so that the next arc may take them away again.
MADE_BY_US = "viewtime_rig_camera"
MAX_CAMERAS = 256


# ---- pure functions: poses are (4, 4) float64, world-from-camera in Blender's axes ----


def arc_poses(
    pose: np.ndarray,
    target: Sequence[float],
    count: int,
    degrees: float,
    *,
    radius: float = 0.0,
    height: float = 0.0,
) -> list[np.ndarray]:
    """`count` poses on an arc of `degrees` about the vertical through `target`.

    The first is `pose` itself (moved along its line of sight when `radius`, its distance from the
    target, is given), the last the far end, `height` higher. Every camera has the target at the
    same place of its picture as the first. Positive degrees turn anticlockwise seen from above.
    Raises RigError when the arc would not part the cameras.
    """
    if count < 2:
        raise RigError(f"A rig of {count} camera; at least 2 are needed")
    if abs(degrees) < 1e-3:
        raise RigError(f"An arc of {degrees:g} degrees leaves all cameras in one place")
    centre = np.asarray(target, np.float64)
    arm = pose[:3, 3] - centre
    distance = float(np.linalg.norm(arm))
    if distance < 1e-6:
        raise RigError("The active camera stands in the target; move one of them")
    if math.hypot(arm[0], arm[1]) < 0.02 * distance:
        raise RigError(
            "The active camera stands straight above or below the target, where an arc about the "
            "vertical would not move it; move the camera to the side"
        )
    if radius > 0:
        arm = arm * (radius / distance)
    # A full circle must not come back to its first camera.
    gaps = count if abs(abs(degrees) - 360) < 1e-6 else count - 1
    poses = []
    for i in range(count):
        turned = _about_z(math.radians(degrees) * i / gaps)
        level = turned @ arm
        raised = level + (0.0, 0.0, height * i / (count - 1))
        # Height tilts the camera by as much as its direction to the target turned.
        new = np.eye(4)
        new[:3, :3] = _turn_between(level, raised) @ turned @ pose[:3, :3]
        new[:3, 3] = centre + raised
        poses.append(new)
    return poses


def common_target(poses: Sequence[np.ndarray]) -> np.ndarray:
    """(3,): the point nearest to all lines of sight; for parallel ones, ahead of their middle."""
    centres = np.array([pose[:3, 3] for pose in poses])
    directions = np.array([-pose[:3, 2] for pose in poses])
    # Sum of the projections onto the planes across each line of sight.
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    normal, right = across.sum(0), (across @ centres[:, :, None]).sum(0)[:, 0]
    if np.linalg.cond(normal) < 1e4:
        point = np.linalg.solve(normal, right)
        if np.median(((point - centres) * directions).sum(1)) > 0:
            return point
    return centres.mean(0) + directions.mean(0) * max(1.0, float(np.ptp(centres, axis=0).max()))


def order_along_arc(centres: np.ndarray, target: np.ndarray, first_near: np.ndarray) -> list[int]:
    """View order of camera centres (V, 3): by angle about the vertical through the target.

    The order begins at the end of the arc (either side of its widest gap) that is nearer to
    `first_near`, the place of the active camera.
    """
    arms = centres - target
    angles = np.arctan2(arms[:, 1], arms[:, 0])
    order = np.argsort(angles, kind="stable")
    gaps = np.diff(np.append(angles[order], angles[order[0]] + 2 * math.pi))
    order = np.roll(order, -(int(np.argmax(gaps)) + 1))
    ends = np.linalg.norm(centres[order[[0, -1]]] - first_near, axis=1)
    return [int(i) for i in (order if ends[0] <= ends[1] else order[::-1])]


def rig_warnings(names: Sequence[str], centres: np.ndarray, target: np.ndarray) -> list[str]:
    """What is doubtful about a rig with these camera centres (V, 3), in words; [] when nothing."""
    warnings = []
    distance = max(float(np.linalg.norm(centres - target, axis=1).mean()), 1e-9)
    for i in range(len(centres)):
        for j in range(i):
            if np.linalg.norm(centres[i] - centres[j]) < 1e-3 * distance:
                warnings.append(f"Cameras '{names[j]}' and '{names[i]}' stand in one place")
    spread = np.linalg.svd(centres - centres.mean(0), compute_uv=False)
    if len(centres) >= 3 and spread[0] > 1e-3 * distance and spread[1] < 1e-3 * spread[0]:
        warnings.append(
            "All cameras stand on one straight line; predicted cameras cannot be "
            "aligned to it, so move one off the line"
        )
    return warnings


def _about_z(radians: float) -> np.ndarray:
    c, s = math.cos(radians), math.sin(radians)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _turn_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(3, 3): the shortest rotation from direction a to direction b."""
    quaternion = Vector(a.tolist()).rotation_difference(Vector(b.tolist()))
    return np.array(quaternion.to_matrix(), np.float64)


# ---- what the scene holds ----


def rig_cameras(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """The rig's cameras in view order. Raises RigError where there is no usable rig."""
    if not any(ob.type == "CAMERA" for ob in scene.objects):
        raise RigError("The scene has no camera; add one and frame the subject")
    cameras = [item.camera for item in scene.viewtime.rig]
    if not cameras:
        raise RigError("There is no rig; make one on an arc, or from the selected cameras")
    for view, camera in enumerate(cameras):
        if camera is None or camera.name not in scene.objects:
            raise RigError(f"Camera {view} of the rig is gone from the scene; make the rig again")
    return cameras


def set_rig(scene: bpy.types.Scene, cameras: Sequence[bpy.types.Object]) -> None:
    """Remember these cameras, in this view order, as the scene's rig."""
    scene.viewtime.rig.clear()
    for camera in cameras:
        scene.viewtime.rig.add().camera = camera


def remove_old_rig(scene: bpy.types.Scene) -> None:
    """Take away the cameras an earlier arc made (the active camera stays, whoever made it)."""
    scene.viewtime.rig.clear()
    collection = bpy.data.collections.get(COLLECTION)
    for ob in list(collection.objects) if collection else []:
        if ob.get(MADE_BY_US) and ob is not scene.camera and ob.users_scene == (scene,):
            data = ob.data
            bpy.data.objects.remove(ob)
            if data.users == 0:
                bpy.data.cameras.remove(data)


def rig_collection(scene: bpy.types.Scene) -> bpy.types.Collection:
    collection = bpy.data.collections.get(COLLECTION) or bpy.data.collections.new(COLLECTION)
    if collection not in scene.collection.children_recursive:
        scene.collection.children.link(collection)
    return collection


def active_pose(scene: bpy.types.Scene) -> np.ndarray:
    """(4, 4) pose of the active camera. Raises RigError where there is none."""
    if scene.camera is None:
        raise RigError("The scene has no active camera; add one and frame the subject")
    return rigid_pose(scene.camera.matrix_world, scene.camera.name)


def selection_centre(context: bpy.types.Context) -> Vector | None:
    """Middle of the bounding box of what is selected and has a body; None when nothing is."""
    corners = [
        ob.matrix_world @ Vector(corner)
        for ob in context.selected_objects
        if ob.type not in {"CAMERA", "LIGHT", "LIGHT_PROBE", "SPEAKER"}
        for corner in (ob.bound_box if ob.data is not None else [(0.0, 0.0, 0.0)])
    ]
    if not corners:
        return None
    array = np.array(corners, np.float64)
    return Vector(((array.min(0) + array.max(0)) / 2).tolist())


def make_arc(
    scene: bpy.types.Scene,
    target: Sequence[float],
    count: int,
    degrees: float,
    radius: float,
    height: float,
) -> list[bpy.types.Object]:
    """Put `count` cameras on an arc that begins at the active camera, and make them the rig.

    Without `radius` view 0 is the active camera itself; with it, a copy at that distance.
    """
    active = scene.camera
    poses = arc_poses(active_pose(scene), target, count, degrees, radius=radius, height=height)
    remove_old_rig(scene)
    collection = rig_collection(scene)
    cameras = []
    for view, pose in enumerate(poses):
        if view == 0 and radius <= 0:
            cameras.append(active)
            continue
        # Lens, sensor and clipping are the active camera's, for good: an own copy of its data,
        # without the animation, since a rig stands still.
        data = active.data.copy()
        data.animation_data_clear()
        data.name = f"Viewtime {view:02d}"
        camera = bpy.data.objects.new(data.name, data)
        camera[MADE_BY_US] = True
        collection.objects.link(camera)
        camera.matrix_world = Matrix(pose.tolist())
        cameras.append(camera)
    set_rig(scene, cameras)
    return cameras


def _report_rig(operator: bpy.types.Operator, cameras: Sequence[bpy.types.Object]) -> None:
    poses = [rigid_pose(camera.matrix_world, camera.name) for camera in cameras]
    centres = np.array([pose[:3, 3] for pose in poses])
    names = [camera.name for camera in cameras]
    for warning in rig_warnings(names, centres, common_target(poses)):
        operator.report({"WARNING"}, warning)


# ---- operators ----


class VIEWTIME_OT_rig_arc(bpy.types.Operator):
    """Put cameras on an arc around the subject, beginning at the active camera"""

    bl_idname = "viewtime.rig_arc"
    bl_label = "Rig on an Arc"
    bl_options = {"REGISTER", "UNDO"}

    count: IntProperty(
        name="Cameras",
        description="Cameras of the rig, the active one included",
        default=8,
        min=2,
        max=MAX_CAMERAS,
        soft_max=24,
    )
    degrees: FloatProperty(
        name="Degrees",
        description="Length of the arc, anticlockwise seen from above",
        default=80.0,
        min=-360.0,
        max=360.0,
    )
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
    around: EnumProperty(
        name="Around",
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

    def execute(self, context: bpy.types.Context) -> set[str]:
        scene = context.scene
        try:
            if context.mode != "OBJECT":
                raise RigError("Leave edit mode first: a rig is made in object mode")
            context.view_layer.update()
            target = self._target(context)
            cameras = make_arc(scene, target, self.count, self.degrees, self.radius, self.height)
        except RigError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        context.view_layer.update()
        _report_rig(self, cameras)
        return {"FINISHED"}

    def _target(self, context: bpy.types.Context) -> Vector:
        # A target that a script passed is meant, whatever `around` says.
        given = self.properties.is_property_set("target") and not (
            self.properties.is_property_set("around") and self.around != "POINT"
        )
        if given or self.around == "POINT":
            return Vector(self.target)
        if self.around != "CURSOR":
            centre = selection_centre(context)
            if centre is not None:
                return centre
            if self.around == "SELECTION":
                raise RigError("Nothing is selected; select the subject, or use the 3D cursor")
        return context.scene.cursor.location.copy()


class VIEWTIME_OT_rig_from_selection(bpy.types.Operator):
    """Make the selected cameras the rig, in the order in which they stand around the subject"""

    bl_idname = "viewtime.rig_from_selection"
    bl_label = "Rig from Selected Cameras"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        scene = context.scene
        context.view_layer.update()
        cameras = [ob for ob in context.selected_objects if ob.type == "CAMERA"]
        try:
            if len(cameras) < 2:
                raise RigError(f"{len(cameras)} cameras are selected; select at least 2")
            poses = [rigid_pose(camera.matrix_world, camera.name) for camera in cameras]
            centres = np.array([pose[:3, 3] for pose in poses])
            near = active_pose(scene)[:3, 3] if scene.camera else centres[0]
        except RigError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        order = order_along_arc(centres, common_target(poses), near)
        set_rig(scene, [cameras[i] for i in order])
        _report_rig(self, [cameras[i] for i in order])
        return {"FINISHED"}


CLASSES = (VIEWTIME_OT_rig_arc, VIEWTIME_OT_rig_from_selection)
