# SPDX-License-Identifier: GPL-3.0-or-later
"""From scene cameras to a Capture folder: rigs (rig), rendered cells (render), operators (ops).
It leaves the scene as it found it, and never talks to the backend."""
