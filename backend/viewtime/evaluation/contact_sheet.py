# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: blocks of views x times side by side, for judging by eye.
Never scales colours or contrast."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from viewtime_formats.atomic import atomic_path

PAPER, INK, MARK = (24, 24, 27), (228, 228, 231), (250, 176, 5)
GAP, HEAD, LEFT = 3, 34, 40


def contact_sheet(
    path: Path,
    blocks: Mapping[str, np.ndarray],
    *,
    marked: np.ndarray,
    times: list[int],
    cell: int = 96,
) -> None:
    """Write one PNG with the named blocks from left to right.

    Args:
        path: the PNG; written atomically.
        blocks: title -> (V, T, 3, H, W) float, sRGB in [0, 1]. All blocks have the same V and T;
            rows are views, columns are the chosen times.
        marked: (V, T) bool, cells that the job was given; they get a coloured frame.
        times: the timesteps shown, in order.
        cell: pixels of a cell's longer side.

    Raises:
        ValueError: when blocks differ in V or T, or a timestep is out of range.
    """
    counts = {frames.shape[:2] for frames in blocks.values()}
    if len(counts) != 1 or counts != {marked.shape}:
        raise ValueError(f"contact_sheet: blocks of {counts}, marks of {marked.shape}")
    views, total = marked.shape
    if any(not 0 <= t < total for t in times):
        raise ValueError(f"contact_sheet: times {times} for a grid of {total} timesteps")
    height, width = next(iter(blocks.values())).shape[-2:]
    scale = cell / max(height, width)
    cell_w, cell_h = max(1, round(width * scale)), max(1, round(height * scale))
    block_w = len(times) * (cell_w + GAP) + 4 * GAP
    sheet = Image.new(
        "RGB", (LEFT + len(blocks) * block_w + GAP, HEAD + views * (cell_h + GAP) + GAP), PAPER
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for b, (title, frames) in enumerate(blocks.items()):
        x0 = LEFT + b * block_w
        draw.text((x0, 4), title, fill=INK, font=font)
        for c, t in enumerate(times):
            x = x0 + c * (cell_w + GAP)
            draw.text((x, 18), f"t {t}", fill=INK, font=font)
            for v in range(views):
                y = HEAD + v * (cell_h + GAP)
                if b == 0 and c == 0:
                    draw.text((4, y + cell_h // 2 - 6), f"view {v}", fill=INK, font=font)
                pixels = (np.clip(frames[v, t], 0, 1) * 255 + 0.5).astype(np.uint8)
                picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
                sheet.paste(picture.resize((cell_w, cell_h), Image.Resampling.LANCZOS), (x, y))
                if marked[v, t]:
                    draw.rectangle((x - 1, y - 1, x + cell_w, y + cell_h), outline=MARK)
    with atomic_path(path) as part:
        sheet.save(part, format="PNG", optimize=True)
