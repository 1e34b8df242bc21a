# SPDX-License-Identifier: Apache-2.0
"""What it costs in quality to generate faster (FirstBlockCache) or in parts (windows), on held-out
synthetic scenes, beside the same model without. It never trains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from viewtime.evaluation.generator import HeldOut, held_out_scene, score
from viewtime.generator.errors import GeneratorError
from viewtime.generator.generation import generate
from viewtime.generator.load import Generator
from viewtime.generator.prior import Prior, only_references, reprojection_prior
from viewtime.generator.speed import set_cache
from viewtime.generator.windows import generate_in_windows, owners, plan_windows, seam_error
from viewtime.grid import FrameGrid

OnScene = Callable[[int, int], None]


@dataclass(frozen=True)
class Task:
    """What is asked of the model: how many scenes, of which shape, and how many steps. The scenes
    are those of `viewtime evaluate generator`, with both references. depth: and with their depth,
    so that they can be reprojected."""

    scenes: int
    views: int = 5
    times: int = 5
    size: int = 128
    steps: int = 16
    depth: bool = False

    def given(self, generator: Generator) -> Iterator[tuple[int, HeldOut, FrameGrid, Prior | None]]:
        """Number, scene, references and prior of each."""
        for number in range(self.scenes):
            scene = held_out_scene(number, views=self.views, times=self.times, size=self.size)
            at = scene.fixed_view, scene.freeze_time
            grid, prior = only_references(scene.grid, *at), None
            if self.depth:
                evidence = generator.takes_evidence
                prior = reprojection_prior(grid, scene.rig, *at, evidence=evidence)
            yield number, scene, replace(grid, depth=None), prior

    def in_words(self) -> str:
        depth = "with" if self.depth else "without"
        return (
            f"{self.scenes} held-out scenes, {self.views} x {self.times} frames of {self.size} px, "
            f"{self.steps} steps asked, from both references, {depth} depth."
        )


@dataclass(frozen=True)
class CacheCost:
    """Means over the scenes. threshold: None without a cache. computed: share of the steps at
    which all blocks ran. to_uncached, to_truth: PSNR in dB over the cells that were not given; inf
    where nothing differs."""

    threshold: float | None
    computed: float
    seconds: float
    to_uncached: float
    to_truth: float


def cache_costs(
    generator: Generator,
    thresholds: Sequence[float],
    task: Task,
    on_scene: OnScene | None = None,
) -> list[CacheCost]:
    """Time and quality of each threshold, and first without a cache.

    All take every step that the task has, also where the model itself would take fewer
    (`steps_with_prior`): a cache can only skip what there is. They take turns scene by scene, so
    that a machine that slows down slows all of them down. The generator is left without a cache.
    """
    choices: list[float | None] = [None, *thresholds]
    found: dict[float | None, list[tuple[float, float, float, float]]] = {c: [] for c in choices}
    with _every_step(generator), _counting(generator) as computed:
        for number, scene, grid, prior in task.given(generator):
            if number == 0:  # what is only done once shall not count
                generate(generator, grid, prior=prior, steps=1)
            plain = np.empty(0)
            for threshold in choices:
                set_cache(generator, threshold)
                computed.clear()
                began = time.perf_counter()
                made = generate(generator, grid, prior=prior, steps=task.steps, seed=number)
                seconds = time.perf_counter() - began
                plain = made if threshold is None else plain
                unseen = ~grid.known
                like = _psnr(made[unseen], plain[unseen])
                true = score(made, scene, grid.known)["psnr"]
                found[threshold].append((len(computed) / task.steps, seconds, like, true))
            if on_scene is not None:
                on_scene(number + 1, task.scenes)
        set_cache(generator, None)
    return [CacheCost(c, *(float(x) for x in np.mean(found[c], axis=0))) for c in choices]


def cache_table(costs: list[CacheCost], task: Task) -> str:
    """As Markdown, with a line about what was measured."""
    plain = costs[0]
    lines = [
        task.in_words(),
        "",
        "| cache | steps computed | s per grid | as fast | PSNR to no cache | PSNR to the truth |",
        "|---|---|---|---|---|---|",
    ]
    for cost in costs:
        name = "off" if cost.threshold is None else f"{cost.threshold:g}"
        like = "same" if np.isinf(cost.to_uncached) else f"{cost.to_uncached:.1f} dB"
        lines.append(
            f"| {name} | {cost.computed:.0%} | {cost.seconds:.2f} | "
            f"{plain.seconds / cost.seconds:.2f} x | {like} | {cost.to_truth:.2f} dB "
            f"({cost.to_truth - plain.to_truth:+.2f}) |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class WindowCost:
    """Means over the scenes. window: (views, times) made at once, None for the whole grid; at: the
    windows whose seams were looked at. to_truth in dB. seams: per axis, see `seam_error`; of the
    whole grid at the same places, where it has none."""

    window: tuple[int, int] | None
    at: tuple[int, int]
    seconds: float
    to_truth: float
    seams: dict[str, dict[str, float]]


AXES = ("times", "views")


def window_costs(
    generator: Generator,
    windows: Sequence[tuple[int, int]],
    task: Task,
    overlap: tuple[int, int] | None = None,
    on_scene: OnScene | None = None,
) -> list[WindowCost]:
    """Quality, time and seams of grids made in windows, each beside the whole grid at once.

    overlap: (views, times), None as `plan_windows` has it. Raises GeneratorError for a window that
    holds the whole grid, where there would be nothing to compare.
    """
    for window in windows:
        if window[0] >= task.views and window[1] >= task.times:
            raise GeneratorError(
                f"a window of {window[0]}x{window[1]} holds the whole grid of {task.views} views x "
                f"{task.times} times: take a smaller window, or more views or times"
            )
    found: dict[tuple[tuple[int, int], bool], list[tuple[float, float, list[float]]]] = {}
    for number, scene, grid, prior in task.given(generator):
        if number == 0:
            generate(generator, grid, prior=prior, steps=1)
        began = time.perf_counter()
        whole = generate(generator, grid, prior=prior, steps=task.steps, seed=number)
        whole_seconds = time.perf_counter() - began
        for window in windows:
            began = time.perf_counter()
            parts = generate_in_windows(
                generator, grid, prior=prior, window=window, overlap=overlap, steps=task.steps,
                seed=number,
            )  # fmt: skip
            seconds = time.perf_counter() - began
            owner = owners(grid.known, plan_windows(generator, grid.known, window, overlap))
            for frames, took in ((whole, whole_seconds), (parts, seconds)):
                found_seams = [seam_error(frames, scene.grid.frames, owner, axis) for axis in AXES]
                true = score(frames, scene, grid.known)["psnr"]
                found.setdefault((window, frames is whole), []).append(
                    (took, true, [seam[key] for seam in found_seams for key in ("seam", "inside")])
                )
        if on_scene is not None:
            on_scene(number + 1, task.scenes)
    costs = []
    for (window, is_whole), rows in found.items():
        seconds, true = (float(np.mean([row[i] for row in rows])) for i in (0, 1))
        mean = np.mean([row[2] for row in rows], axis=0).reshape(len(AXES), 2)
        seams = {
            axis: {"seam": float(s), "inside": float(i), "ratio": float(s / max(i, 1e-12))}
            for axis, (s, i) in zip(AXES, mean)
        }
        costs.append(WindowCost(None if is_whole else window, window, seconds, true, seams))
    return costs


def window_table(costs: list[WindowCost], task: Task) -> str:
    """As Markdown, with a line about what was measured."""
    lines = [
        f"{task.in_words()} Seam: error of the change from one "
        "cell to the next where two windows meet, over that inside a window; the whole grid has "
        "no seams, and shows what the ratio is at those places without them.",
        "",
        "| at once | s per grid | PSNR to the truth | seam in time | seam across views |",
        "|---|---|---|---|---|",
    ]
    for cost in costs:
        at = f"{cost.at[0]}x{cost.at[1]}"
        name = f"whole grid, at the seams of {at}" if cost.window is None else at
        seams = [_ratio(cost.seams[axis]) for axis in AXES]
        lines.append(
            f"| {name} | {cost.seconds:.2f} | {cost.to_truth:.2f} dB | {seams[0]} | {seams[1]} |"
        )
    return "\n".join(lines)


def _ratio(seam: dict[str, float]) -> str:
    if np.isnan(seam["seam"]):
        return "none"
    return f"{seam['ratio']:.2f} ({seam['seam']:.4f} / {seam['inside']:.4f})"


@contextmanager
def _every_step(generator: Generator) -> Iterator[None]:
    """Within the context, no step is left out because there is a prior."""
    model = generator.model
    before = model.config
    model.config = replace(before, steps_with_prior=0)
    try:
        yield
    finally:
        model.config = before


@contextmanager
def _counting(generator: Generator) -> Iterator[list[int]]:
    """Within the context, the list grows by one whenever all blocks are computed."""
    ran: list[int] = []
    last = generator.model.transformer.blocks[-1].ffn
    hook = last.register_forward_hook(lambda *_: ran.append(1))
    try:
        yield ran
    finally:
        hook.remove()


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB over all pixels together; inf where nothing differs."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))
