# SPDX-License-Identifier: Apache-2.0
"""The state of a training as one safetensors file, whole or sharded in memory alike.

A file written by one process is read by eight, and the other way round; never a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from viewtime.training.common import Average, TrainingError
from viewtime_formats.atomic import atomic_path

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_FILL = StateDictOptions(full_state_dict=True, strict=False, broadcast_from_rank0=False)


def save_state(
    path: Path,
    step: int,
    module: nn.Module,
    average: Average | None,
    optimizer: Any,
    *,
    write: bool = True,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Gather what trains, its average and the optimizer's moments; write them in one go.

    All processes must call this; only the one with write=True writes. facts: what else the file's
    metadata is to say.
    """
    from safetensors.torch import save_file

    optimizer = getattr(optimizer, "optimizer", optimizer)
    weights: dict[str, Any] = get_model_state_dict(module, options=_WHOLE)
    tensors: dict[str, Any] = {f"model.{_plain(name)}": value for name, value in weights.items()}
    # Whole states are gathered on the first process; the others get empty ones.
    moments: Any = get_optimizer_state_dict(module, optimizer, options=_WHOLE)
    for name, values in moments.get("state", {}).items():
        for moment in MOMENTS:
            tensors[f"optimizer.{moment}.{_plain(name)}"] = torch.as_tensor(values[moment])
    if average is not None:
        for name, value in average.state.items():
            tensors[f"average.{_plain(name)}"] = _whole(value)
    if write:
        with atomic_path(path) as part:
            whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            save_file(whole, part, {"step": str(step), **(facts or {})})


def load_state(path: Path, module: nn.Module, average: Average | None, optimizer: Any) -> int:
    """Fill module, average and optimizer; the steps done.

    What has no moments in the file (all steps so far were skipped, or the parameter had no gradient
    yet) starts fresh, as it would have without the interruption. Raises TrainingError when the file
    is no checkpoint of this module.
    """
    from safetensors import SafetensorError, safe_open

    optimizer = getattr(optimizer, "optimizer", optimizer)
    try:
        with safe_open(path, "pt") as file:
            step = int((file.metadata() or {})["step"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        names = [n for n, p in module.named_parameters() if p.requires_grad]
        prefix = {_plain(name): name for name in names}
        weights = {prefix[n]: tensors[f"model.{n}"] for n in prefix}
        set_model_state_dict(module, weights, options=_FILL)
        # What never had a gradient (text that nobody gives) has no moments.
        moved = [n for n in prefix if f"optimizer.step.{n}" in tensors]
        state = {
            prefix[n]: {moment: tensors[f"optimizer.{moment}.{n}"] for moment in MOMENTS}
            for n in moved
        }
        if state:
            _fill_optimizer(module, optimizer, state)
        parameters = dict(module.named_parameters())
        for name in set(prefix) - set(moved):  # filling gave it moments of zero
            optimizer.state.pop(parameters[prefix[name]], None)
        if average is not None:
            for name, value in average.state.items():
                _fill(value, tensors[f"average.{_plain(name)}"])
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise TrainingError(f"{path}: not a checkpoint of this model: {error}") from error
    return step


def seconds_taken(path: Path) -> float:
    """What the file's metadata says of how long the training took so far; 0 where it does not."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return float((file.metadata() or {}).get("seconds", 0.0))


def _fill_optimizer(module: nn.Module, optimizer: Any, state: dict[str, dict[str, Tensor]]) -> None:
    mine: Any = get_optimizer_state_dict(module, optimizer)
    whole: Any = {"state": state, "param_groups": mine["param_groups"]}
    set_optimizer_state_dict(module, optimizer, whole, options=_FILL)


def _plain(name: str) -> str:
    """A parameter's name without what DDP and torch.compile put into it."""
    return name.removeprefix("module.").replace("_orig_mod.", "")


def _whole(value: Any) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def _fill(value: Any, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be a shard of it."""
    if hasattr(value, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        whole = distribute_tensor(whole.to(value.device), value.device_mesh, value.placements)
    value.copy_(whole)
