# SPDX-License-Identifier: Apache-2.0
"""Capture folder in, FrameGrid and SplatSequence folders out, with progress, ETA and cancel.
Never imports torch, numba or a model before a stage needs it, never leaves half a result."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from viewtime import routes, run_folder
from viewtime.estimate import Measured, estimate, work_of
from viewtime.options import OptionError, RunOptions, options_from_dict
from viewtime.progress import Cancelled, Progress, Reporter
from viewtime.routes import RunResult
from viewtime.warm import warm_reconstructor
from viewtime_formats.atomic import write_json
from viewtime_formats.capture import Capture, read_capture
from viewtime_formats.errors import CaptureError, ViewtimeError

if TYPE_CHECKING:
    import numpy as np

    from viewtime_formats.rig import Rig

__all__ = [
    "Cancelled",
    "OptionError",
    "Progress",
    "RunOptions",
    "RunResult",
    "choose_route",
    "generate",
    "options_from_dict",
    "reconstruct",
    "run",
]


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
    report = Reporter(on_progress or _ignore, should_cancel or _never, plan, on_preview)
    with _whole_or_nothing(out, report):
        stages = routes.captured if route == "captured" else routes.generated
        result = dataclasses.replace(stages(capture, out, options, report), work=work)
        _write_run_file(out, result, result.options or options)
    return result


def generate(
    capture_folder: str | Path,
    out_folder: str | Path,
    options: RunOptions | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Path:
    """The first half alone: a Capture to a full FrameGrid in `grid/`, whose path is returned.

    Raises and cleans up as `run` does.
    """
    options = options or RunOptions()
    capture = read_capture(Path(capture_folder))
    out = Path(out_folder).absolute()
    report = Reporter(on_progress or _ignore, should_cancel or _never)
    with _whole_or_nothing(out, report):
        from viewtime.grid import write_grid

        filled, _ = routes.fill(capture, options, report)
        write_grid(out / "grid", filled.grid)
    return out / "grid"


def reconstruct(
    grid_folder: str | Path,
    out_folder: str | Path,
    options: RunOptions | None = None,
    *,
    rig: Rig | None = None,
    fps: float = 24.0,
    on_progress: Callable[[Progress], None] | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Path:
    """The second half alone: a full FrameGrid folder to `splats/`, whose path is returned.

    rig: its cameras, where they are known; else they are predicted.
    Raises and cleans up as `run` does; ViewtimeError when a frame of the grid is missing.
    """
    from viewtime.grid import read_grid

    options = options or RunOptions()
    grid = read_grid(Path(grid_folder))
    out = Path(out_folder).absolute()
    report = Reporter(on_progress or _ignore, should_cancel or _never)
    if rig is not None:
        if len(rig) != grid.views:
            raise ViewtimeError(f"a rig of {len(rig)} cameras for a grid of {grid.views} views")
        rig = rig.resized(grid.width, grid.height)
    with _whole_or_nothing(out, report):
        report.stage("load", 0, "loading the models")
        model = warm_reconstructor(options.reconstructor, options.device)
        filled = routes.Filled(grid, rig, None, None, options)
        timeline = routes.Timeline(grid.times, fps, 1, 1)
        source = Path(grid_folder).name
        provenance = routes.provenance_of("generated", source, options)
        routes.lift(filled, timeline, out, model, provenance, report, options)
    return out / "splats"


# ---- helpers -----------------------------------------------------------------------------------


@contextmanager
def _whole_or_nothing(out: Path, report: Reporter) -> Iterator[None]:
    """Whatever happens within, `out` then holds the whole result or is as it was before."""
    try:
        run_folder.begin(out)
        yield
        run_folder.finish(out)
    except BaseException as error:  # KeyboardInterrupt too: the folder must not stay half-written
        _abandon(out)
        if isinstance(error, Exception) and report.should_cancel():
            # The models stop with exceptions of their own; to our caller it is one thing.
            raise Cancelled("the run was cancelled") from error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise ViewtimeError(run_folder.disk_full(out)) from error
        if isinstance(error, MemoryError):
            raise ViewtimeError(
                "not enough memory for this job; choose a smaller size or fewer views and times"
            ) from error
        raise


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
