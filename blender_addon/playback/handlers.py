# SPDX-License-Identifier: GPL-3.0-or-later
"""Follows the timeline, drivers and files being opened, for every sequence object.
It never lets an exception reach Blender; what happens at saving is in saving.py."""

from __future__ import annotations

import bpy
from bpy.app.handlers import persistent

from . import cloud, saving, sequence_object


def refresh_all() -> None:
    """Bring every sequence object to the current frame (a job wrote more, a file was opened)."""
    # An object of several scenes ends at the frame of the one that is looked at.
    for scene in sorted(bpy.data.scenes, key=lambda scene: scene == bpy.context.scene):
        _play_still(scene)
        moving = [ob for ob in _of(scene) if sequence_object.is_animated(ob)]
        if moving:
            layer = scene.view_layers[0]
            layer.update()
            _play_moving(scene, layer.depsgraph)


def object_changed(ob: bpy.types.Object) -> None:
    """A person edited ob.viewtime. Quiet while saving, where only the path's spelling changes."""
    if ob.type == "POINTCLOUD" and not saving.is_saving():
        sequence_object.refresh(ob, bpy.context.scene)


def _of(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """The sequence objects that the scene may show: its own, and those that only instances do."""
    shown = {scene}
    while (background := scene.background_set) is not None and background not in shown:
        scene = background
        shown.add(scene)
    return [
        ob
        for ob in sequence_object.sequences()
        if not (scenes := set(ob.users_scene)) or scenes & shown
    ]


def _play_still(scene: bpy.types.Scene) -> None:
    for ob in _of(scene):
        if not sequence_object.is_animated(ob):
            sequence_object.refresh(ob, scene)


def _play_moving(scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph) -> None:
    for ob in _of(scene):
        if sequence_object.is_animated(ob):
            sequence_object.refresh(ob, scene, ob.evaluated_get(depsgraph))


@persistent
def _before_frame(scene: bpy.types.Scene, _depsgraph: object = None) -> None:
    # Renders with motion blur come here with the frame before and a subframe: both count.
    # Animation is not evaluated yet: whom it concerns has its turn after the frame.
    _play_still(scene)


@persistent
def _after_frame(scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph | None = None) -> None:
    # Blender evaluates again what is changed here, in renders too.
    if depsgraph is not None:
        _play_moving(scene, depsgraph)


@persistent
def _after_update(scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph | None = None) -> None:
    """Drivers follow other objects without any change of the frame."""
    if depsgraph is None or not bpy.data.pointclouds:
        return
    driven = {
        update.id.original.name
        for update in depsgraph.updates
        if isinstance(update.id, bpy.types.Object) and update.id.type == "POINTCLOUD"
    }
    for ob in sequence_object.sequences() if driven else ():
        if ob.name in driven and ob.animation_data and ob.animation_data.drivers:
            sequence_object.refresh(ob, scene, ob.evaluated_get(depsgraph))


@persistent
def _load(_path: str = "", _more: object = None) -> None:
    sequence_object.forget()
    saving.forget()
    refresh_all()


_HANDLERS = (
    ("frame_change_pre", _before_frame),
    ("frame_change_post", _after_frame),
    ("depsgraph_update_post", _after_update),
    ("load_post", _load),
    ("blend_import_post", saving.after_import),
    ("save_pre", saving.before_save),
    ("save_post", saving.after_save),
    ("save_post_fail", saving.after_save),
)


def register() -> None:
    """Attach the handlers, and catch up when a file is already open."""
    for name, function in _HANDLERS:
        getattr(bpy.app.handlers, name).append(function)
    if _file_is_there():
        refresh_all()
    else:
        bpy.app.timers.register(refresh_all, first_interval=0.0)


def _file_is_there() -> bool:
    """Whether paths of the .blend resolve. While Blender enables an add-on it hides the file."""
    try:
        bpy.path.abspath("//")
    except AttributeError:
        return False
    return hasattr(bpy.data, "objects")


def unregister() -> None:
    if bpy.app.timers.is_registered(refresh_all):
        bpy.app.timers.unregister(refresh_all)
    for name, function in _HANDLERS:
        handlers = getattr(bpy.app.handlers, name)
        if function in handlers:
            handlers.remove(function)
    sequence_object.ahead.stop()
    sequence_object.forget()
    if _file_is_there():
        cloud.drop_spares()
