# SPDX-License-Identifier: Apache-2.0
"""How a generator is run where nothing is said of it, by the JSON files of its own folder.

It reads no weights, never imports torch, and never raises: loading tells what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewtime.models.bundled import ModelError
from viewtime.models.download import RECORD
from viewtime.models.local import generator_folder
from viewtime.models.open_weights import find
from viewtime.options import GENERATED_SIZE, RunOptions

VAE_SIZE = 480
VAE_STEPS = 50
"""Height and steps of a checkpoint with a VAE, as diffusers' WanPipeline has them."""
SCHEDULERS = {"UniPCMultistepScheduler": "unipc", "FlowMatchEulerDiscreteScheduler": "euler"}
"""What our solvers are called in a scheduler_config.json."""


@dataclass(frozen=True)
class Defaults:
    """size: height in pixels. steps, solver, shift: see `viewtime.generator.sampler`.
    steps_with_prior: the most steps that do good when there is a prior, 0 = any number. columns:
    what the width of frames must be a multiple of.

    As they stand here: of the bundled model, and of small ones like it."""

    size: int = GENERATED_SIZE
    steps: int = 4
    solver: str = "euler"
    shift: float = 1.0
    steps_with_prior: int = 0
    columns: int = 1


def generator_defaults(name: str) -> Defaults:
    """Those of a generator, by its name as `generator_folder` takes it."""
    try:
        folder = generator_folder(name)
    except ModelError:
        return Defaults()
    found = _of_scheduler(_read(folder / "scheduler" / "scheduler_config.json"))
    found["columns"] = _columns(folder)
    if (folder / "vae").is_dir():
        card = find(name) or find(str(_read(folder / RECORD).get("repo")))
        height = card.height if card is not None else 0
        found.update(size=height or VAE_SIZE, steps=VAE_STEPS)
    most: Any = _read(folder / "config.json").get("steps_with_prior")
    if _is_number(most):
        found["steps_with_prior"] = int(most)
    return Defaults(**found)


def settled(options: RunOptions) -> RunOptions:
    """The options, with what they leave to the generator as the generator has it."""
    defaults = dataclasses.asdict(generator_defaults(options.generator))
    names = ("size", "steps", "solver", "shift")
    left = {name: defaults[name] for name in names if getattr(options, name) is None}
    return dataclasses.replace(options, **left)


def _of_scheduler(values: dict[str, Any]) -> dict[str, Any]:
    """solver and shift of the scheduler that a checkpoint comes with, where we have it."""
    solver = SCHEDULERS.get(str(values.get("_class_name")))
    if solver is None:
        return {}
    shift: Any = values.get("flow_shift" if solver == "unipc" else "shift")
    known = _is_number(shift) and 0 < shift <= 100
    return {"solver": solver, "shift": float(shift)} if known else {"solver": solver}


def _columns(folder: Path) -> int:
    """As Generator.frame_multiple has it, without the weights."""
    try:
        patch = int(_read(folder / "transformer" / "config.json")["patch_size"][-1])
        vae = folder / "vae"
        pixels = _read(vae / "config.json").get("scale_factor_spatial") or 8
        return max(patch * (int(pixels) if vae.is_dir() else 1), 1)
    except (KeyError, IndexError, TypeError, ValueError):
        return 1


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
