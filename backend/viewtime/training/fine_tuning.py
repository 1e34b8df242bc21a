# SPDX-License-Identifier: Apache-2.0
"""Makes a 4D generator of a video model, as the paper does (section 3.1, appendix B): rectified
flow, self-attention alone, longer clips in a second phase. One process, DDP or FSDP by accelerate.

Everything random follows from (seed, step), so that a training killed at any moment and started
again ends in the same weights. It never writes outside its own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viewtime.generator.codec import PixelCodec, WanCodec
from viewtime.generator.conditioning import Conditions
from viewtime.generator.load import Generator, load_generator
from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer
from viewtime.generator.text import encode_each, filled
from viewtime.training import common
from viewtime.training.checkpoints import load_state, save_state
from viewtime.training.flow import draw, flow_loss
from viewtime.training.mixture import Mixture, TrainingGrid
from viewtime.training.samples import write_loss_plot, write_sample_sheet
from viewtime.training.weights import weights_step, write_weights

FRESH = "fresh"
TRAINABLE = ("self_attention", "all")
PRECISIONS = ("no", "bf16")
"""fp16 would want its gradients scaled, and the scale in the checkpoint; bf16 does without."""


@dataclass(frozen=True)
class Phase:
    """A part of the schedule: clips of this many frames for this many steps."""

    frames: int
    steps: int


@dataclass(frozen=True)
class FineTuning:
    """Settings; the defaults are the paper's, but for `decay`, whose "none" its config file says
    (the tables' trainings take the default). A config file gives those that differ.

    base: a checkpoint's folder, as `load_generator` takes it, or FRESH for a new small model with
      pixels for latents, whose sizes `fresh` gives (see `new_transformer`). model: what to make of
      it, as GeneratorConfig has it (architecture, positions, references, ...). trainable: one of
      TRAINABLE; what an architecture adds is trained in any case.
    batch: grids per step, over all processes. decay: of the learning rate after its warm-up, one of
      `common.DECAYS`. height, width: pixels. shift: of the flow's time.
    average: decay of the averaged weights, 0 = none. drop_text: share of grids whose prompt is
      left out, so that there is something to guide away from (prompts come with the datasets).
    mixture: settings of `Mixture`. compile, checkpointing: faster, and less memory for more time.
    """

    base: str
    folder: str = "runs/generator"
    fresh: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    trainable: str = "self_attention"
    phases: tuple[Phase, ...] = (Phase(29, 4000), Phase(61, 2000))
    views: int = 8
    height: int = 144
    width: int = 256
    batch: int = 96
    peak_rate: float = 1e-4
    warm_up: int = 500
    decay: str = "cosine"
    weight_decay: float = 0.01
    gradient_limit: float = 1.0
    average: float = 0.999
    shift: float = 3.0
    drop_text: float = 0.1
    mixture: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "bf16"
    checkpointing: bool = True
    compile: bool = False
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 100
    sample_every: int = 500
    sample_steps: int = 8

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def frames_at(self, step: int) -> int:
        """Length of the clips at a step."""
        for phase in self.phases:
            if step < phase.steps:
                return phase.frames
            step -= phase.steps
        return self.phases[-1].frames

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> FineTuning:
        """Raises TrainingError naming what is unknown, absent or of no meaning."""
        unknown = set(settings) - {f.name for f in fields(cls)}
        if unknown:
            raise common.TrainingError(f"unknown settings: {', '.join(sorted(unknown))}")
        if "base" not in settings:
            raise common.TrainingError("base is absent; it names the checkpoint to start from")
        values = dict(settings)
        if "phases" in values:
            values["phases"] = tuple(Phase(**phase) for phase in values["phases"])
        recipe = cls(**values)
        for name, allowed in (
            ("trainable", TRAINABLE),
            ("precision", PRECISIONS),
            ("decay", common.DECAYS),
        ):
            if getattr(recipe, name) not in allowed:
                raise common.TrainingError(
                    f"{name} is {getattr(recipe, name)!r}, must be one of {', '.join(allowed)}"
                )
        return recipe


def new_accelerator(precision: str) -> Any:
    """Accelerate as the launch has it: one process, DDP or FSDP2."""
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=precision)
    if accelerator.is_fsdp2 and precision != "no":
        accelerator.state.fsdp_plugin.mixed_precision_policy = sharded_precision()
    return accelerator


def sharded_precision() -> Any:
    """FSDP2's policy beside autocast: weights travel as bfloat16, gradients are summed in float32.

    What a module is given stays as it is. Cast like the weights, a flow time of 0.7 would become
    one of 0.703 (bfloat16 has 8 bits), and the rotary tables would lose as much.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def choose_parameters(model: ViewTimeTransformer, trainable: str) -> list[torch.nn.Parameter]:
    """Freeze all but the self-attention of each block (and what we added); those that train."""
    for name, parameter in model.named_parameters():
        ours = not name.startswith("transformer.")
        parameter.requires_grad_(ours or trainable == "all" or ".attn1." in name)
    return trained_parameters(model)


def trained_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Those that train now. Sharding (FSDP2) puts new ones in their place: ask again after it."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def clip_gradient(accelerator: Any, wrapped: torch.nn.Module, limit: float) -> Tensor:
    """Clip the gradient of a prepared model to `limit`; its norm before. All processes call it."""
    norm = accelerator.clip_grad_norm_(trained_parameters(wrapped), limit)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of all shards


def batch_of(
    generator: Generator, grids: list[TrainingGrid], texts: Tensor
) -> tuple[Tensor, Conditions]:
    """Clean latents (B, V, T, C, h, w) and their conditions. texts: (B, L, text_dim)."""
    device = generator.device
    clean, given = [], []
    for grid in grids:
        frames = torch.from_numpy(grid.frames).to(device)
        clean.append(generator.codec.encode(frames).to(device))
        known_cells = torch.from_numpy(grid.known).to(device)
        given.append(generator.codec.encode_known(frames, known_cells))
    reference, known, exact = (torch.stack(part) for part in zip(*given))
    return torch.stack(clean), Conditions(reference, known, texts, exact=exact)


def train(recipe: FineTuning) -> Path:
    """Train, or go on training, in recipe.folder; the folder of the (averaged) weights.

    Writes train.safetensors (the checkpoint), log.txt, loss.png, sheet.png, weights/.
    Raises TrainingError or GeneratorError where the settings do not fit the checkpoint.
    """
    folder = Path(recipe.folder)
    # Seeds of grids, noise and times are drawn from the step; this one is for fresh layers.
    torch.manual_seed(recipe.seed)
    accelerator = new_accelerator(recipe.precision)
    generator = _open(recipe, accelerator.device)
    mixture = Mixture(**recipe.mixture)
    prompts = Prompts(generator, mixture.prompts())
    model = generator.model.train()
    choose_parameters(model, recipe.trainable)
    if recipe.checkpointing:
        model.transformer.enable_gradient_checkpointing()
    if recipe.compile:
        model.transformer.compile_repeated_blocks(fullgraph=True)
    optimizer = torch.optim.AdamW(
        trained_parameters(model), lr=recipe.peak_rate, betas=(0.9, 0.99),
        weight_decay=recipe.weight_decay,
        # On a GPU the usual one makes copies as big as all that trains.
        fused=accelerator.device.type == "cuda",
    )  # fmt: skip
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    average = common.Average(wrapped, recipe.average) if recipe.average else None
    mine = _share(recipe.batch, accelerator.num_processes, accelerator.process_index)

    checkpoint, start = folder / "train.safetensors", 0
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        start = load_state(checkpoint, wrapped, average, optimizer)
    log = None
    if accelerator.is_main_process:
        common.forget_after(start, folder / "log.txt")
        log = common.Log(folder / "log.txt", recipe.steps, start)
    losses: list[float] = []
    updates = common.Updates()
    for step in range(start, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = common.learning_rate(
                step, peak=recipe.peak_rate, warm_up=recipe.warm_up, steps=recipe.steps,
                decay=recipe.decay,
            )  # fmt: skip
        total = torch.zeros((), device=accelerator.device)
        for place in mine:
            with accelerator.autocast():
                loss = _loss(recipe, generator, wrapped, mixture, prompts, step, place) / len(mine)
            accelerator.backward(loss)
            total += loss.detach()
        norm = clip_gradient(accelerator, wrapped, recipe.gradient_limit)
        loss_of_all = float(accelerator.reduce(total, "mean"))
        sound = updates.sound(norm, step + 1)
        if sound:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if sound:
            losses.append(loss_of_all)
            if average is not None:
                average.update(wrapped, step)

        done = step + 1
        if log is not None and done % recipe.log_every == 0:
            mean = {"loss": sum(losses) / len(losses)} if losses else {}
            log.line(done, {**mean, **updates.skipped(), "gradient": float(norm), "frames":
                            recipe.frames_at(step), "seconds": log.seconds()})  # fmt: skip
            losses = []
        if done % recipe.sample_every == 0 and done < recipe.steps:
            _report(recipe, done, generator, wrapped, average, mixture, accelerator)
        # Last, so that a kill before it has all of this done again.
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            save_state(checkpoint, done, wrapped, average, optimizer,
                       write=accelerator.is_main_process)  # fmt: skip
        accelerator.wait_for_everyone()
    # Also where a training that was killed here goes on with no step left to do.
    trained = max(start, recipe.steps)
    late = torch.tensor(float(weights_step(folder / "weights") != trained))
    if float(accelerator.reduce(late.to(accelerator.device), "sum")):  # all of them, or none
        _report(recipe, trained, generator, wrapped, average, mixture, accelerator)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder / "weights"


def _loss(
    recipe: FineTuning, generator: Generator, wrapped: Any, mixture: Mixture, prompts: Prompts,
    step: int, place: int,
) -> Tensor:  # fmt: skip
    """The loss of one grid: grid `place` of the step's batch, whichever process makes it."""
    number = step * recipe.batch + place
    grid = mixture.grid(
        number, seed=recipe.seed, views=recipe.views, times=recipe.frames_at(step),
        height=recipe.height, width=recipe.width, device=str(generator.device),
    )  # fmt: skip
    drawn_seed = np.random.default_rng((recipe.seed, number, 5)).integers(1 << 62)
    rng = torch.Generator().manual_seed(int(drawn_seed))
    dropped = float(torch.rand((), generator=rng)) < recipe.drop_text
    text = prompts["" if dropped else grid.prompt]
    clean, conditions = batch_of(generator, [grid], text)
    drawn = draw(clean, conditions, rng, recipe.shift)
    velocity = wrapped(drawn.x, drawn.t, conditions)
    return flow_loss(velocity, drawn, conditions)


def _open(recipe: FineTuning, device: torch.device) -> Generator:
    generator = _base(recipe, device)
    config = generator.model.config
    if config.prediction != "velocity":
        raise common.TrainingError(
            f"{recipe.base}: prediction is {config.prediction!r}; this recipe trains velocities"
        )
    rows, columns = generator.frame_multiple
    if recipe.height % rows or recipe.width % columns:
        raise common.TrainingError(
            f"frames of {recipe.width} x {recipe.height} px must be multiples of {columns} x {rows}"
        )
    if isinstance(generator.codec, WanCodec):
        for phase in recipe.phases:
            if (phase.frames - 1) % generator.codec.temporal:
                raise common.TrainingError(
                    f"phases: {phase.frames} frames, must be 1 + {generator.codec.temporal}k"
                )
    # Optimizer and master weights are float32, whatever the checkpoint is kept in.
    generator.model.float()
    return generator


def _base(recipe: FineTuning, device: torch.device) -> Generator:
    """The checkpoint as the recipe wants it, or a new model."""
    if recipe.base == FRESH:
        config = GeneratorConfig.from_dict({"text_tokens": 0, **recipe.model})
        model = ViewTimeTransformer(new_transformer(**recipe.fresh), config)
        return Generator(FRESH, model.to(device), PixelCodec())
    config = GeneratorConfig.from_dict({**_own_config(recipe.base), **recipe.model})
    return load_generator(recipe.base, device=device, config=config)


def _own_config(base: str) -> dict[str, Any]:
    """What the base says of itself; a stock checkpoint says nothing."""
    from viewtime.generator.load import read_config

    values = read_config(Path(base) / "config.json").to_dict()
    return {k: v for k, v in values.items() if v != GeneratorConfig.__dataclass_fields__[k].default}


class Prompts:
    """Embeddings of prompts, all encoded at once: loading the text encoder takes longer than using
    it, and it is as big as the model. Kept on the CPU, without the zeros that follow a prompt."""

    def __init__(self, generator: Generator, prompts: set[str]) -> None:
        self.generator = generator
        self.known: dict[str, Tensor] = {}
        if generator.takes_text:
            assert generator.folder is not None
            wanted = sorted({"", *prompts})
            self.known = dict(zip(wanted, encode_each(generator.folder, wanted, generator.device)))

    def __getitem__(self, prompt: str) -> Tensor:
        """(1, L, text_dim); for a model without a text encoder the same for every prompt."""
        if not self.known:
            return self.generator.encode_text([prompt])
        return filled([self.known[prompt]]).to(self.generator.device)


def _share(batch: int, processes: int, index: int) -> list[int]:
    """Which grids of each batch this process makes. Raises TrainingError when it is none."""
    if batch % processes:
        raise common.TrainingError(
            f"batch is {batch}, must be a multiple of the {processes} processes"
        )
    return list(range(index, batch, processes))


def _report(
    recipe: FineTuning, step: int, generator: Generator, wrapped: Any,
    average: common.Average | None, mixture: Mixture, accelerator: Any,
) -> None:  # fmt: skip
    """weights/, sheet.png and loss.png, with the averaged weights where there are any."""
    folder = Path(recipe.folder)
    if average is not None:
        average.swap(wrapped)
    # Sharded weights have to be gathered by all processes; the first one writes.
    state = accelerator.get_state_dict(wrapped)
    if accelerator.is_main_process:
        write_weights(folder / "weights", generator.model, step, base=generator.folder, state=state)
        write_loss_plot(folder / "log.txt", folder / "loss.png")
        if accelerator.distributed_type != "FSDP":
            write_sample_sheet(
                folder / "sheet.png", generator, mixture, views=recipe.views,
                frames=recipe.phases[0].frames, height=recipe.height, width=recipe.width,
                steps=recipe.sample_steps,
            )  # fmt: skip
            generator.model.train()
    if average is not None:
        average.swap(wrapped)


def main(arguments: list[str]) -> int:
    """`viewtime train generator CONFIG`, where the config names a base."""
    recipe = FineTuning.from_dict(common.read_settings(Path(arguments[0])))
    print(f"training in {recipe.folder}: {asdict(recipe)}", flush=True)
    print(f"weights in {train(recipe)}")
    return 0
