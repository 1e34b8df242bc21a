# SPDX-License-Identifier: Apache-2.0
"""What a person looks at while a model trains: a sheet of held-out grids and the loss.

It only looks; it never trains.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from viewtime.grid import FrameGrid
from viewtime.media import write_png
from viewtime.training.examples import HELD_OUT_SEED
from viewtime.training.mixture import KINDS, Mixture

if TYPE_CHECKING:
    from viewtime.generator.load import Generator

SHOWN = 4
"""Views and times that a sheet shows of each grid."""


@torch.no_grad()
def write_sample_sheet(
    path: Path, generator: Generator, mixture: Mixture, *, views: int, frames: int, height: int,
    width: int, steps: int,
) -> None:  # fmt: skip
    """One held-out grid of each kind in the mixture: truth on the left, what is generated from its
    fixed-view video and freeze-time frames (or, for a single view, from nothing) on the right."""
    from viewtime.generator.generation import generate  # slow to import, and only needed here

    generator.model.eval()
    rows = []
    for kind in [k for k in KINDS if mixture.shares.get(k, 0) > 0]:
        alone = Mixture({kind: 1.0}, {"both": 1.0}, mixture.datasets, mixture.captions, reverse=0.0)
        grid = alone.grid(
            HELD_OUT_SEED, seed=1, views=views, times=frames, height=height, width=width
        )
        known = grid.known.copy()
        known[:, 0] = True  # a still scene has a column too when nobody trains on it
        known &= views > 1  # a video model has nothing to go by
        given = np.where(known[..., None, None, None], grid.frames, np.float32(0))
        made = generate(
            generator, FrameGrid(given, known), prior=None, steps=steps, prompt=grid.prompt
        )
        rows.append(np.concatenate((_some(grid.frames), _some(made)), axis=1))
    write_png(path, np.concatenate(rows, axis=0))


def _some(frames: np.ndarray) -> np.ndarray:
    """(V, T, 3, H, W) -> one picture (H', W', 3): views down, times across."""
    views, times = frames.shape[:2]
    v = np.unique(np.linspace(0, views - 1, SHOWN).round().astype(int))
    t = np.unique(np.linspace(0, times - 1, SHOWN).round().astype(int))
    cells = frames[np.ix_(v, t)]  # (v, t, 3, H, W)
    v_count, t_count, _, height, width = cells.shape
    picture = cells.transpose(0, 3, 1, 4, 2).reshape(v_count * height, t_count * width, 3)
    return picture.clip(0, 1)


def read_losses(log: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of the lines of a log.txt, which may not be there yet."""
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    found = re.findall(r"^step=(\d+)/\d+ .*?\bloss=([\d.e+-]+)", text, re.MULTILINE)
    steps, losses = zip(*found) if found else ((), ())
    return np.array(steps, int), np.array(losses, float)


def write_loss_plot(log: Path, path: Path, label: str = "flow loss") -> None:
    """A plot of the loss over the steps, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps, losses = read_losses(log)
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(steps, losses, linewidth=1)
    axes.set(xlabel="step", ylabel=label, yscale="log")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
