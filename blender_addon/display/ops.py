# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scene's render settings mean for splats, and the operator that sets them on request.
It never changes a render setting unless a person or a script calls that operator."""

from __future__ import annotations

import bpy

from . import native

# A ray meets each splat on its way as one transparent surface; the default of 8 cuts most off.
TRANSPARENT_BOUNCES = 128
# Up to this many, Cycles follows every ray instead of ending some by chance. On 100,000 surfels
# at 16 samples: 41 dB to a converged picture instead of 32, for three times the seconds.
CERTAIN_BOUNCES = 16


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


class VIEWTIME_OT_prepare_render(bpy.types.Operator):
    """Raise the scene's transparent bounces in Cycles (to 128, at least 16 without chance), so
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


CLASSES = (VIEWTIME_OT_prepare_render,)
