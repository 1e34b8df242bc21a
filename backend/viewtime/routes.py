# SPDX-License-Identifier: Apache-2.0
"""The two ways from a Capture to splats, and their halves: fill the grid, lift it to Gaussians.
Never imports torch, numba or a model before a stage needs it; folders are `pipeline`'s care."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewtime import __version__
from viewtime.estimate import Work
from viewtime.options import RunOptions
from viewtime.preview import GridPreview
from viewtime.progress import Reporter
from viewtime.warm import warm_generator, warm_reconstructor
from viewtime_formats.capture import Capture

if TYPE_CHECKING:
    import numpy as np

    from viewtime.grid import FrameGrid
    from viewtime_formats.gaussians import Gaussians
    from viewtime_formats.rig import Rig


@dataclass(frozen=True)
class RunResult:
    """What a run made and how long each stage took. options: those that it went by, where some
    were left to the model."""

    route: str
    splats: Path
    grid: Path | None
    seconds: dict[str, float]
    gaussians_per_step: list[int]
    views: int
    times: int
    width: int
    height: int
    work: Work | None = None
    options: RunOptions | None = None


def captured(capture: Capture, out: Path, options: RunOptions, report: Reporter) -> RunResult:
    """Pixels, depth and cameras to splats, one time after the other: no weights, little memory."""
    report.stage("read", 0, "loading the rasteriser")
    from viewtime.grid import grid_from_capture
    from viewtime.reconstructor.captured import background_from_sky, fuse_views

    rig = capture.rig
    assert rig is not None  # choose_route has seen to it
    first = grid_from_capture(_at_time(capture, 0), options.size)
    rig = rig.resized(first.width, first.height)
    if capture.background is None:
        background = background_from_sky(*_time_slice(first))
    else:
        background = _triple(capture.background)
    preview = GridPreview(
        report.on_preview, capture.views, capture.times, first.width, first.height
    )
    read_seconds = report.elapsed()

    def steps() -> Iterator[Gaussians]:
        nonlocal read_seconds
        for t in range(capture.times):
            before = time.monotonic()
            grid = first if t == 0 else grid_from_capture(_at_time(capture, t), options.size)
            images, depths = _time_slice(grid)
            for view in range(capture.views):
                preview.put(view, t, grid.frames[view, 0])
            preview.flush()
            read_seconds += time.monotonic() - before
            report.check()
            yield fuse_views(
                images,
                depths,
                rig.cameras,
                depth_noise=options.depth_noise,
                background=background,
            )

    report.stage("reconstruct", capture.times, f"fusing {capture.views} views per time")
    started = time.monotonic()
    before = read_seconds
    counts = _write_steps(
        steps(),
        timeline_of(capture),
        out,
        rig=rig,
        background=background,
        provenance=provenance_of("captured", capture.folder.name, options),
        report=report,
    )
    seconds = {
        "read": read_seconds,
        "generate": 0.0,
        "reconstruct": time.monotonic() - started - (read_seconds - before),
    }
    return RunResult(
        "captured",
        out / "splats",
        None,
        seconds,
        counts,
        capture.views,
        capture.times,
        rig.cameras[0].width,
        rig.cameras[0].height,
    )


@dataclass(frozen=True)
class Filled:
    """A grid with all its frames, and what else is known for lifting it.

    rig: at the grid's size, None when the cameras have to be predicted. prior_depth: (V, T, H, W)
    or None. background: (3,) display sRGB or None. options: those that it was made by, with the
    window that was taken.
    """

    grid: FrameGrid
    rig: Rig | None
    prior_depth: np.ndarray | None
    background: np.ndarray | None
    options: RunOptions


@dataclass(frozen=True)
class Timeline:
    """Where the timesteps lie on a scene's timeline: see viewtime_formats.splats."""

    times: int
    fps: float
    frame_start: int
    frame_step: int


def timeline_of(capture: Capture) -> Timeline:
    return Timeline(capture.times, capture.fps, capture.frame_start, capture.frame_step)


def generated(capture: Capture, out: Path, options: RunOptions, report: Reporter) -> RunResult:
    """References to the full grid with the generator, then to splats with the reconstructor."""
    filled, seconds = fill(capture, options, report, to_lift=True)
    options = filled.options
    reconstructor = warm_reconstructor(options.reconstructor, options.device)
    from viewtime.grid import write_grid

    write_grid(out / "grid", filled.grid)
    provenance = provenance_of("generated", capture.folder.name, options)
    counts = lift(filled, timeline_of(capture), out, reconstructor, provenance, report, options)
    seconds["reconstruct"] = report.elapsed()
    grid = filled.grid
    return RunResult(
        "generated", out / "splats", out / "grid", seconds, counts,
        grid.views, grid.times, grid.width, grid.height, options=options,
    )  # fmt: skip


