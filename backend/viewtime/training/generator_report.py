# SPDX-License-Identifier: Apache-2.0
"""How good a generator in training is: PSNR over unseen cells of held-out scenes, and a picture.

It only looks; it never trains.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from viewtime.generator.baselines import blend_references, nearest_reference
from viewtime.generator.codec import PixelCodec
from viewtime.generator.generation import generate
from viewtime.generator.load import Generator
from viewtime.generator.model import ViewTimeTransformer
from viewtime.grid import FrameGrid
from viewtime.media import write_png
from viewtime.training.examples import GridExample, held_out_examples


class Report:
    """Evaluates on the same held-out scenes every time; appends to evaluation.jsonl."""

    def __init__(self, folder: Path, scenes: int, size: int, bfloat16: bool) -> None:
        self.folder, self.bfloat16 = folder, bfloat16
        self.examples = held_out_examples(scenes, size=size)

    def write(self, model: ViewTimeTransformer, step: int, seconds: float) -> dict[str, float]:
        """Mean PSNR in dB of each method; also a sheet of truth, prior and model."""
        generator = Generator("in training", model.eval(), PixelCodec())
        config, model.config = model.config, replace(model.config, steps_with_prior=0)
        rows: list[dict[str, float]] = []
        pictures: list[np.ndarray] = []
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            for number, example in enumerate(self.examples):
                row, frames = self._judge(generator, example, without_prior=number == 0)
                rows.append(row)
                pictures.append(_sheet(example, frames))
        model.train().config = config
        means = {
            name: float(np.mean([row[name] for row in rows if name in row])) for name in rows[0]
        }
        record = {
            "step": step,
            "seconds": round(seconds),
            **{k: round(v, 3) for k, v in means.items()},
        }
        print(json.dumps(record), flush=True)
        with (self.folder / "evaluation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "scenes": rows}) + "\n")
        write_png(self.folder / "sheet.png", np.concatenate(pictures, axis=0))
        return means

    def _judge(
        self, generator: Generator, example: GridExample, *, without_prior: bool
    ) -> tuple[dict[str, float], np.ndarray]:
        unseen = ~example.known
        grid = FrameGrid(
            example.truth * example.known[..., None, None, None].astype(np.float32), example.known
        )
        prior = SimpleNamespace(
            frames=example.prior,
            valid=example.maps[:, :, 0] > 0,
            source=_source_of(example.maps),
        )
        reference = example.fixed_view, example.freeze_time
        made = {
            "prior": example.prior,
            "model_1_step": generate(generator, grid, prior=prior, steps=1),  # type: ignore[arg-type]
            "model_4_steps": generate(generator, grid, prior=prior, steps=4),  # type: ignore[arg-type]
            "nearest": nearest_reference(grid, *reference),
            "blend": blend_references(grid, *reference),
        }
        if without_prior:
            made["without_prior_4_steps"] = generate(generator, grid, prior=None, steps=4)
        scores = {
            name: _mean_psnr(frames[unseen], example.truth[unseen]) for name, frames in made.items()
        }
        return scores, made["model_4_steps"]


def _mean_psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the PSNR in dB of each of (N, 3, H, W) frames, at most 60."""
    errors = np.square(frames - truth).mean(axis=(1, 2, 3))
    return float(np.minimum(-10 * np.log10(np.maximum(errors, 1e-12)), 60).mean())


def _source_of(maps: np.ndarray) -> np.ndarray:
    from viewtime.generator.prior import COLUMN, ROW, STILL

    return np.where(maps[:, :, 1] > 0, ROW, np.where(maps[:, :, 2] > 0, STILL, COLUMN))


def _sheet(example: GridExample, frames: np.ndarray) -> np.ndarray:
    """Truth, prior, model and the two errors (times 4) of three unseen cells, (H, W, 3)."""
    cells = np.argwhere(~example.known)
    cells = cells[:: max(math.ceil(len(cells) / 3), 1)]
    strips = []
    for v, t in cells:
        truth, prior, model = (x[v, t] for x in (example.truth, example.prior, frames))
        strips.append(np.concatenate(
            (truth, prior, model, abs(prior - truth) * 4, abs(model - truth) * 4), axis=1
        ))  # fmt: skip
    return np.concatenate(strips, axis=2).clip(0, 1).transpose(1, 2, 0)
