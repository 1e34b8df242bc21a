# SPDX-License-Identifier: Apache-2.0
"""Pictures of any size to the frames VGGT was trained on, exactly as upstream makes them.

It reads files and resizes; it never guesses cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from viewtime_formats.errors import ViewtimeError


def load_images(
    paths: Sequence[str | Path], mode: str = "crop", *, size: int = 518, patch: int = 14
) -> Tensor:
    """Picture files as frames (N,3,H,W) in [0,1], sides multiples of patch.

    mode "crop": width `size`, height in proportion, its middle `size` rows where it is more.
    mode "pad": longer side `size`, then white to a square. Transparent RGBA pictures lie on white.
    Pictures that end up with different sizes are padded with white to the largest.

    Raises ViewtimeError for no files, an unknown mode, or a file that is no usable picture.
    """
    if not paths:
        raise ViewtimeError("load_images: no files; at least one is needed")
    if mode not in ("crop", "pad"):
        raise ViewtimeError(f"load_images: mode is {mode!r}; 'crop' or 'pad' is needed")
    frames = [_frame(Path(path), mode, size, patch) for path in paths]
    height = max(frame.shape[1] for frame in frames)
    width = max(frame.shape[2] for frame in frames)
    return torch.stack([_padded(frame, height, width) for frame in frames])


def _frame(path: Path, mode: str, size: int, patch: int) -> Tensor:
    """One picture (3,h,w) in [0,1]."""
    try:
        with Image.open(path) as opened:
            picture: Image.Image = opened
            if picture.mode == "RGBA":
                white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ViewtimeError(f"{path}: not a picture: {error}") from error
    width, height = picture.size
    if mode == "pad" and height > width:
        new = round(width * (size / height) / patch) * patch, size
    else:
        new = size, round(height * (size / width) / patch) * patch
    if min(new) < patch:
        raise ViewtimeError(f"{path}: {width}x{height} is too narrow; at {new[0]}x{new[1]} "
                            f"a side is less than one patch of {patch} pixels")  # fmt: skip
    pixels = np.array(picture.resize(new, Image.Resampling.BICUBIC))
    frame = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0
    if mode == "pad":
        return _padded(frame, size, size)
    if new[1] > size:
        top = (new[1] - size) // 2
        frame = frame[:, top : top + size]
    return frame


def _padded(frame: Tensor, height: int, width: int) -> Tensor:
    """frame (3,h,w) in the middle of white (3,height,width); the odd row is below or right."""
    down, right = height - frame.shape[1], width - frame.shape[2]
    edges = (right // 2, right - right // 2, down // 2, down - down // 2)
    return F.pad(frame, edges, value=1.0)
