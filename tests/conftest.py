# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several rooms share: small real captures, made once per session.
Never imports torch and never leaves a file outside pytest's own folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from viewtime_formats.capture import Cell, write_capture

VIEWS, TIMES, SIZE = 3, 5, 32


@pytest.fixture(scope="session")
def write_frames(tmp_path_factory) -> Callable[[Path], object]:
    """Writes 3 views x 5 times of a synthetic scene at 32 px with depth; returns the rig."""
    from viewtime.data.synthetic import sample_grid
    from viewtime.media import write_depth, write_png

    grid, rig = sample_grid(7, VIEWS, TIMES, SIZE)
    assert grid.depth is not None

    def write(folder: Path) -> object:
        (folder / "frames").mkdir(parents=True)
        (folder / "depth").mkdir()
        for v in range(VIEWS):
            for t in range(TIMES):
                write_png(folder / f"frames/{v}.{t}.png", grid.frames[v, t].transpose(1, 2, 0))
                write_depth(folder / f"depth/{v}.{t}.exr", grid.depth[v, t])
        return rig

    return write


@pytest.fixture(scope="session")
def full_capture(tmp_path_factory, write_frames) -> Path:
    """A full grid with depth and a rig: the captured route takes it."""
    return _capture(tmp_path_factory.mktemp("full"), write_frames, TIMES)


@pytest.fixture(scope="session")
def long_capture(tmp_path_factory, write_frames) -> Path:
    """The same five times over and over, 600 of them: a real job that lasts as long as needed."""
    return _capture(tmp_path_factory.mktemp("long"), write_frames, 600)


@pytest.fixture(scope="session")
def reference_capture(tmp_path_factory, write_frames) -> Path:
    """The fixed-view clip and the freeze-time column with depth and a rig: the generated route."""
    folder = tmp_path_factory.mktemp("references")
    rig = write_frames(folder)
    cells = [_cell(v, t, t) for v in range(VIEWS) for t in range(TIMES) if v == 0 or t == 2]
    write_capture(
        folder,
        views=VIEWS,
        times=TIMES,
        width=SIZE,
        height=SIZE,
        cells=cells,
        fixed_view=0,
        freeze_time=2,
        rig=rig,
    )
    return folder


def _capture(folder: Path, write_frames: Callable[[Path], object], times: int) -> Path:
    rig = write_frames(folder)
    cells = [_cell(v, t, t % TIMES) for v in range(VIEWS) for t in range(times)]
    write_capture(
        folder,
        views=VIEWS,
        times=times,
        width=SIZE,
        height=SIZE,
        cells=cells,
        fixed_view=0,
        freeze_time=0,
        rig=rig,
    )
    return folder


def _cell(view: int, time: int, file: int) -> Cell:
    return Cell(view, time, f"frames/{view}.{file}.png", f"depth/{view}.{file}.exr")
