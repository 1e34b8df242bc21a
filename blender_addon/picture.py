# SPDX-License-Identifier: GPL-3.0-or-later
"""The live picture of a job's grid as icons that panels can draw.
It makes no datablock, so that nothing of it is ever saved in a .blend."""

from __future__ import annotations

import bpy
import bpy.utils.previews
import numpy as np

MOST_TILES = 4
_icons: bpy.utils.previews.ImagePreviewCollection | None = None
_shown: list[str] = []


def tiles(picture: np.ndarray) -> list[np.ndarray]:
    """The picture, uint8 (h, w, 3), cut into square RGBA tiles, float32 (s, s, 4), left to right.

    Icons are square: a wide picture in one of them would leave most of it empty.
    """
    height, width = picture.shape[:2]
    count = min(max(round(width / height), 1), MOST_TILES)
    side = max(height, -(-width // count))
    canvas = np.zeros((side, side * count, 4), np.float32)
    # Where the picture is lower than the tiles it sits at their top; to the sides in the middle.
    left = (side * count - width) // 2
    canvas[:height, left : left + width, :3] = picture / np.float32(255)
    canvas[:height, left : left + width, 3] = 1.0
    return [canvas[:, n * side : (n + 1) * side] for n in range(count)]


def show(picture: np.ndarray) -> None:
    """picture: uint8 (h, w, 3), first row on top."""
    global _icons, _shown
    if bpy.app.background:
        return  # Nobody looks, and icons need a window system.
    if _icons is None:
        _icons = bpy.utils.previews.new()
    names = []
    for number, tile in enumerate(tiles(picture)):
        names.append(f"tile {number}")
        icon = _icons.get(names[-1]) or _icons.new(names[-1])
        icon.image_size = tile.shape[:2]
        # Blender's first row is the lowest.
        icon.image_pixels_float.foreach_set(np.ascontiguousarray(tile[::-1]).ravel())
    _shown = names


def icon_ids() -> list[int]:
    """For UILayout.template_icon, left to right; empty when there is nothing to show."""
    return [] if _icons is None else [_icons[name].icon_id for name in _shown]


def hide() -> None:
    _shown.clear()


def unregister() -> None:
    global _icons
    if _icons is not None:
        bpy.utils.previews.remove(_icons)
    _icons = None
    _shown.clear()
