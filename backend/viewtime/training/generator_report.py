# SPDX-License-Identifier: Apache-2.0
"""How good a generator in training is: PSNR over unseen cells of held-out scenes, and a picture.

It only looks; it never trains.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

from viewtime.generator.codec import PixelCodec
from viewtime.generator.load import Generator
from viewtime.generator.model import ViewTimeTransformer
from viewtime.generator.sampler import sample
from viewtime.media import write_png
from viewtime.training.examples import GIVEN, GridExample, conditions_of, held_out_examples


class Report:
    """Evaluates on the same held-out scenes every time; appends to evaluation.jsonl."""

    def __init__(self, folder: Path, scenes: int, size: int, bfloat16: bool) -> None:
        self.folder, self.bfloat16 = folder, bfloat16
        self.examples = {
            given: held_out_examples(scenes, size=size, views=4, times=4, given=given)
            for given in GIVEN
            if given != "none"
        }

    def write(self, model: ViewTimeTransformer, step: int, seconds: float) -> dict[str, float]:
        """Mean PSNR in dB of the start and of the model's one step, for each of GIVEN but none;
        also a sheet of truth, start and model for exact depth and for both without depth."""
        generator = Generator("in training", model.eval(), PixelCodec())
        rows: dict[str, list[float]] = {}
        pictures: list[np.ndarray] = []
        with torch.autocast(generator.device.type, torch.bfloat16, enabled=self.bfloat16):
            for given, examples in self.examples.items():
                for example in examples:
                    frames, unseen = one_step(generator, example), ~example.known
                    assert example.prior is not None
                    for name, made in (("start", example.prior), ("model", frames)):
                        score = _mean_psnr(made[unseen], example.truth[unseen])
                        rows.setdefault(f"{given}_{name}", []).append(score)
                    if given in ("depth", "both"):
                        pictures.append(_sheet(example, frames))
        model.train()
        means = {name: float(np.mean(values)) for name, values in rows.items()}
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


def one_step(generator: Generator, example: GridExample) -> np.ndarray:
    """All frames (V, T, 3, H, W) of an example after one step from its start."""
    config = generator.model.config
    _, conditions = conditions_of([example], config.prior_maps, generator.device)
    noise = torch.randn(conditions.reference.shape, generator=torch.Generator().manual_seed(0)).to(
        generator.device
    )
    latents = sample(generator.model, conditions, noise, [1.0])
    return generator.codec.decode(latents[0]).float().cpu().numpy()


def _mean_psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the PSNR in dB of each of (N, 3, H, W) frames, at most 60."""
    errors = np.square(frames - truth).mean(axis=(1, 2, 3))
    return float(np.minimum(-10 * np.log10(np.maximum(errors, 1e-12)), 60).mean())


def _sheet(example: GridExample, frames: np.ndarray) -> np.ndarray:
    """Truth, start, model and the two errors (times 4) of three unseen cells, (H, W, 3)."""
    assert example.prior is not None
    cells = np.argwhere(~example.known)
    cells = cells[:: max(math.ceil(len(cells) / 3), 1)]
    strips = []
    for v, t in cells:
        truth, prior, model = (x[v, t] for x in (example.truth, example.prior, frames))
        strips.append(np.concatenate(
            (truth, prior, model, abs(prior - truth) * 4, abs(model - truth) * 4), axis=1
        ))  # fmt: skip
    return np.concatenate(strips, axis=2).clip(0, 1).transpose(1, 2, 0)
