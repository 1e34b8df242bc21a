# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of captures share: a small scene, its rig, and a dump of what must not change.
It holds no test."""

from __future__ import annotations

import importlib

import bpy
import pytest
from mathutils import Vector


def read_capture(folder):
    # The formats are a wheel of the extension: importable once it is enabled.
    return importlib.import_module("viewtime_formats.capture").read_capture(folder)


def stage(empty_scene):
    """A cube that rises over a floor, a camera, 2 samples, 32 pixels."""
    bpy.ops.mesh.primitive_plane_add(size=3)
    bpy.ops.mesh.primitive_cube_add(size=1, location=(0.2, 0, 0.8))
    cube = bpy.context.object
    cube.name = "Cube"
    for frame, height in ((1, 0.8), (5, 1.4)):
        cube.location.z = height
        cube.keyframe_insert("location", frame=frame)
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    empty_scene.collection.objects.link(camera)
    camera.location = (0, -6, 3)
    camera.rotation_euler = Vector((0, 6, -2.4)).to_track_quat("-Z", "Y").to_euler()
    empty_scene.camera = camera
    bpy.ops.object.select_all(action="DESELECT")
    empty_scene.render.engine = "CYCLES"
    empty_scene.cycles.samples = 2
    empty_scene.cycles.use_denoising = False
    empty_scene.render.resolution_x = empty_scene.render.resolution_y = 64
    empty_scene.world = bpy.data.worlds.new("World")
    empty_scene.world.use_nodes = True
    empty_scene.viewtime.capture_size = 32
    empty_scene.cursor.location = (0, 0, 0.6)
    empty_scene.frame_set(1)
    return empty_scene


def rig(scene, count=3, **kwargs):
    assert bpy.ops.viewtime.rig_arc(count=count, degrees=60, **kwargs) == {"FINISHED"}
    return [item.camera for item in scene.viewtime.rig]


def state(scene):
    """Every simple setting that a capture could touch."""
    owners = {
        "render": scene.render,
        "image": scene.render.image_settings,
        "cycles": scene.cycles,
        "eevee": scene.eevee,
        "view": scene.view_settings,
        "display": scene.display_settings,
        **{f"layer {layer.name}": layer for layer in scene.view_layers},
        **{f"camera {c.name}": c for c in bpy.data.cameras},
        **{f"dof {c.name}": c.dof for c in bpy.data.cameras},
        **{f"marker {m.name}": m for m in scene.timeline_markers},
    }
    dump = {
        "frame": scene.frame_current,
        "subframe": scene.frame_subframe,
        "camera": scene.camera,
        "cube": tuple(scene.objects["Cube"].matrix_world.translation),
    }
    for name, owner in owners.items():
        for prop in owner.bl_rna.properties:
            if prop.type in {"BOOLEAN", "INT", "FLOAT", "ENUM", "STRING"} or (
                prop.identifier == "camera"
            ):
                value = getattr(owner, prop.identifier)
                dump[name, prop.identifier] = (
                    tuple(value)
                    if hasattr(value, "foreach_get")
                    else (value[:] if getattr(prop, "is_array", False) else value)
                )
    return dump


def refused(match, operator, **kwargs):
    with pytest.raises(RuntimeError, match=match) as caught:
        operator(**kwargs)
    assert len(str(caught.value).strip().splitlines()) == 1


def awkward(scene):
    """Settings that an artist may have and that a capture has to change for a while."""
    render = scene.render
    render.image_settings.file_format = "JPEG"
    render.image_settings.quality = 42
    render.film_transparent = render.use_motion_blur = render.use_border = True
    render.resolution_percentage, render.dither_intensity = 37, 1.5
    scene.camera.data.dof.use_dof = True
    scene.view_layers.new("Other")
    marker = scene.timeline_markers.new("cut", frame=3)
    marker.camera = scene.camera
    scene.frame_set(3, subframe=0.25)


def everything(scene):
    """state() and what else a clip could touch: data, selection, sequencer, scenes."""
    strips = scene.sequence_editor.strips_all if scene.sequence_editor else ()
    return state(scene) | {
        "data": {
            name: sorted(item.name for item in getattr(bpy.data, name))
            for name in ("scenes", "objects", "cameras", "movieclips", "meshes", "worlds")
        },
        "images": sorted(i.name for i in bpy.data.images if i.name != "Render Result"),
        "selected": sorted(ob.name for ob in bpy.context.selected_objects),
        "active": bpy.context.view_layer.objects.active,
        "context": bpy.context.scene.name,
        "strips": [(s.name, s.mute, s.select, s.channel) for s in strips],
    }
