# SPDX-License-Identifier: Apache-2.0
"""File formats of Viewtime (Capture, Rig, SplatSequence, PLY) in numpy alone.

Never imports torch or bpy: Blender ships this package inside the extension, as a wheel.
"""

from .atomic import atomic_path, write_json
from .capture import SKY_DEPTH, Capture, Cell, Video, read_capture, write_capture
from .errors import CaptureError, PlyError, RigError, SequenceError, ViewtimeError
from .gaussians import SH_C0, Gaussians, rgb_to_sh0, sh0_to_rgb
from .ply import read_ply, write_ply
from .rig import Camera, Rig, read_rig, write_rig
from .splats import SequenceWriter, SplatSequence, Step, read_sequence

__version__ = "0.1.0"

__all__ = [
    "SH_C0",
    "SKY_DEPTH",
    "Camera",
    "Capture",
    "CaptureError",
    "Cell",
    "Gaussians",
    "PlyError",
    "Rig",
    "RigError",
    "SequenceError",
    "SequenceWriter",
    "SplatSequence",
    "Step",
    "Video",
    "ViewtimeError",
    "atomic_path",
    "read_capture",
    "read_ply",
    "read_rig",
    "read_sequence",
    "rgb_to_sh0",
    "sh0_to_rgb",
    "write_capture",
    "write_json",
    "write_ply",
    "write_rig",
]
