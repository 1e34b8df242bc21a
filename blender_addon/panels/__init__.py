# SPDX-License-Identifier: GPL-3.0-or-later
"""The tab "Viewtime" of the 3D view's sidebar: rig, reference, generate, result, export, top down.
Panels draw and decide nothing: readiness says what is missing, operators do the work."""

from . import display, export, generate, reference, result, rig

CLASSES = (
    *rig.CLASSES,
    *reference.CLASSES,
    *generate.CLASSES,
    *result.CLASSES,
    *display.CLASSES,
    *export.CLASSES,
)
