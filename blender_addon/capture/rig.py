# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig that a scene holds: its cameras in view order, made, remembered and taken away again.
It never moves the scene's active camera and never renders."""

from __future__ import annotations

from collections.abc import Sequence

import bpy
import numpy as np
from mathutils import Matrix, Vector

from viewtime_formats.errors import RigError

from ..conventions import rigid_pose
from .poses import common_target, rig_warnings

COLLECTION = "Viewtime Rig"
# Marks cameras that a rig maker made, so that the next one may take them away again.
MADE_BY_US = "viewtime_rig_camera"


def rig_cameras(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """The rig's cameras in view order. Raises RigError where there is no usable rig."""
    if not any(ob.type == "CAMERA" for ob in scene.objects):
        raise RigError("The scene has no camera; add one and frame the subject")
    cameras = [item.camera for item in scene.viewtime.rig]
    if not cameras:
        raise RigError("There is no rig; make one, or use the selected cameras")
    present = {ob.name for ob in scene.objects}
    for view, camera in enumerate(cameras):
        if camera is None or camera.name not in present:
            raise RigError(f"Camera {view} of the rig is gone from the scene; make the rig again")
    return cameras


def set_rig(scene: bpy.types.Scene, cameras: Sequence[bpy.types.Object]) -> None:
    """Remember these cameras, in this view order, as the scene's rig."""
    scene.viewtime.rig.clear()
    for camera in cameras:
        scene.viewtime.rig.add().camera = camera


def remove_old_rig(scene: bpy.types.Scene) -> None:
    """Take away the cameras an earlier maker made (the active camera stays, whoever made it)."""
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


def selection_centre(objects: Sequence[bpy.types.Object]) -> Vector | None:
    """Middle of the bounding box of those objects that have a body; None when none has."""
    corners = [
        ob.matrix_world @ Vector(corner)
        for ob in objects
        if ob.type not in {"CAMERA", "LIGHT", "LIGHT_PROBE", "SPEAKER"}
        for corner in (ob.bound_box if ob.data is not None else [(0.0, 0.0, 0.0)])
    ]
    if not corners:
        return None
    array = np.array(corners, np.float64)
    return Vector(((array.min(0) + array.max(0)) / 2).tolist())


def fixed_view_of(scene: bpy.types.Scene, cameras: Sequence[bpy.types.Object]) -> int:
    """View of the active camera; where it is not of the rig, the view that stands nearest to it."""
    if scene.camera is None:
        return 0
    if scene.camera in cameras:
        return list(cameras).index(scene.camera)
    place = scene.camera.matrix_world.translation
    return int(np.argmin([(c.matrix_world.translation - place).length for c in cameras]))


def make_rig(scene: bpy.types.Scene, poses: Sequence[np.ndarray]) -> list[bpy.types.Object]:
    """Make cameras like the active one at these poses, and make them the rig in this order.

    Where a pose is the active camera's own, that camera itself takes the place.
    """
    active = scene.camera
    own = active_pose(scene)
    scale = 1.0 + float(np.abs(own[:3, 3]).max())
    remove_old_rig(scene)
    cameras: list[bpy.types.Object] = []
    for view, pose in enumerate(poses):
        if active not in cameras and np.abs(pose - own).max() < 1e-6 * scale:
            cameras.append(active)
            continue
        # Lens, sensor and clipping are the active camera's, for good: an own copy of its data,
        # without the animation, since a rig stands still.
        data = active.data.copy()
        data.animation_data_clear()
        camera = add_camera(scene, data, f"Viewtime {view:02d}")
        camera.matrix_world = Matrix(pose.tolist())
        cameras.append(camera)
    set_rig(scene, cameras)
    return cameras


def add_camera(scene: bpy.types.Scene, data: bpy.types.Camera, name: str) -> bpy.types.Object:
    """A camera object of ours in the rig's collection."""
    data.name = name
    camera = bpy.data.objects.new(name, data)
    camera[MADE_BY_US] = True
    rig_collection(scene).objects.link(camera)
    return camera


def warnings_of(cameras: Sequence[bpy.types.Object]) -> list[str]:
    """What is doubtful about these cameras as a rig, in words."""
    if len(cameras) < 2:
        return ["A rig of one camera shows nothing of other sides; add cameras"]
    # Near enough for advice, and quick enough for every redraw; rigid_pose is for captures.
    poses = np.array([camera.matrix_world for camera in cameras], np.float64)
    poses[:, :3, 2] /= np.maximum(np.linalg.norm(poses[:, :3, 2], axis=1, keepdims=True), 1e-12)
    centres = poses[:, :3, 3]
    return rig_warnings([camera.name for camera in cameras], centres, common_target(poses))


def curve_line(ob: bpy.types.Object) -> tuple[np.ndarray, bool]:
    """(N, 3) points along the first spline of a curve object, in the world, and whether it closes.

    Raises RigError for a curve without a spline.
    """
    if not ob.data.splines:
        raise RigError(f"Curve '{ob.name}' has no spline; draw one")
    data = ob.data.copy()
    bare = bpy.data.objects.new("Viewtime path", data)
    try:
        data.bevel_depth = data.extrude = data.offset = 0.0
        data.bevel_object = data.taper_object = None
        data.dimensions = "3D"  # a filled shape has no order of points
        for spline in list(data.splines)[1:]:
            data.splines.remove(spline)
        closed = bool(data.splines[0].use_cyclic_u)
        mesh = bare.to_mesh()
        local = np.empty(3 * len(mesh.vertices), np.float32)
        mesh.vertices.foreach_get("co", local)
        bare.to_mesh_clear()
    finally:
        bpy.data.objects.remove(bare)
        bpy.data.curves.remove(data)
    matrix = np.array(ob.matrix_world, np.float64)
    return local.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3], closed
