# SPDX-License-Identifier: Apache-2.0
"""Real and rendered multi-view datasets on disk, read into FrameGrid and Rig. Never downloads."""

from viewtime.data.readers.captions import read_caption
from viewtime.data.readers.clips import captioned_clip, scenes_in, training_clip
from viewtime.data.readers.scene import LAYOUTS, detect_layout, read_scene

__all__ = [
    "LAYOUTS", "captioned_clip", "detect_layout", "read_caption", "read_scene", "scenes_in",
    "training_clip",
]  # fmt: skip
