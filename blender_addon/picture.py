# SPDX-License-Identifier: GPL-3.0-or-later
"""The live picture of a job's grid as an icon that panels can draw.
It makes no datablock, so that nothing of it is ever saved in a .blend."""

from __future__ import annotations

import bpy
import bpy.utils.previews
import numpy as np

_NAME = "grid"
_icons: bpy.utils.previews.ImagePreviewCollection | None = None
_shown = False


def show(picture: np.ndarray) -> None:
    """picture: uint8 (h, w, 3), first row on top."""
    global _icons, _shown
    if bpy.app.background:
        return  # Nobody looks, and icons need a window system.
    if _icons is None:
        _icons = bpy.utils.previews.new()
    icon = _icons.get(_NAME) or _icons.new(_NAME)
    # Icons are drawn square: the sides are filled up with nothing.
    height, width = picture.shape[:2]
    side = max(height, width)
    pixels = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    pixels[top : top + height, left : left + width, :3] = picture / np.float32(255)
    pixels[top : top + height, left : left + width, 3] = 1.0
    icon.image_size = (side, side)
    icon.image_pixels_float.foreach_set(np.ascontiguousarray(pixels[::-1]).ravel())
    _shown = True


def icon_id() -> int:
    """For UILayout.template_icon; 0 when there is nothing to show."""
    return _icons[_NAME].icon_id if _icons is not None and _shown else 0


def hide() -> None:
    global _shown
    _shown = False


def unregister() -> None:
    global _icons, _shown
    if _icons is not None:
        bpy.utils.previews.remove(_icons)
    _icons, _shown = None, False
