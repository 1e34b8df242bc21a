# SPDX-License-Identifier: Apache-2.0
"""Longer clips and wider rigs than a model was trained on: overlapping windows over both axes.

Each window takes what the windows before it made as its references, so that rows and columns
go on where they were; nothing is made twice and nothing is blended. With a VAE that holds exactly
for what comes after; windows before the freeze time meet the next less exactly, see `plan_windows`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from viewtime.generator.codec import WanCodec
from viewtime.generator.errors import GeneratorError
from viewtime.generator.generation import Preview, choose_guidance, encode_texts, generate
from viewtime.generator.load import Generator

if TYPE_CHECKING:
    from viewtime.generator.prior import Prior
    from viewtime.grid import FrameGrid


@dataclass(frozen=True)
class Window:
    """A part of a grid that is made at once: these views by these times."""

    views: range
    times: range

    @property
    def cells(self) -> tuple[Any, ...]:
        """An index of a grid's arrays."""
        return np.ix_(self.views, self.times)


def spans(count: int, window: int, overlap: int) -> list[range]:
    """Windows over 0..count-1, each but the first beginning `overlap` before the end of the last.

    The last one is moved back so that it is as long as the others. Raises GeneratorError when the
    overlap leaves nothing new.
    """
    if not 1 <= overlap < window and count > window:
        raise GeneratorError(
            f"windows of {window} with an overlap of {overlap}: the overlap must be from 1 to "
            f"{window - 1}"
        )
    if count <= window:
        return [range(count)]
    found = [range(window)]
    while found[-1].stop < count:
        start = min(found[-1].stop - overlap, count - window)
        found.append(range(start, start + window))
    return found


