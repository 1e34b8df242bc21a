# SPDX-License-Identifier: Apache-2.0
"""Trains the small generator, on scenes made while it trains: rectified flow.

Everything random is drawn from (seed, step), so that a training killed at any moment and started
again ends in the same weights. It never writes outside its own folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viewtime.generator.conditioning import source
from viewtime.generator.load import load_generator
from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer
from viewtime.generator.sampler import pin_known
from viewtime.training import common, fine_tuning, generator_report
from viewtime.training.checkpoints import load_state, save_state, seconds_taken
from viewtime.training.examples import (
    GIVEN,
    MAPS,
    GridExample,
    conditions_of,
    half,
    training_example,
)
from viewtime.training.weights import weights_step, write_weights

PATCH = 8  # pixels
T_MAX = 16  # position stride between views
POSITIONS = 1024 // T_MAX  # views that the position table has room for
SMALL = Path(__file__).parent / "configs" / "generator-small.toml"
"""What is trained when no configuration is named."""
ALMOST_RIGHT = 3e-4
"""Mean squared error of latents (41 dB of pixels) from which on better priors count less."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; a config file gives those that differ.

    init: weights to start from, a folder or "bundled"; "" starts fresh. shares: how often each of
    `examples.GIVEN` is drawn; they count relative to each other, none as it is. start_share: share
    of steps at t = 1, where a sampler starts and learns most.
    tokens: bound on tokens per example; batch: examples of one shape per step. reuse: steps that
    take their windows from the same grids, as grids take time to make. minutes: the training ends
    by the clock where this comes before `steps`, its learning rate at its lowest either way.
    beside: make examples in a second process; workers: in so many, at most `batch` (each makes the
    same places of every batch, whose grids it can then use again). cast_on: "numba" or the
    torch device that casts the rays. device: where the model trains.
    """

    folder: str = "runs/generator-small"
    init: str = ""
    layers: int = 4
    heads: int = 4
    ffn: int = 768
    features: int = 24
    context: int = 48
    sigma: float = 0.1
    sigma_invalid: float = 0.5
    size: int = 128
    tokens: int = 2304
    batch: int = 1
    reuse: int = 6
    steps: int = 3600
    minutes: float = math.inf
    warm_up: int = 100
    peak_rate: float = 8e-4
    weight_decay: float = 0.01
    gradient_limit: float = 1.0
    average: float = 0.998
    shares: dict[str, float] = field(
        default_factory=lambda: {
            "depth": 0.35, "noisy": 0.25, "both": 0.13, "row": 0.13, "column": 0.14, "none": 0.03,
        }
    )  # fmt: skip
    start_share: float = 0.85
    bfloat16: bool = True
    device: str = "cpu"
    beside: bool = True
    workers: int = 0
    cast_on: str = "numba"
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
        recipe = cls(**settings)
        strange = set(recipe.shares) - set(GIVEN)
        if strange or any(share < 0 for share in recipe.shares.values()):
            raise common.TrainingError(
                f"shares is {recipe.shares}, must be numbers of 0 or more for {', '.join(GIVEN)}"
            )
        if recipe.workers > recipe.batch:
            raise common.TrainingError(
                f"workers is {recipe.workers}, must be at most batch, which is {recipe.batch}: "
                "each makes at least one example of every batch"
            )
        return recipe


def new_model(recipe: Recipe) -> ViewTimeTransformer:
    """The model to begin with: fresh, it returns its prior; with an init, what that returned.

    Raises TrainingError when the init does not fit the recipe.
    """
    torch.manual_seed(recipe.seed)
    transformer = new_transformer(
        layers=recipe.layers, heads=recipe.heads, ffn=recipe.ffn, patch_size=(1, PATCH, PATCH)
    )
    config = GeneratorConfig(
        prediction="sample", prior_features=recipe.features, prior_maps=MAPS,
        prior_context=recipe.context, prior_exact=True, sigma=recipe.sigma,
        sigma_invalid=recipe.sigma_invalid,
        t_max=T_MAX, clip=1.0, text_tokens=0, steps_with_prior=1, held_by_motion=True,
    )  # fmt: skip
    model = ViewTimeTransformer(transformer, config)
    if recipe.init:
        _start_from(model, recipe.init)
    return model


@torch.no_grad()
def _start_from(model: ViewTimeTransformer, init: str) -> None:
    """Take over the weights of another generator. Parts and input maps that it lacks start as
    zeros or as they are, so that the model gives what the other gave."""
    given = load_generator(init).model
    weights, own = dict(given.state_dict()), model.state_dict()
    if given.exact_embedding is None:
        for name in [name for name in weights if name.startswith("prior_embedding.")]:
            weights[f"exact_{name.removeprefix('prior_')}"] = weights[name]
    for part in ("prior", "exact"):
        entry = f"{part}_embedding.features.0.weight"  # (features, channels + maps + 1, 1, 3, 3)
        there, here = (x[entry].shape if entry in x else (0, 0) for x in (weights, own))
        if there[0] == here[0] and there[1] < here[1]:
            wider = torch.zeros_like(own[entry])
            before = there[1] - 1  # the last input says what is known
            wider[:, :before] = weights[entry][:, :before]
            wider[:, -1:] = weights[entry][:, -1:]
            weights[entry] = wider
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            shape = tuple(own[name].shape) if name in own else "not there"
            raise common.TrainingError(
                f"init {init}: {name} is {tuple(value.shape)} there, {shape} by this recipe"
            )
    model.load_state_dict(weights, strict=False)


def loss_of(
    model: ViewTimeTransformer, examples: list[GridExample], recipe: Recipe, step: int
) -> Tensor:
    """Rectified-flow loss (B,) of each example over its unseen cells.

    The flow goes from the prior (plus noise) or from noise, x_1, to the truth, x_0, along a
    straight line. The squared error is that of the clean latents (that of the velocity times
    t^2), relative to the prior's own error, so that easy and hard scenes count alike.
    """
    rng = np.random.default_rng((recipe.seed, step, 1))
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    device = next(model.parameters()).device
    truth, conditions = conditions_of(examples, model.config.prior_maps, device)
    noise = torch.randn(truth.shape, generator=generator).to(device)
    at_start = rng.random() < recipe.start_share
    t = torch.full((len(examples),), 1.0 if at_start else float(np.sqrt(rng.random())))
    t = t.to(device)
    start = source(conditions, noise, sigma=recipe.sigma, sigma_invalid=recipe.sigma_invalid)
    way = t.view(-1, 1, 1, 1, 1, 1)
    x = pin_known((1 - way) * truth + way * start, t, start, conditions)

    views, times = examples[0].known.shape
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
        clean = model.predict(
            x, t, conditions,
            view_index=_spread(rng, views, POSITIONS), time_index=_spread(rng, times, T_MAX),
        )  # fmt: skip
    unseen = ~conditions.known

    def error(made: Tensor) -> Tensor:
        per_cell = (made.float() - truth).square().mean(dim=(3, 4, 5))  # (B, V, T)
        return (per_cell * unseen).sum(dim=(1, 2)) / unseen.sum(dim=(1, 2)).clamp_min(1)

    if conditions.prior is None:
        return error(clean) / 0.3
    return error(clean) / (error(conditions.prior) + ALMOST_RIGHT)


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
    model = new_model(recipe).train().to(recipe.device)
    average = common.Average(model, recipe.average)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    checkpoint = folder / "train.safetensors"
    start, before = 0, 0.0
    if checkpoint.exists():
        start = load_state(checkpoint, model, average, optimizer)
        before = seconds_taken(checkpoint)
    common.forget_after(start, folder / "log.txt", folder / "evaluation.jsonl")
    log = common.Log(folder / "log.txt", recipe.steps, start)
    stream = _batches(recipe, start)  # its processes start while the report is prepared
    report = generator_report.Report(folder, recipe.held_out, recipe.size, recipe.bfloat16)
    losses: dict[str, list[float]] = {}
    spent, updates = before, common.Updates()
    began = log.seconds()  # the clock of `minutes` is that of the steps alone
    while start < recipe.steps and _share_done(recipe, start, spent) < 1.0:
        examples, step = next(stream), start
        rate = common.learning_rate(
            int(_share_done(recipe, step, spent) * recipe.steps), peak=recipe.peak_rate,
            warm_up=0, steps=recipe.steps,
        ) * min(1.0, (step + 1) / max(recipe.warm_up, 1))  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = rate
        each = loss_of(model, examples, recipe, step)
        each.mean().backward()
        norm = common.clip_gradient(model, recipe.gradient_limit)
        if updates.sound(norm, step + 1):
            optimizer.step()
            average.update(model, step)
            for example, loss in zip(examples, each.tolist()):
                losses.setdefault(example.given, []).append(loss)
        optimizer.zero_grad(set_to_none=True)

        start = done = step + 1
        spent = before + log.seconds() - began
        over = done == recipe.steps or _share_done(recipe, done, spent) >= 1.0
        if done % recipe.log_every == 0 or over:
            means = {name: float(np.mean(losses[name])) for name in GIVEN if name in losses}
            log.line(done, {**means, **updates.skipped(), "gradient": float(norm), "rate": rate,
                            "seconds": spent})  # fmt: skip
            losses = {}
        if done % recipe.evaluate_every == 0 and not over:
            _write_average(folder, model, average, report, done, spent)
        # Last, so that a kill before it has all of this done again.
        if done % recipe.checkpoint_every == 0 or over:
            save_state(checkpoint, done, model, average, optimizer, facts={"seconds": repr(spent)})
    # Also where a training that was killed here goes on with no step left to do.
    if weights_step(folder / "weights") != start:
        _write_average(folder, model, average, report, start, spent)
    return folder / "weights"


def _write_average(
    folder: Path, model: ViewTimeTransformer, average: common.Average,
    report: generator_report.Report, step: int, spent: float,
) -> None:  # fmt: skip
    """The averaged weights, how good they are, and a picture of it."""
    average.swap(model)
    report.write(model, step, spent)
    write_weights(folder / "weights", model, step, dtype=torch.float16)
    average.swap(model)


def _share_done(recipe: Recipe, step: int, spent: float) -> float:
    """How far the training is, by steps or by the clock (seconds), whichever is further."""
    return max(step / recipe.steps, spent / (60.0 * recipe.minutes))


def _batches(recipe: Recipe, start: int) -> Iterator[list[GridExample]]:
    """The examples of each step from `start` on, made here, beside, or by several workers."""
    make = partial(
        training_example, seed=recipe.seed, size=recipe.size, tokens=recipe.tokens, patch=PATCH,
        reuse=recipe.reuse, shares=recipe.shares, cast_on=recipe.cast_on,
    )  # fmt: skip
    workers = recipe.workers or 1
    streams = [
        common.examples(
            partial(_slots, make, range(first, recipe.batch, workers), recipe.workers > 0),
            start, recipe.steps, beside=recipe.beside or recipe.workers > 0,
        )
        for first in range(workers)
    ]  # fmt: skip
    return ([x for part in parts for x in part] for parts in zip(*streams))


def _slots(make: Any, slots: range, light: bool, number: int) -> list[GridExample]:
    """The examples of step `number` for some places of its batch; light: in float16."""
    made = [make(number, slot=slot) for slot in slots]
    return [half(example) for example in made] if light else made


def main(arguments: list[str]) -> int:
    """`viewtime train generator [CONFIG]`: this recipe, or `fine_tuning` where a base is named."""
    settings = common.read_settings(Path(arguments[0]) if arguments else SMALL)
    if "base" in settings:
        return fine_tuning.main(arguments)
    recipe = Recipe.from_dict(settings)
    print(f"training in {recipe.folder}: {asdict(recipe)}", flush=True)
    print(f"weights in {train(recipe)}")
    return 0
