# SPDX-License-Identifier: Apache-2.0
"""File formats of Viewtime (Capture, Rig, SplatSequence, PLY) in numpy alone. Never imports torch or bpy."""

__version__ = "0.1.0"
