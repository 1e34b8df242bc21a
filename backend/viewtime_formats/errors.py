# SPDX-License-Identifier: Apache-2.0
"""The errors of Viewtime: one line that names file or field, its value, and what would be right.

Whatever a person can cause raises a subclass of ViewtimeError; nothing here formats tracebacks.
"""


class ViewtimeError(Exception):
    """Something a person can put right; the message is shown to them as it is."""


class RigError(ViewtimeError):
    """A camera or a rig that no renderer could use."""


class CaptureError(ViewtimeError):
    """A Capture folder, or a frame, video or depth map of one, that cannot be used."""


class SequenceError(ViewtimeError):
    """A SplatSequence folder, or Gaussians meant for one, that cannot be used."""


class PlyError(ViewtimeError):
    """A PLY file that is no 3DGS point cloud, or Gaussians that cannot be written as one."""
