# SPDX-License-Identifier: Apache-2.0
"""Whether a generator takes the frames of a grid and knows its views and times, told before
anything long, and what it would take. It never looks at memory (see `memory`) or into frames."""

from __future__ import annotations

from typing import Any

from viewtime.generator.codec import WanCodec
from viewtime.generator.errors import GeneratorError
from viewtime.generator.load import Generator

CLIP_STEP = 4
"""Captures have 1 + 4k times, so a window that nobody chose has, too."""


def check_frames(generator: Generator, height: int, width: int) -> None:
    """Raises GeneratorError, naming the nearest, for frames that cannot be cut into patches."""
    rows, columns = generator.frame_multiple
    if height % rows or width % columns:
        near = f"{max(round(width / columns), 1) * columns} x {max(round(height / rows), 1) * rows}"
        raise GeneratorError(
            f"frames of {width} x {height} px do not fit the generator, whose frames are multiples "
            f"of {columns} x {rows}: use {near}"
        )


def check_times(generator: Generator, times: int) -> None:
    """Raises GeneratorError, naming the nearest, for times that a VAE does not take at once."""
    if isinstance(generator.codec, WanCodec):
        generator.codec.check_length(times)


def fitting_window(
    generator: Generator, views: int, times: int, asked: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """(views, times) to make of the grid at once: what was asked for, else None for all of it, else
    the largest window that the model has positions for.

    Raises:
        GeneratorError: the window asked for is larger than the model knows; names one that is not.
    """
    made = (views, times) if asked is None else (min(asked[0], views), min(asked[1], times))
    known = _known_times(generator, made[0])
    if made[1] <= known:
        return asked
    best = largest_window(generator, *made)
    if asked is None:
        return best
    said = f"for {known} times per view" if known > 0 else f"for fewer than {made[0]} views"
    raise GeneratorError(
        f"window is {asked[0]}x{asked[1]}, but the model has positions {said}: "
        f"window {best[0]}x{best[1]} would fit"
    )


def largest_window(generator: Generator, views: int, times: int) -> tuple[int, int]:
    """(views, times) of the largest window of a grid that the model has positions for: as many
    views as can be, and of the times that are then known 1 + 4k."""
    for some in range(views, 0, -1):
        known = min(_known_times(generator, some), times)
        if known >= min(1 + CLIP_STEP, times):
            return some, 1 + (known - 1) // CLIP_STEP * CLIP_STEP
    return 1, max(_known_times(generator, 1), 1)


def _known_times(generator: Generator, views: int) -> int:
    """The most frames per view that the model has positions for; 0 or less: not so many views."""
    rope: Any = generator.model.transformer.rope  # a ViewTimePositions
    rows: int = rope.stock.freqs_cos.shape[0]
    if rope.kind == "learned":
        known = rows
    elif rope.kind == "sum":
        known = rows - (views - 1)
    elif rope.t_max:
        known = min(rope.t_max, rows - (views - 1) * rope.t_max)
    else:
        known = rows // views
    codec = generator.codec
    return 1 + (known - 1) * codec.temporal if isinstance(codec, WanCodec) else known