def default_overlap(window: int, step: int = 1) -> int:
    """What a window shares with the one before it: a quarter of it, as 1 + step * k, at least 1.

    One frame says how things look where windows meet; a few say how they move, too.
    """
    return 1 + max(window // 4 - 1, 0) // step * step


def smallest_window(generator: Generator, views: int, times: int) -> tuple[int, int]:
    """(views, times) of the smallest window of a grid, which still brings something new."""
    step = generator.codec.temporal if isinstance(generator.codec, WanCodec) else 1
    return min(2, views), min(1 + step, times)


def plan_windows(
    generator: Generator,
    known: np.ndarray,
    window: tuple[int, int],
    overlap: tuple[int, int] | None = None,
) -> list[Window]:
    """The windows of a grid in the order in which they are made, without those that are known.

    known: (V, T). window, overlap: (views, times); no overlap is `default_overlap`. The first
    window is where most is known: it holds the freeze time if there is one. From there they go on
    along time, then to the next views, so that each finds a row and a column to hold on to.

    Where there is a VAE, times of window and overlap must be 1 + 4k, since a window's first frames
    are its anchor: their latents are exact. A window before the first one overlaps at its end,
    where latents mix 4 frames and depend on those before. There what was made leads (a latent of
    its frame standing still, see `codec`) and is not held, so that the motion may jump at the
    seam; the frames of the overlap themselves come back as they were.

    Raises GeneratorError where times are not 1 + 4k, or leave nothing new.
    """
    views, times = known.shape
    step = generator.codec.temporal if isinstance(generator.codec, WanCodec) else 1
    if overlap is None:
        overlap = default_overlap(window[0]), default_overlap(window[1], step)
    if times > window[1]:
        for name, count in (("window", window[1]), ("overlap", overlap[1])):
            if (count - 1) % step:
                below = 1 + (count - 1) // step * step
                raise GeneratorError(
                    f"{name} is of {count} times, must be 1 + {step}k for this model: "
                    f"{below} or {below + step}"
                )
    made, found = known.copy(), []
    rows = _from_the_best(spans(views, window[0], overlap[0]), known.mean(axis=1))
    columns = _from_the_best(spans(times, window[1], overlap[1]), known.mean(axis=0))
    for some_views in rows:
        for some_times in columns:
            box = Window(some_views, some_times)
            if not made[box.cells].all():
                found.append(box)
            made[box.cells] = True
    return found


def _from_the_best(parts: list[range], known: np.ndarray) -> list[range]:
    """The part with the line that is known best first, then those after it, then those before it
    backwards. known: share of each row or column that is known."""
    best = max(range(len(parts)), key=lambda i: (known[parts[i]].max(), -i))
    return parts[best:] + parts[:best][::-1]


def owners(known: np.ndarray, windows: list[Window]) -> np.ndarray:
    """Which window made each cell, (V, T) int; -1 where it was given."""
    made = np.where(known, -1, -2)
    for number, window in enumerate(windows):
        box = made[window.cells]
        made[window.cells] = np.where(box == -2, number, box)
    return made


def generate_in_windows(
    generator: Generator,
    grid: FrameGrid,
    *,
    prior: Prior | None,
    window: tuple[int, int],
    overlap: tuple[int, int] | None = None,
    seed: int = 0,
    guidance: float | None = None,
    prompt: str = "",
    negative_prompt: str = "",
    on_step: Preview | None = None,
    should_cancel: Callable[[], bool] | None = None,
    **settings: object,
) -> np.ndarray:
    """All frames of the grid, (V, T, 3, H, W), a window at a time; settings as in `generate`.

    window, overlap: (views, times), see `plan_windows`, which says what it raises. Guidance and
    prompts are the same in all windows. on_step counts the steps of all windows together; it gets
    the whole grid, not a number in the cells that no window has come to.
    """
    plan = plan_windows(generator, grid.known, window, overlap)
    guidance = choose_guidance(generator, grid.known, guidance, prompt, negative_prompt)
    texts = None
    if plan:
        texts = encode_texts(generator, prompt, negative_prompt, guidance, should_cancel)
    frames, known = grid.frames.copy(), grid.known.copy()
    look = generator.codec.spatial // 2, generator.codec.spatial
    for number, box in enumerate(plan):
        at = box.cells

        def step(
            done: int, total: int, shown: np.ndarray | None, number: int = number, at: Any = at
        ) -> None:
            if on_step is None:
                return
            whole = None
            if shown is not None:
                whole = frames[..., look[0] :: look[1], look[0] :: look[1]].copy()
                whole[~known] = np.nan
                whole[at] = np.where(known[at][..., None, None, None], whole[at], shown)
            on_step(number * total + done, len(plan) * total, whole)

        part = replace(grid, frames=frames[at], known=known[at], depth=None)
        frames[at] = generate(
            generator, part, prior=None if prior is None else _part_of(prior, at),
            seed=seed + number, guidance=guidance, texts=texts, on_step=step,
            should_cancel=should_cancel, **settings,  # type: ignore[arg-type]
        )  # fmt: skip
        known[at] = True
    return frames


def _part_of(prior: Prior, at: Any) -> Prior:
    """The window of a prior; all its arrays begin with views and times."""
    arrays = {field.name: getattr(prior, field.name) for field in fields(prior)}
    return replace(prior, **{k: x[at] for k, x in arrays.items() if isinstance(x, np.ndarray)})


def seam_error(
    frames: np.ndarray, truth: np.ndarray, owner: np.ndarray, axis: str = "times"
) -> dict[str, float]:
    """How much worse the change from one cell to the next is across a seam than inside a window.

    frames, truth: (V, T, 3, H, W); owner: (V, T), see `owners`; axis: "times" or "views". For each
    two neighbours along it, the error of the change: mean |(f[t+1] - f[t]) - (g[t+1] - g[t])|.
    Returns its mean over the neighbours that two windows made ("seam"), over those that one window
    made ("inside"), and their ratio; given cells do not count. nan where there are none.
    """
    along = {"views": 0, "times": 1}[axis]
    change = np.diff(frames, axis=along) - np.diff(truth, axis=along)
    errors = np.abs(change).mean(axis=(2, 3, 4))
    first, second = (
        np.take(owner, range(start, owner.shape[along] - 1 + start), axis=along) for start in (0, 1)
    )
    counted = (first >= 0) & (second >= 0)
    seam, inside = (
        float(errors[counted & chosen].mean()) if (counted & chosen).any() else float("nan")
        for chosen in (first != second, first == second)
    )
    return {"seam": seam, "inside": inside, "ratio": seam / max(inside, 1e-12)}
