# SPDX-License-Identifier: Apache-2.0
"""Trains the small generator from scratch, on scenes made while it trains: rectified flow.

Everything random is drawn from (seed, step), so that a training killed at any moment and started
again ends in the same weights. It never writes outside its own folder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viewtime.generator.codec import PixelCodec
from viewtime.generator.conditioning import Conditions, source
from viewtime.generator.load import save_generator
from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer
from viewtime.generator.sampler import pin_known
from viewtime.training import common, fine_tuning, generator_report
from viewtime.training.examples import GridExample, training_example

PATCH = 8  # pixels
T_MAX = 16  # position stride between views
POSITIONS = 1024 // T_MAX  # views that the position table has room for


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; a config file gives those that differ.

    drop_prior: share of steps that train the flow from pure noise, without the prior.
    start_share: share of steps with prior at t = 1, where a sampler starts and learns most.
    tokens: bound on tokens per step. reuse: windows taken from one grid, as grids take time to
    make. beside: make examples in a second process.
    """

    folder: str = "runs/generator-small"
    layers: int = 4
    heads: int = 4
    ffn: int = 768
    features: int = 24
    sigma: float = 0.1
    sigma_invalid: float = 0.5
    size: int = 128
    tokens: int = 2304
    reuse: int = 3
    steps: int = 3600
    warm_up: int = 100
    peak_rate: float = 8e-4
    weight_decay: float = 0.01
    gradient_limit: float = 1.0
    average: float = 0.998
    drop_prior: float = 0.15
    start_share: float = 0.6
    bfloat16: bool = True
    beside: bool = True
    seed: int = 0
    checkpoint_every: int = 100
    log_every: int = 20
    evaluate_every: int = 400
    held_out: int = 6

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Recipe:
        unknown = set(settings) - {field.name for field in fields(cls)}
        if unknown:
            raise common.TrainingError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**settings)


def new_model(recipe: Recipe) -> ViewTimeTransformer:
    """The untrained model: at its first step it returns its prior."""
    torch.manual_seed(recipe.seed)
    transformer = new_transformer(
        layers=recipe.layers, heads=recipe.heads, ffn=recipe.ffn, patch_size=(1, PATCH, PATCH)
    )
    config = GeneratorConfig(
        prediction="sample", prior_features=recipe.features, sigma=recipe.sigma,
        sigma_invalid=recipe.sigma_invalid, t_max=T_MAX, clip=1.0, text_tokens=0,
        steps_with_prior=1,
    )  # fmt: skip
    return ViewTimeTransformer(transformer, config)


def conditions_of(example: GridExample) -> tuple[Tensor, Conditions]:
    """Clean latents (1, V, T, 3, H, W) and all conditions, prior included."""
    codec = PixelCodec()
    truth, prior = (codec.encode(torch.from_numpy(x)) for x in (example.truth, example.prior))
    known = torch.from_numpy(example.known)
    given = known[:, :, None, None, None]
    conditions = Conditions(
        reference=(truth * given)[None],
        known=known[None],
        text=torch.zeros(1, 0, 16),
        prior=torch.where(given, truth, prior)[None],
        maps=torch.from_numpy(example.maps)[None],
    )
    return truth[None], conditions


