# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scene's render settings mean for splats, and what a person can ask for: settings, a crop
box. It never changes a render setting unless a person or a script calls the operator."""

from __future__ import annotations

import bpy
import numpy as np
from mathutils import Matrix

from . import native
from .cloud_data import read
from .settings import holds_splats

# A ray meets each splat on its way as one transparent surface; the default of 8 cuts most off.
TRANSPARENT_BOUNCES = 128
# Up to this many, Cycles follows every ray instead of ending some by chance: the grain of splats
# comes from there, not from few samples. Surfaces of 20,000 splats at 4 samples: 39.5 dB to the
# backend's picture at 64, 29.1 dB at 16.
CERTAIN_BOUNCES = 64


def advice(scene: bpy.types.Scene) -> list[str]:
    """One line for each render setting that makes splats look wrong; empty when all is well."""
    if native.available():
        return []
    lines = []
    if scene.render.engine == "CYCLES":
        bounces = scene.cycles.transparent_max_bounces
        certain = scene.cycles.min_transparent_bounces
        if bounces < TRANSPARENT_BOUNCES:
            lines.append(
                f"Cycles stops after {bounces} transparent bounces and cuts off splats behind; "
                f"Prepare Render sets {TRANSPARENT_BOUNCES}"
            )
        elif certain < CERTAIN_BOUNCES:
            lines.append(
                f"Cycles renders splats with grain at {certain} minimum transparent bounces; "
                f"Prepare Render sets {CERTAIN_BOUNCES}"
            )
    if scene.camera is None:
        lines.append("The scene has no active camera; splats face the active camera")
    return lines


def colour_advice(scene: bpy.types.Scene, ob: bpy.types.Object) -> list[str]:
    """How the scene's colour management treats the object's splats, line by line."""
    transform = scene.view_settings.view_transform
    if ob.viewtime.display_blend == "DISPLAY":
        if transform == "Raw":
            return []
        return [
            f"Quads carry display values, and {transform} changes them: choose the view transform "
            "Raw, or convert from sRGB in the compositor"
        ]
    if transform == "Standard":
        return []
    return [
        f"Renders show splats through the view transform {transform}; with Standard they keep the "
        "colours that they have in the viewport"
    ]


class VIEWTIME_OT_add_crop_box(bpy.types.Operator):
    """Add an empty around the splats of the active object: those outside it are not drawn. Move,
    turn and scale it as any object"""

    bl_idname = "viewtime.add_crop_box"
    bl_label = "Add Crop Box"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        ob = context.active_object
        if ob is None or ob.library is not None or not holds_splats(ob):
            cls.poll_message_set("Select an object that plays a splat sequence")
            return False
        return True

    def execute(self, context: bpy.types.Context) -> set[str]:
        ob = context.active_object
        places = read(ob.data, view_dependent=False).position
        low, high = np.array([[-1.0] * 3, [1.0] * 3])
        if len(places):
            low, high = places.min(axis=0), places.max(axis=0)
        box = bpy.data.objects.new(f"{ob.name} Crop", None)
        box.empty_display_type = "CUBE"
        # A hair larger, so that the outermost splats stay.
        half = [max(float(side) * 0.5005, 1e-6) for side in high - low]
        middle = Matrix.Translation([float(value) for value in (low + high) / 2])
        box.matrix_world = ob.matrix_world @ middle @ Matrix.Diagonal((*half, 1.0))
        for collection in ob.users_collection:
            collection.objects.link(box)
        ob.viewtime.display_crop = box
        return {"FINISHED"}


class VIEWTIME_OT_prepare_render(bpy.types.Operator):
    """Raise the scene's transparent bounces in Cycles (to 128, at least 64 without chance), so
    that rays pass through all splats. Changes no other setting"""

    bl_idname = "viewtime.prepare_render"
    bl_label = "Prepare Render"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        cycles = getattr(context.scene, "cycles", None)
        if cycles is None:
            self.report({"WARNING"}, "Cycles is not enabled; there is nothing to set")
            return {"CANCELLED"}
        cycles.transparent_max_bounces = max(cycles.transparent_max_bounces, TRANSPARENT_BOUNCES)
        cycles.min_transparent_bounces = max(cycles.min_transparent_bounces, CERTAIN_BOUNCES)
        self.report(
            {"INFO"},
            f"Transparent bounces: {cycles.min_transparent_bounces} to "
            f"{cycles.transparent_max_bounces}",
        )
        return {"FINISHED"}


CLASSES = (VIEWTIME_OT_add_crop_box, VIEWTIME_OT_prepare_render)