def fill(
    capture: Capture, options: RunOptions, report: Reporter, *, to_lift: bool = False
) -> tuple[Filled, dict[str, float]]:
    """The capture's references to a full grid, with the generator; seconds per stage.

    to_lift: load the reconstructor too, before the first long stage: that a model is missing
    must not be found out at the end.
    """
    seconds = {"read": 0.0, "load": 0.0, "prior": 0.0, "generate": 0.0, "reconstruct": 0.0}
    from viewtime.convert import what_happens
    from viewtime.grid import FrameGrid, grid_from_capture
    from viewtime.models.defaults import generator_defaults, settled

    report.stage("read", 0, what_happens(capture))
    options = settled(options)
    columns = generator_defaults(options.generator).columns
    grid = grid_from_capture(capture, options.size, columns)
    height, width = grid.frames.shape[3:]
    rig = capture.rig.resized(width, height) if capture.rig is not None else None
    background = None if capture.background is None else _triple(capture.background)
    if background is None and grid.depth is not None:
        background = _sky_colour(grid)
    preview = GridPreview(report.on_preview, grid.views, grid.times, width, height)
    preview.put_grid(grid.frames, grid.known)
    preview.flush()
    seconds["read"] = report.elapsed()

    missing = int((~grid.known).sum())
    report.stage("load", 0, "loading the models")
    generator, by_itself = None, ""
    if missing:
        generator = warm_generator(
            options.generator, options.device, offload=options.offload, compile=options.compile,
            cache=options.cache, references=options.references,
            memory_budget_gb=options.memory_budget_gb,
        )  # fmt: skip
        asked, options = options, _check_it_fits(generator, grid, options)
        if options.window != asked.window:
            by_itself = f", {options.window} at once: the model knows no more views x times"
    wants_prior = options.use_prior and _can_reproject(capture)
    if to_lift or (missing and wants_prior and not capture.has_depth):
        warm_reconstructor(options.reconstructor, options.device)
    seconds["load"] = report.elapsed()

    prior = None
    if missing and wants_prior:
        prior = _prior(generator, grid, rig, capture, options, background, report)
        seconds["prior"] = report.elapsed()
        report.check()

    frames = grid.frames
    if generator is not None:
        import numpy as np

        words = f"{missing} of {grid.known.size} frames missing{by_itself}"
        assert options.steps is not None  # settled
        report.stage("generate", options.steps, words)

        def sampled(step: int, total: int, now: np.ndarray | None) -> None:
            if now is not None and preview.due():
                # Given frames are shown already; nan is where no window has come to yet.
                preview.put_grid(now, ~grid.known & ~np.isnan(now[:, :, 0, 0, 0]))
                preview.flush()
            report.step(step, total, "generating frames")

        frames = _generated(generator, grid, prior, capture, options, sampled, report.should_cancel)
        seconds["generate"] = report.elapsed()
        report.check()
    preview.put_grid(frames)
    preview.flush()
    full = FrameGrid(frames=frames, known=grid.known, depth=grid.depth)
    # Depth that was predicted for the prior is no better than what lifting predicts of all frames.
    depth = prior.depth if prior is not None and capture.has_depth else None
    return Filled(full, rig, depth, background, options), seconds


def _prior(
    generator: Any, grid: FrameGrid, rig: Rig | None, capture: Capture, options: RunOptions,
    background: np.ndarray | None, report: Reporter,
) -> Any:  # fmt: skip
    """The references reprojected, with their own depth or else with the reconstructor's; None
    where this cannot compare the views."""
    from viewtime.generator.prior import PREDICTED_NOISE, reprojection_prior

    assert rig is not None and capture.fixed_view is not None and capture.freeze_time is not None
    given, noise = (capture.fixed_view, capture.freeze_time), options.depth_noise
    if capture.has_depth:
        report.stage("prior", 0, "reprojecting the references")
    else:
        from viewtime.reconstructor.references import reference_depth

        report.stage("prior", 2, "predicting the depth of the references")
        depth = reference_depth(
            warm_reconstructor(options.reconstructor, options.device), grid, rig, *given,
            memory_budget_gb=options.memory_budget_gb, should_cancel=report.should_cancel,
        )  # fmt: skip
        if depth is None:
            return None
        report.step(1, 2, "reprojecting the references")
        grid, noise = dataclasses.replace(grid, depth=depth), max(noise, PREDICTED_NOISE)
    return reprojection_prior(
        grid, rig, *given, background=(0.0, 0.0, 0.0) if background is None else background,
        depth_noise=noise, evidence=generator.takes_evidence, should_cancel=report.should_cancel,
    )  # fmt: skip


def _check_it_fits(generator: Any, grid: FrameGrid, options: RunOptions) -> RunOptions:
    """Before the first long stage: that the model takes such frames and knows so many times, that
    the window and the memory will do. The options, with a window where the whole grid is more than
    the model knows."""
    from viewtime.generator.fit import check_frames, check_times, fitting_window
    from viewtime.generator.memory import free_memory, require_memory
    from viewtime.generator.windows import plan_windows

    check_frames(generator, grid.height, grid.width)
    window = fitting_window(generator, grid.views, grid.times, options.window_shape)
    if window is None or window[1] >= grid.times:
        check_times(generator, grid.times)
    if window is not None:
        plan_windows(generator, grid.known, window, options.overlap_shape)
        options = dataclasses.replace(options, window=f"{window[0]}x{window[1]}")
    require_memory(
        generator, views=grid.views, times=grid.times, height=grid.height, width=grid.width,
        free=free_memory(generator.device), window=window,
    )  # fmt: skip
    return options


