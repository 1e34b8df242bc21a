# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes of a sequence object one that Blender plays alone: PLY files and geometry nodes.
It never changes the sequence, and hides the first object rather than removing it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import bpy

from viewtime_formats import SplatSequence, ViewtimeError, write_ply

from .. import display
from . import native_nodes, sequence_object
from .folders import stored_folder
from .frames import Timing

MODIFIER = "Viewtime Sequence"


def make_native(
    scene: bpy.types.Scene,
    ob: bpy.types.Object,
    folder: Path,
    *,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> bpy.types.Object:
    """Write all steps to `folder` and return the object that plays them without the add-on.

    It has the object's place, animation, collections and looks; `ob` is hidden. A sequence time,
    or an animated offset, is sampled at every frame of the scene's range. Raises ViewtimeError.
    """
    sequence = sequence_object.open_sequence(ob)
    missing = next((t for t in range(sequence.times) if not sequence.has_step(t)), None)
    if missing is not None:
        raise ViewtimeError(
            f"{ob.name}: step {missing} of {sequence.times} is not written yet; wait for the job"
        )
    stem = f"{bpy.path.clean_name(ob.name)}_{sequence.id[:8]}_"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ViewtimeError(f"{folder}: cannot be written: {error.strerror}") from error
    for step in range(sequence.times):
        write_ply(folder / f"{stem}{step:04d}.ply", sequence.step(step))
        on_step(step + 1, sequence.times)
    played = sequence_object.timing(ob, sequence)
    steps = _sampled(scene, ob, sequence, played)
    prefix = f"{stored_folder(folder, bpy.data.filepath)}/{stem}"
    coefficients = (sequence.sh_degree + 1) ** 2
    tree = native_nodes.build(
        f"Viewtime {ob.name}", prefix, played, coefficients, sampled=steps is not None
    )
    if steps is not None:
        _key(tree, steps)
    return _object(ob, tree)


def default_folder(ob: bpy.types.Object) -> Path:
    """Beside the .blend. Raises ViewtimeError while that is not saved."""
    if not bpy.data.filepath:
        raise ViewtimeError("Save the .blend first, or choose a folder for the PLY files")
    name = bpy.path.clean_name(ob.name)
    return Path(os.path.dirname(os.path.abspath(bpy.data.filepath))) / f"{name}_ply"


def _sampled(
    scene: bpy.types.Scene, ob: bpy.types.Object, sequence: SplatSequence, played: Timing
) -> dict[int, int] | None:
    """Step by frame where it changes; None when the nodes can tell it from the frame."""
    frames = range(scene.frame_start, scene.frame_end + 1)
    if not sequence_object.is_animated(ob):
        return None if played.time is None else {frames[0]: played.step_at(frames[0])}
    steps = {}
    with _standing_still(scene):
        layer = next((v for v in scene.view_layers if v.objects.get(ob.name) == ob), None)
        for frame in frames:
            scene.frame_set(frame)
            seen = ob if layer is None else ob.evaluated_get(layer.depsgraph)
            steps[frame] = sequence_object.timing(seen, sequence).step_at(frame)
    if played.time is None and all(played.step_at(f) == step for f, step in steps.items()):
        return None
    return {
        frame: step
        for frame, step in steps.items()
        if frame == frames[0] or step != steps[frame - 1]
    }


@contextmanager
def _standing_still(scene: bpy.types.Scene) -> Iterator[None]:
    """The frame changes within without any splats being read, and is put back at the end."""
    before = (scene.frame_current, scene.frame_subframe)
    sequence_object.pause(True)
    try:
        yield
    finally:
        sequence_object.pause(False)
        scene.frame_set(before[0], subframe=before[1])


def _key(tree: bpy.types.NodeTree, steps: dict[int, int]) -> None:
    socket = tree.nodes[native_nodes.STEP_NODE].outputs[0]
    for frame, step in steps.items():
        socket.default_value = step
        socket.keyframe_insert("default_value", frame=frame)
    for curve in _curves(tree.animation_data):
        for point in curve.keyframe_points:
            point.interpolation = "CONSTANT"


def _curves(data: bpy.types.AnimData) -> list[bpy.types.FCurve]:
    """The curves of an action that act on the owner of `data`."""
    strips = [strip for layer in data.action.layers for strip in layer.strips]
    bags = [strip.channelbag(data.action_slot) for strip in strips]
    return [curve for bag in bags if bag is not None for curve in bag.fcurves]


def _object(ob: bpy.types.Object, tree: bpy.types.NodeTree) -> bpy.types.Object:
    native = ob.copy()
    native.name = f"{ob.name} native"
    cloud = bpy.data.pointclouds.new(native.name)
    for material in ob.data.materials:
        cloud.materials.append(material)
    native.viewtime.folder = native.viewtime.sequence_id = ""
    native.data = cloud
    native.pop(sequence_object.MESSAGE, None)
    _without_retiming(native)
    for collection in ob.users_collection:
        collection.objects.link(native)
    modifier = native.modifiers.new(MODIFIER, "NODES")
    modifier.node_group = tree
    native.modifiers.move(len(native.modifiers) - 1, 0)
    # Only quads draw what is made by nodes: the viewport's own drawing reads the cloud itself.
    native.viewtime.display_mode = "QUADS"
    display.apply(native)
    ob.hide_render = ob.hide_viewport = True
    return native


def _without_retiming(native: bpy.types.Object) -> None:
    """Drop animation of settings that Blender without the add-on does not know."""
    data = native.animation_data
    if data is None:
        return
    for driver in list(data.drivers):
        if driver.data_path.startswith("viewtime."):
            data.drivers.remove(driver)
    if data.action is None:
        return
    if any(curve.data_path.startswith("viewtime.") for curve in _curves(data)):
        slot = data.action_slot.identifier
        data.action = data.action.copy()
        data.action_slot = data.action.slots[slot]
        for layer in data.action.layers:
            for strip in layer.strips:
                bag = strip.channelbag(data.action_slot)
                for curve in list(bag.fcurves) if bag else ():
                    if curve.data_path.startswith("viewtime."):
                        bag.fcurves.remove(curve)
