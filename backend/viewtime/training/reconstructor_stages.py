# SPDX-License-Identifier: Apache-2.0
"""Trains a reconstructor in stages (paper, section 3.2 and appendix C): still scenes, then moving
ones, by pictures from cameras it was not given. One process, or DDP by accelerate.

Everything random follows from (seed, stage, step), so that a training killed at any moment and
started again ends in the same weights. It never writes outside its own folder.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.load import load_reconstructor, save_reconstructor
from viewtime.reconstructor.model import Reconstructor
from viewtime.training import common
from viewtime.training.checkpoints import load_state, save_state, seconds_taken
from viewtime.training.reconstructor import TrainConfig, training_batch
from viewtime.training.reconstructor_loss import geometry_loss
from viewtime.training.reconstructor_novel import (
    Distance,
    anchored,
    drawing_device,
    perceptual_distance,
    photometric_loss,
    predict,
)
from viewtime.training.reconstructor_recipe import FRESH, Recipe, Stage
from viewtime.training.reconstructor_report import write_card, write_report
from viewtime.training.reconstructor_scenes import Scenes, stage_scenes

PREFIXES = {
    "all": ("",),
    "head": ("gaussian_head.",),
    "temporal": (
        "gaussian_head.",
        "aggregator.temporal_blocks.",
        "aggregator.frame_temporal_blocks.",
    ),
}

PARTS = ("loss", "mse", "perceptual", "depth", "sky", "camera")
"""What the log says of a step, as far as a stage has it."""


def choose_parameters(model: Reconstructor, stage: Stage) -> list[torch.nn.Parameter]:
    """Freeze all that a stage leaves as it is; those that train.

    What the stage's losses say nothing to waits even where everything trains: the Gaussian head in
    a geometry stage, the temporal layers in a static one, the rays where none are given.
    """
    waiting: tuple[str, ...] = ("point_head.", "track_head.")
    if stage.kind == "geometry":
        waiting += PREFIXES["head"]
    elif stage.times == 1:
        waiting += PREFIXES["temporal"][1:]
    if stage.rays == 0:
        waiting += ("aggregator.ray_embed.",)
    chosen = []
    for name, parameter in model.named_parameters():
        trains = name.startswith(PREFIXES[stage.trains]) and not name.startswith(waiting)
        parameter.requires_grad_(trains)
        if trains:
            chosen.append(parameter)
    if not chosen:
        raise common.TrainingError(
            f"{stage.kind} stage: trains is {stage.trains!r}, but the model has no such layers"
        )
    return chosen


def stage_folder(recipe: Recipe, number: int) -> Path:
    """Where a stage keeps its checkpoint, log, sheet and float32 weights."""
    return Path(recipe.folder) / f"{number + 1}-{recipe.stages[number].kind}"


def train(recipe: Recipe) -> Path:
    """Train, or go on training, in recipe.folder; the folder of the (averaged) weights.

    Each stage begins with the averaged weights of the one before; its folder gets
    train.safetensors (the checkpoint), log.txt, held_out.jsonl, loss.png, sheet.png and weights/.
    Raises TrainingError or ModelError where the settings do not fit the model.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # Some layers have nothing to say to some batches: rays, or time with one timestep.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[unused])
    distance, distance_name = perceptual_distance(recipe.lpips, accelerator.device)
    model = None
    for number, stage in enumerate(recipe.stages):
        folder = stage_folder(recipe, number)
        if not _finished(folder, stage):
            model = _opened(recipe, number).to(accelerator.device)
            if accelerator.is_main_process:
                drawn = drawing_device(accelerator.device)
                print(f"stage {number + 1}: {stage}; perceptual distance: {distance_name}; "
                      f"trained on {accelerator.device}, drawn on {drawn}", flush=True)  # fmt: skip
            _train_stage(recipe, number, model, accelerator, distance)
            accelerator.free_memory()
    last, final = stage_folder(recipe, len(recipe.stages) - 1), Path(recipe.folder) / "weights"
    if accelerator.is_main_process:
        save_reconstructor(final, load_reconstructor(last / "weights"))
        write_card(final, recipe, distance_name)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return final


def _opened(recipe: Recipe, number: int) -> Reconstructor:
    """The model a stage starts from, float32."""
    # Scenes are drawn from the step; this seed is for fresh layers.
    torch.manual_seed(recipe.seed)
    if number > 0:
        model = load_reconstructor(stage_folder(recipe, number - 1) / "weights")
    elif recipe.base == FRESH:
        values = {"gaussian_head": "residual", **recipe.model}
        model = Reconstructor(ReconstructorConfig.small(**values))
    else:
        model = load_reconstructor(recipe.base, **recipe.model)
    recipe.check_model(model.config)
    return model.float().train()