def _generated(
    generator: Any, grid: FrameGrid, prior: Any, capture: Capture, options: RunOptions,
    on_step: Any, should_cancel: Any,
) -> np.ndarray:  # fmt: skip
    """All frames (V, T, 3, H, W): the whole grid at once, or in the windows that were asked for."""
    from viewtime.generator.generation import generate
    from viewtime.generator.windows import generate_in_windows

    settings: dict[str, Any] = {
        "prior": prior, "steps": options.steps, "seed": options.seed, "solver": options.solver,
        "shift": options.shift, "guidance": options.guidance, "prompt": capture.prompt,
        "negative_prompt": options.negative_prompt, "on_step": on_step,
        "should_cancel": should_cancel,
    }  # fmt: skip
    window = options.window_shape
    if window is None:
        return generate(generator, grid, **settings)
    return generate_in_windows(
        generator, grid, window=window, overlap=options.overlap_shape, **settings
    )


def lift(
    filled: Filled,
    timeline: Timeline,
    out: Path,
    reconstructor: Any,
    provenance: dict[str, Any],
    report: Reporter,
    options: RunOptions,
) -> list[int]:
    """A full grid to `out`/splats, with the reconstructor; the number of Gaussians of each step."""
    from viewtime.reconstructor.lift import reconstruct

    report.stage("reconstruct", timeline.times, "lifting frames to Gaussians")
    reconstruction = reconstruct(
        reconstructor,
        filled.grid,
        filled.rig,
        prior_depth=filled.prior_depth,
        gaussians=options.gaussians,
        memory_budget_gb=options.memory_budget_gb,
        on_step=None,  # one step is one yield, which _write_steps counts
        should_cancel=report.should_cancel,
    )
    return _write_steps(
        reconstruction,
        timeline,
        out,
        rig=reconstruction.rig,
        background=(reconstruction.background if filled.background is None else filled.background),
        provenance={**provenance, **reconstruction.provenance},
        report=report,
    )


def _write_steps(
    steps: Iterable[Gaussians],
    timeline: Timeline,
    out: Path,
    *,
    rig: Rig,
    background: np.ndarray | None,
    provenance: dict[str, Any],
    report: Reporter,
) -> list[int]:
    """Write each timestep as soon as it exists; the number of Gaussians of each."""
    from viewtime_formats.splats import SequenceWriter

    counts: list[int] = []
    with SequenceWriter(
        out / "splats",
        times=timeline.times,
        fps=timeline.fps,
        frame_start=timeline.frame_start,
        frame_step=timeline.frame_step,
        rig=rig,
        background=background,
        world=rig.world,
        provenance=provenance,
    ) as writer:
        for t, gaussians in enumerate(steps):
            writer.write_step(t, gaussians)
            counts.append(len(gaussians))
            report.step(t + 1, timeline.times, f"{len(gaussians)} Gaussians at time {t}")
            report.check()
    return counts


# ---- helpers -----------------------------------------------------------------------------------


def _at_time(capture: Capture, t: int) -> Capture:
    """The capture of one time alone, so that a long one is never in memory as a whole."""
    cells = tuple(dataclasses.replace(c, time=0) for c in capture.cells if c.time == t)
    return dataclasses.replace(
        capture, times=1, cells=cells, video=None, freeze_time=None, fixed_view=None
    )


def _time_slice(grid: FrameGrid) -> tuple[np.ndarray, np.ndarray]:
    """Images (V, H, W, 3) and depths (V, H, W) of a grid of one time."""
    import numpy as np

    assert grid.depth is not None
    return np.ascontiguousarray(grid.frames[:, 0].transpose(0, 2, 3, 1)), grid.depth[:, 0]


def _sky_colour(grid: FrameGrid) -> np.ndarray:
    """The sky's colour in the known cells that carry depth."""
    import numpy as np

    from viewtime.reconstructor.captured import background_from_sky

    assert grid.depth is not None
    images = grid.frames[grid.known].transpose(0, 2, 3, 1)
    return background_from_sky(np.ascontiguousarray(images), grid.depth[grid.known])


def provenance_of(route: str, source: str, options: RunOptions) -> dict[str, Any]:
    return {
        "viewtime": __version__,
        "route": route,
        "capture": source,
        "options": dataclasses.asdict(options),
    }


def _can_reproject(capture: Capture) -> bool:
    """Whether both references are there, and cameras; depth can be predicted."""
    references = capture.fixed_view is not None and capture.freeze_time is not None
    return references and capture.rig is not None and capture.views > 1


def _triple(values: Any) -> np.ndarray:
    import numpy as np

    return np.asarray(values, np.float32)