def loss_of(
    model: ViewTimeTransformer, example: GridExample, recipe: Recipe, step: int
) -> tuple[Tensor, bool]:
    """Rectified-flow loss of one grid over its unseen cells, and whether it had its prior.

    The flow goes from the prior (plus noise) or from noise, x_1, to the truth, x_0, along a
    straight line. The squared error is that of the clean latents (that of the velocity times
    t^2), relative to the prior's own error, so that easy and hard scenes count alike.
    """
    rng = np.random.default_rng((recipe.seed, step, 1))
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    truth, conditions = conditions_of(example)
    assert conditions.prior is not None
    unseen = ~conditions.known
    prior_error = (conditions.prior - truth)[unseen].square().mean()
    with_prior = bool(rng.random() >= recipe.drop_prior)
    if not with_prior:
        conditions = conditions.without_prior()
    at_start = with_prior and rng.random() < recipe.start_share
    t = torch.tensor([1.0 if at_start else float(np.sqrt(rng.random()))])
    noise = torch.randn(truth.shape, generator=generator)
    start = source(conditions, noise, sigma=recipe.sigma, sigma_invalid=recipe.sigma_invalid)
    way = t.view(-1, 1, 1, 1, 1, 1)
    x = pin_known((1 - way) * truth + way * start, t, start, conditions)

    views, times = example.known.shape
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        clean = model.predict(
            x, t, conditions,
            view_index=_spread(rng, views, POSITIONS), time_index=_spread(rng, times, T_MAX),
        )  # fmt: skip
    error = (clean.float() - truth)[unseen].square().mean()
    return error / (prior_error + 2e-3 if with_prior else 0.3), with_prior


def _spread(rng: np.random.Generator, count: int, places: int) -> tuple[int, ...]:
    """Rising places in the position table, so that all of it is trained, not only its start."""
    stride = int(rng.integers(1, 3))
    stride = stride if stride * count <= places else 1
    first = int(rng.integers(0, min(places - stride * count, 16) + 1))
    return tuple(first + stride * i for i in range(count))


def train(recipe: Recipe) -> Path:
    """Train, or go on training, in recipe.folder; the folder of the averaged weights.

    Writes train.safetensors (the checkpoint), log.txt, evaluation.jsonl, sheet.png, weights/.
    """
    folder = Path(recipe.folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model(recipe).train()
    average = common.Average(model, recipe.average)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    checkpoint = folder / "train.safetensors"
    start = 0
    if checkpoint.exists():
        start, _ = common.load_checkpoint(checkpoint, model, average, optimizer)
    make = partial(
        training_example, seed=recipe.seed, size=recipe.size, tokens=recipe.tokens, patch=PATCH,
        reuse=recipe.reuse,
    )  # fmt: skip
    log = common.Log(folder / "log.txt", recipe.steps, start)
    report = generator_report.Report(folder, recipe.held_out, recipe.size, recipe.bfloat16)
    losses: dict[bool, list[float]] = {True: [], False: []}
    stream = common.examples(make, start, recipe.steps, beside=recipe.beside)
    for step, example in enumerate(stream, start):
        for group in optimizer.param_groups:
            group["lr"] = common.learning_rate(
                step, peak=recipe.peak_rate, warm_up=recipe.warm_up, steps=recipe.steps
            )
        loss, with_prior = loss_of(model, example, recipe, step)
        loss.backward()
        norm = common.clip_gradient(model, recipe.gradient_limit)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model, step)
        losses[with_prior].append(loss.item())

        done = step + 1
        if done % recipe.log_every == 0:
            log.line(done, {
                "with_prior": _mean(losses[True]), "without": _mean(losses[False]),
                "gradient": float(norm), "seconds": log.seconds(),
            })  # fmt: skip
            losses = {True: [], False: []}
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            common.save_checkpoint(checkpoint, done, model, average, optimizer)
        if done % recipe.evaluate_every == 0 or done == recipe.steps:
            average.swap(model)
            save_generator(folder / "weights", model, dtype=torch.float16)
            report.write(model, done, log.seconds())
            average.swap(model)
    return folder / "weights"


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def main(arguments: list[str]) -> int:
    """`viewtime train generator [CONFIG]`: this recipe, or `fine_tuning` where a base is named."""
    settings = common.read_settings(Path(arguments[0])) if arguments else {}
    if "base" in settings:
        return fine_tuning.main(arguments)
    recipe = Recipe.from_dict(settings)
    print(f"training in {recipe.folder}: {asdict(recipe)}", flush=True)
    print(f"weights in {train(recipe)}")
    return 0