def _finished(folder: Path, stage: Stage) -> bool:
    """Whether a stage is through, be it by its steps or by the clock."""
    from safetensors import safe_open

    checkpoint = folder / "train.safetensors"
    if not checkpoint.exists() or not (folder / "weights" / "config.json").exists():
        return False
    with safe_open(checkpoint, "pt") as file:
        facts = file.metadata() or {}
    by_clock = facts.get("done") == "yes" and math.isfinite(stage.minutes)
    return by_clock or int(facts.get("step", 0)) >= stage.steps


def _train_stage(
    recipe: Recipe, number: int, model: Reconstructor, accelerator: Any, distance: Distance
) -> None:
    stage, folder = recipe.stages[number], stage_folder(recipe, number)
    parameters = choose_parameters(model, stage)
    model.aggregator.checkpointing = recipe.checkpointing
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.peak_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    average = common.Average(wrapped, recipe.average) if recipe.average else None
    checkpoint, start, spent = folder / "train.safetensors", 0, 0.0
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        start = load_state(checkpoint, wrapped, average, optimizer)
        spent = seconds_taken(checkpoint)
    if accelerator.is_main_process:
        common.forget_after(start, folder / "log.txt", folder / "held_out.jsonl")
    for parameter in parameters:  # what a batch does not use has a gradient of zero
        parameter.grad = torch.zeros_like(parameter)
    log = common.Log(folder / "log.txt", stage.steps, start)
    sums: dict[str, float] = {}
    counted, before, updates = 0, spent, common.Updates()
    stream = _stream(recipe, number, start, accelerator)
    for step in range(start, stage.steps):
        done_share = _share_done(stage, step, spent)
        rate = common.learning_rate(
            int(done_share * stage.steps), peak=stage.peak_rate, warm_up=0, steps=stage.steps
        ) * min(1.0, (step + 1) / max(stage.warm_up, 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if stage.kind == "geometry":
            parts = _geometry_step(recipe, stage, wrapped, accelerator, step, done_share)
        else:
            parts = _picture_step(recipe, stage, wrapped, model, accelerator, distance,
                                  next(stream))  # fmt: skip
        norm = accelerator.clip_grad_norm_(parameters, recipe.gradient_limit)
        if updates.sound(norm, step + 1):
            optimizer.step()
            if average is not None:
                average.update(wrapped, step)
            counted += 1
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value
        optimizer.zero_grad(set_to_none=False)

        done = step + 1
        spent = before + log.seconds()
        if not math.isinf(stage.minutes):  # processes must agree on when to stop
            clock = torch.tensor(spent, device=accelerator.device)
            spent = float(accelerator.reduce(clock, "mean"))
        over = done == stage.steps or _share_done(stage, done, spent) >= 1.0
        if accelerator.is_main_process and (done % recipe.log_every == 0 or over):
            means = {k: v / counted for k, v in sums.items()}
            minutes_left = stage.minutes - spent / 60 if math.isfinite(stage.minutes) else None
            extra = {} if minutes_left is None else {"at_most": f"{max(minutes_left, 0):.0f}min"}
            log.line(done, {**means, **updates.skipped(), "gradient": float(norm), "rate": rate,
                            "seconds": spent, **extra})  # fmt: skip
            sums, counted = {}, 0
        if done % recipe.sample_every == 0 or over:
            _report(recipe, number, folder, model, wrapped, average, accelerator, done, spent)
        if done % recipe.checkpoint_every == 0 or over:
            facts = {"seconds": repr(spent), "done": "yes" if over else "no"}
            save_state(checkpoint, done, wrapped, average, optimizer,
                       write=accelerator.is_main_process, facts=facts)  # fmt: skip
        accelerator.wait_for_everyone()
        if over:
            break


def _share_done(stage: Stage, step: int, spent: float) -> float:
    """How far a stage is, by steps or by the clock, whichever is further."""
    return max(step / stage.steps, spent / (60.0 * stage.minutes))


def _stream(recipe: Recipe, number: int, start: int, accelerator: Any) -> Any:
    """The scenes of each step from `start` on, as this process sees them."""
    stage, device = recipe.stages[number], accelerator.device
    if stage.kind == "geometry":
        return iter(())
    place = "cpu" if recipe.beside else str(device)
    mine = (recipe, number, accelerator.process_index, accelerator.num_processes, place)
    if not recipe.beside:
        return map(partial(_numbered_scenes, *mine), range(start, stage.steps))
    # Arrays travel whole; a tensor would be shared, and be gone with the process that made it.
    make = partial(_numbered_arrays, *mine)
    return map(_from_arrays, common.examples(make, start, stage.steps, beside=True))


def _numbered_scenes(
    recipe: Recipe, number: int, process: int, processes: int, device: str, step: int
) -> Scenes:
    stage = recipe.stages[number]
    return stage_scenes(recipe, stage, number, step, process, processes, device)


def _numbered_arrays(*which: Any) -> dict[str, Any]:
    scenes = _numbered_scenes(*which)
    values = {f.name: getattr(scenes, f.name) for f in dataclasses.fields(scenes)}
    return {name: x.numpy() if isinstance(x, Tensor) else x for name, x in values.items()}


def _from_arrays(values: dict[str, Any]) -> Scenes:
    tensors: dict[str, Any] = {
        name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in values.items()
    }
    return Scenes(**tensors)


def _geometry_step(
    recipe: Recipe, stage: Stage, wrapped: Any, accelerator: Any, step: int, progress: float
) -> dict[str, float]:
    """Gradients of one batch of depth, sky and cameras; the loss and its parts."""
    width = recipe.width
    config = TrainConfig(
        sizes=tuple(sorted({8 * max(round(width / 12), 1), width})), frames_per_step=stage.batch,
        rays_share=stage.rays, seed=recipe.seed + 7919 * accelerator.process_index,
    )  # fmt: skip
    batch = training_batch(config, step, min(progress, 1.0), accelerator.device)
    half = torch.bfloat16 if recipe.precision == "bf16" else None
    prediction = wrapped(batch.frames, batch.rays, trunk_dtype=half)
    cameras = batch.cameras if batch.rays is None or recipe.read_back else None
    loss, parts = geometry_loss(prediction, batch.depth, cameras)
    accelerator.backward(anchored(loss, prediction))
    return _shared({"loss": float(loss.detach()), **parts}, accelerator)


def _picture_step(
    recipe: Recipe, stage: Stage, wrapped: Any, model: Reconstructor, accelerator: Any,
    distance: Distance, scenes: Scenes,
) -> dict[str, float]:  # fmt: skip
    """Gradients of one batch of pictures; the loss and its parts."""
    count = len(scenes.frames)
    size = stage.at_once or count
    found: dict[str, float] = {}
    for first in range(0, count, size):
        part = scenes.part(first, first + size).to(accelerator.device)
        prediction = predict(wrapped, part, half=recipe.precision == "bf16",
                             trunk_gradients=stage.trains != "head")  # fmt: skip
        loss, parts = photometric_loss(
            model, prediction, part, distance, perceptual=recipe.perceptual, own=stage.own,
            geometry=stage.geometry,
        )  # fmt: skip
        share = len(part.frames) / count
        accelerator.backward(loss * share)
        for name, value in {"loss": float(loss.detach()), **parts}.items():
            found[name] = found.get(name, 0.0) + share * value
    return _shared(found, accelerator)


def _shared(values: dict[str, float], accelerator: Any) -> dict[str, float]:
    """The loss and its PARTS, each the mean over those processes that have it: one may draw a scene
    whose depth nobody knows, or be given its cameras."""
    if accelerator.num_processes == 1:
        return values
    rows = [[values.get(name, 0.0) for name in PARTS], [float(name in values) for name in PARTS]]
    sums, counts = accelerator.reduce(torch.tensor(rows, device=accelerator.device), "sum").tolist()
    return {name: sums[n] / counts[n] for n, name in enumerate(PARTS) if counts[n]}


def _report(
    recipe: Recipe, number: int, folder: Path, model: Reconstructor, wrapped: Any,
    average: common.Average | None, accelerator: Any, step: int, seconds: float,
) -> None:  # fmt: skip
    """Weights and what a person looks at, with the averaged weights where there are any."""
    if average is not None:
        average.swap(wrapped)
    if accelerator.is_main_process:
        save_reconstructor(folder / "weights", model, dtype=torch.float32)
        write_report(folder, recipe, recipe.stages[number], model, step, seconds)
        model.train()
    if average is not None:
        average.swap(wrapped)


def main(arguments: list[str]) -> int:
    """`viewtime train reconstructor CONFIG`, where the config names stages."""
    recipe = Recipe.from_dict(common.read_settings(Path(arguments[0])))
    print(f"training in {recipe.folder}: {dataclasses.asdict(recipe)}", flush=True)
    print(f"weights in {train(recipe)}", flush=True)
    return 0
