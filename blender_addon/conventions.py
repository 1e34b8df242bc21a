# SPDX-License-Identifier: GPL-3.0-or-later
"""Blender cameras to OpenCV cameras and back: the only place that knows both conventions.
It never renders, and it never changes anything but the one camera it is asked to set."""

from __future__ import annotations

import bpy
import numpy as np
from mathutils import Matrix

from viewtime_formats.errors import RigError
from viewtime_formats.rig import Camera

# A Blender camera looks along its -Z with Y up; an OpenCV camera along +Z with Y down.
FLIP = np.diag([1.0, -1.0, -1.0])


def rigid_pose(matrix_world: Matrix, name: str) -> np.ndarray:
    """(4, 4) float64 world-from-camera in Blender's axes, scale taken away as the renderer does.

    Raises RigError when what remains is no rotation: a mirrored or sheared camera.
    """
    pose = np.array(matrix_world, np.float64)
    lengths = np.linalg.norm(pose[:3, :3], axis=0)
    if not np.isfinite(pose).all() or lengths.min() < 1e-12:
        raise RigError(f"Camera '{name}' has a scale of zero; give it a scale of 1")
    axes = pose[:3, :3] / lengths
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4:
        raise RigError(
            f"Camera '{name}' is sheared by the scale of its parent; clear the parent's scale"
        )
    if np.linalg.det(axes) < 0:
        raise RigError(f"Camera '{name}' is mirrored by a negative scale; give it a scale of 1")
    # Matrices come as float32: the nearest rotation, so that errors do not add up downstream.
    u, _, vt = np.linalg.svd(axes)
    pose[:3, :3] = u @ vt
    pose[3] = (0.0, 0.0, 0.0, 1.0)
    return pose


def _sensor(camera_data: bpy.types.Camera, across: float, up: float) -> tuple[float, float]:
    """Sensor size in mm, and the side of the image (in pixels of unit aspect) that it spans."""
    fit = camera_data.sensor_fit
    # AUTO measures by sensor_width even where the image is upright.
    size = camera_data.sensor_height if fit == "VERTICAL" else camera_data.sensor_width
    if fit == "AUTO":
        fit = "HORIZONTAL" if across >= up else "VERTICAL"
    return size, across if fit == "HORIZONTAL" else up


def camera_from_blender(
    camera_object: bpy.types.Object, scene: bpy.types.Scene, width: int, height: int
) -> Camera:
    """What `camera_object` sees in an image of width x height pixels with the scene's pixel aspect.

    The object's matrix_world must be up to date (view_layer.update() after a change); pass the
    evaluated object where constraints or drivers act on the lens.
    Raises RigError for an object that is no perspective camera, or is mirrored or sheared.
    """
    name = camera_object.name
    if camera_object.type != "CAMERA":
        kind = camera_object.type.lower()
        raise RigError(f"'{name}' is of type {kind}; a camera is needed")
    data = camera_object.data
    if data.type != "PERSP":
        kind = {"ORTHO": "orthographic", "PANO": "panoramic"}.get(data.type, data.type.lower())
        raise RigError(f"Camera '{name}' is {kind}; set its type to Perspective")

    pose = rigid_pose(camera_object.matrix_world, name)
    # How many pixel widths high one pixel is.
    aspect = scene.render.pixel_aspect_y / scene.render.pixel_aspect_x
    size, span = _sensor(data, float(width), aspect * height)
    focal = data.lens / size * span
    intrinsics = np.array(
        [
            [focal, 0.0, width / 2 - data.shift_x * span],
            # A view shifted up shows its axis lower, and v grows downwards.
            [0.0, focal / aspect, height / 2 + data.shift_y * span / aspect],
            [0.0, 0.0, 1.0],
        ]
    )
    rotation = FLIP @ pose[:3, :3].T
    translation = -rotation @ pose[:3, 3]
    return Camera(name, width, height, intrinsics, np.column_stack([rotation, translation]))


def blender_from_camera(
    camera: Camera, camera_object: bpy.types.Object, scene: bpy.types.Scene
) -> None:
    """Make `camera_object` see what `camera` sees, in images of the camera's aspect ratio.

    Sets matrix_world, lens, shift and a horizontal sensor fit; keeps the sensor's width. The
    scene's resolution is left alone.
    Raises RigError when fx / fy differs from the scene's pixel aspect, which belongs to the scene
    and not to the camera, or when `camera_object` is no camera.
    """
    if camera_object.type != "CAMERA":
        raise RigError(f"'{camera_object.name}' is no camera; a camera is needed")
    fx, fy = camera.intrinsics[0, 0], camera.intrinsics[1, 1]
    aspect = scene.render.pixel_aspect_y / scene.render.pixel_aspect_x
    if abs(fx / fy / aspect - 1) > 1e-4:
        raise RigError(
            f"Camera '{camera.name}' has fx / fy = {fx / fy:.5g}; "
            f"the scene's pixel aspect gives {aspect:.5g}: set pixel aspect Y to {fx / fy:.5g}"
        )
    data = camera_object.data
    data.type = "PERSP"
    data.lens_unit = "MILLIMETERS"
    data.sensor_fit = "HORIZONTAL"
    data.lens = fx * data.sensor_width / camera.width
    data.shift_x = (camera.width / 2 - camera.intrinsics[0, 2]) / camera.width
    data.shift_y = (camera.intrinsics[1, 2] - camera.height / 2) * aspect / camera.width
    pose = camera.world_from_camera
    pose[:3, :3] = pose[:3, :3] @ FLIP
    camera_object.matrix_world = Matrix(pose.tolist())
