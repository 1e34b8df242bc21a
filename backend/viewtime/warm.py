# SPDX-License-Identifier: Apache-2.0
"""Models kept loaded between the runs of one process, on the device that this process may use.
Never holds more than one model of a kind, never loads one before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from viewtime.options import OptionError

_warm: dict[str, tuple[Any, Any]] = {}


def warm_generator(
    name: str,
    device: str = "auto",
    *,
    offload: str = "none",
    compile: bool = False,
    cache: float | None = None,
    references: str | None = None,
    memory_budget_gb: float | None = None,
) -> Any:
    """A viewtime.generator.Generator, as these of RunOptions ask for it.

    Offloading, compiling and how references enter stay with a model for good: one that was kept
    with other choices is loaded anew. The cache over the steps and the VAE's memory are set for
    each run.
    Raises GeneratorError, ModelError, OptionError.
    """
    from viewtime.generator.speed import set_cache

    def load(name: str, *, device: str) -> Any:
        import torch

        from viewtime.generator import load_generator
        from viewtime.generator.speed import compile_blocks
        from viewtime.generator.speed import offload as take_off

        waiting = None if offload == "none" else "cpu"
        generator = load_generator(name, device=device, weights_on=waiting, references=references)
        if compile:
            compile_blocks(generator)  # first, so that what offloading hooks in stays outside
        return take_off(generator, offload, torch.device(device))

    device = resolved(device)
    if offload != "none" and not device.startswith("cuda"):
        raise OptionError(
            f"offload is {offload!r}, but the generator runs on the CPU, where its weights are "
            'anyway; "none" is needed, or a CUDA GPU'
        )
    generator = _kept("generator", name, device, load, offload, compile, references)
    set_cache(generator, cache)
    generator.codec.limit(None if memory_budget_gb is None else int(1e9 * memory_budget_gb))
    return generator


def warm_reconstructor(name: str, device: str = "auto") -> Any:
    """A viewtime.reconstructor.model.Reconstructor. Raises ModelError, OptionError."""
    from viewtime.reconstructor.load import load_reconstructor

    return _kept("reconstructor", name, resolved(device), load_reconstructor)


def resolved(device: str) -> str:
    """What "auto" is here. Raises OptionError for a GPU that torch does not find."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise OptionError(f"device is {device!r}, but this torch finds no CUDA GPU; choose cpu")
        number = device.removeprefix("cuda").removeprefix(":") or "0"
        if not number.isdigit() or int(number) >= count:
            raise OptionError(
                f"device is {device!r}, but this torch finds cuda:0 to cuda:{count - 1}"
            )
    return device


def _kept(kind: str, name: str, device: str, load: Callable[..., Any], *changes: Hashable) -> Any:
    """The model of this name, kept for the next run; one per kind, so that memory is bounded.

    changes: what is done to it for good when it is loaded.
    """
    # Weights that were trained further since the last run are not the same model.
    files = sorted(Path(name).rglob("*.safetensors")) if Path(name).is_dir() else []
    key = name, device, changes, [(str(path), path.stat().st_mtime_ns) for path in files]
    if kind not in _warm or _warm[kind][0] != key:
        _warm.pop(kind, None)
        _warm[kind] = key, load(name, device=device)
    return _warm[kind][1]
