# SPDX-License-Identifier: Apache-2.0
"""Capture folder in, FrameGrid and SplatSequence folders out, with progress, ETA and cancel.
Never imports torch, numba or a model before a stage needs it, never leaves half a result."""

from __future__ import annotations

import dataclasses
import errno
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewtime import __version__, run_folder
from viewtime.estimate import Measured, Work, estimate, work_of
from viewtime.options import GENERATED_SIZE, OptionError, RunOptions, options_from_dict
from viewtime.preview import GridPreview
from viewtime.progress import Cancelled, Progress, Reporter
from viewtime.warm import warm_generator, warm_reconstructor
from viewtime_formats.atomic import write_json
from viewtime_formats.capture import Capture, read_capture
from viewtime_formats.errors import CaptureError, ViewtimeError

if TYPE_CHECKING:
    import numpy as np

    from viewtime.grid import FrameGrid
    from viewtime_formats.gaussians import Gaussians
    from viewtime_formats.rig import Rig

__all__ = [
    "Cancelled",
    "OptionError",
    "Progress",
    "RunOptions",
    "RunResult",
    "choose_route",
    "options_from_dict",
    "run",
]


@dataclass(frozen=True)
class RunResult:
    """What a run made and how long each stage took."""

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


def choose_route(capture: Capture, options: RunOptions) -> str:
    """ "captured" or "generated". Raises CaptureError when the route asked for is impossible."""
    missing = []
    if not capture.is_full_grid:
        missing.append("a frame for every view and time")
    if not capture.has_depth:
        missing.append("depth for every frame")
    if capture.rig is None:
        missing.append("a rig")
    if options.route == "captured" and missing:
        raise CaptureError(
            f"{capture.folder}: the captured route needs {' and '.join(missing)}; "
            "capture the full grid with depth, or use the generated route"
        )
    if options.route == "auto":
        return "generated" if missing else "captured"
    return options.route


def run(
    capture_folder: str | Path,
    out_folder: str | Path,
    options: RunOptions | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_cancel: Callable[[], bool] | None = None,
    on_preview: Callable[[np.ndarray], None] | None = None,
    history: Iterable[Measured] = (),
) -> RunResult:
    """Run the whole job and return what it made; the same call twice gives the same folder.

    Writes `splats/` (readable while it grows), `run.json` and, on the generated route, `grid/`.
    on_preview gets a small picture of the grid, uint8 (h, w, 3), at most once a second.
    history: earlier jobs on this machine, for the time left of the whole run.
    Raises ViewtimeError for anything a person can put right, Cancelled when `should_cancel`
    became true. After any exception the folder is as it was before the call.
    """
    options = options or RunOptions()
    capture = read_capture(Path(capture_folder))
    route = choose_route(capture, options)
    out = Path(out_folder).absolute()
    work = work_of(capture, options, route)
    plan = estimate(work, history).stages
    reporter = Reporter(on_progress or _ignore, should_cancel or _never, plan, on_preview)
    try:
        run_folder.begin(out)
        stages = _captured if route == "captured" else _generated
        result = dataclasses.replace(stages(capture, out, options, reporter), work=work)
        _write_run_file(out, result, options)
        run_folder.finish(out)
        return result
    except BaseException as error:  # KeyboardInterrupt too: the folder must not stay half-written
        _abandon(out)
        if isinstance(error, Exception) and reporter.should_cancel():
            # The models stop with exceptions of their own; to our caller it is one thing.
            raise Cancelled("the run was cancelled") from error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise ViewtimeError(run_folder.disk_full(out)) from error
        if isinstance(error, MemoryError):
            raise ViewtimeError(
                "not enough memory for this job; choose a smaller size or fewer views and times"
            ) from error
        raise


# ---- the two routes ----------------------------------------------------------------------------


def _captured(capture: Capture, out: Path, options: RunOptions, report: Reporter) -> RunResult:
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
        capture,
        out,
        rig=rig,
        background=background,
        provenance=_provenance("captured", capture, options),
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


