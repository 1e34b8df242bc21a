# SPDX-License-Identifier: GPL-3.0-or-later
"""From scene cameras to a Capture folder: rigs (rig.py), rendered cells (render.py), operators (ops.py).
It leaves the scene as it found it, and never talks to the backend."""