def _generated(capture: Capture, out: Path, options: RunOptions, report: Reporter) -> RunResult:
    """References to the full grid with the generator, then to splats with the reconstructor."""
    seconds = {"read": 0.0, "load": 0.0, "prior": 0.0, "generate": 0.0, "reconstruct": 0.0}
    from viewtime.convert import what_happens
    from viewtime.grid import FrameGrid, grid_from_capture, write_grid

    report.stage("read", 0, what_happens(capture))
    grid = grid_from_capture(capture, options.size or GENERATED_SIZE)
    height, width = grid.frames.shape[3:]
    rig = capture.rig.resized(width, height) if capture.rig is not None else None
    background = None if capture.background is None else _triple(capture.background)
    if background is None and grid.depth is not None:
        background = _sky_colour(grid)
    preview = GridPreview(report.on_preview, grid.views, grid.times, width, height)
    preview.put_grid(grid.frames, grid.known)
    preview.flush()
    seconds["read"] = report.elapsed()

    # Both models before the first long stage: a missing one must not be found out at the end.
    missing = int((~grid.known).sum())
    report.stage("load", 0, "loading the models")
    generator = warm_generator(options.generator, options.device) if missing else None
    reconstructor = warm_reconstructor(options.reconstructor, options.device)
    seconds["load"] = report.elapsed()

    prior = None
    if missing and options.use_prior and _has_prior(capture):
        report.stage("prior", 0, "reprojecting the references")
        from viewtime.generator.prior import reprojection_prior

        assert rig is not None
        assert capture.fixed_view is not None and capture.freeze_time is not None
        prior = reprojection_prior(
            grid,
            rig,
            capture.fixed_view,
            capture.freeze_time,
            background=(0.0, 0.0, 0.0) if background is None else background,
            depth_noise=options.depth_noise,
        )
        seconds["prior"] = report.elapsed()
        report.check()

    frames = grid.frames
    if generator is not None:
        from viewtime.generator.generation import generate

        report.stage("generate", options.steps, f"{missing} of {grid.known.size} frames missing")

        def sampled(step: int, total: int, now: np.ndarray | None) -> None:
            if now is not None and preview.due():
                preview.put_grid(now)
                preview.flush()
            report.step(step, total, "generating frames")

        frames = generate(
            generator,
            grid,
            prior=prior,
            steps=options.steps,
            seed=options.seed,
            guidance=options.guidance,
            prompt=capture.prompt,
            on_step=sampled,
            should_cancel=report.should_cancel,
        )
        seconds["generate"] = report.elapsed()
        report.check()
    preview.put_grid(frames)
    preview.flush()
    filled = FrameGrid(frames=frames, known=grid.known, depth=grid.depth)
    write_grid(out / "grid", filled)

    from viewtime.reconstructor.lift import reconstruct

    report.stage("reconstruct", capture.times, "lifting frames to Gaussians")
    reconstruction = reconstruct(
        reconstructor,
        filled,
        rig,
        prior_depth=None if prior is None else prior.depth,
        on_step=None,  # one step is one yield, which _write_steps counts
        should_cancel=report.should_cancel,
    )
    counts = _write_steps(
        reconstruction,
        capture,
        out,
        rig=reconstruction.rig,
        background=background,
        provenance={**_provenance("generated", capture, options), **reconstruction.provenance},
        report=report,
    )
    seconds["reconstruct"] = report.elapsed()
    return RunResult(
        "generated",
        out / "splats",
        out / "grid",
        seconds,
        counts,
        capture.views,
        capture.times,
        width,
        height,
    )


def _write_steps(
    steps: Iterable[Gaussians],
    capture: Capture,
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
        times=capture.times,
        fps=capture.fps,
        frame_start=capture.frame_start,
        frame_step=capture.frame_step,
        rig=rig,
        background=background,
        world=rig.world,
        provenance=provenance,
    ) as writer:
        for t, gaussians in enumerate(steps):
            writer.write_step(t, gaussians)
            counts.append(len(gaussians))
            report.step(t + 1, capture.times, f"{len(gaussians)} Gaussians at time {t}")
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


def _provenance(route: str, capture: Capture, options: RunOptions) -> dict[str, Any]:
    return {
        "viewtime": __version__,
        "route": route,
        "capture": capture.folder.name,
        "options": dataclasses.asdict(options),
    }


def _has_prior(capture: Capture) -> bool:
    """Whether the references can be reprojected: both are there, with depth and cameras."""
    references = capture.fixed_view is not None and capture.freeze_time is not None
    return references and capture.has_depth and capture.rig is not None


def _triple(values: Any) -> np.ndarray:
    import numpy as np

    return np.asarray(values, np.float32)


def _write_run_file(out: Path, result: RunResult, options: RunOptions) -> None:
    write_json(
        out / run_folder.RUN_FILE,
        {
            "format": "viewtime.run",
            "version": 1,
            "route": result.route,
            "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
            "gaussians_per_step": result.gaussians_per_step,
            "views": result.views,
            "times": result.times,
            "size": result.height,
            "width": result.width,
            "height": result.height,
            "options": dataclasses.asdict(options),
        },
    )


def _abandon(out: Path) -> None:
    """Clean up without hiding the error that made it necessary."""
    try:
        run_folder.abandon(out)
    except (OSError, ViewtimeError):
        pass  # the marker stays, and the next run or server start tries again


def _ignore(progress: Progress) -> None:
    pass


def _never() -> bool:
    return False
