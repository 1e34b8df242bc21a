# SPDX-License-Identifier: Apache-2.0
"""Models kept loaded between the runs of one process, on the device that this process may use.
Never holds more than one model of a kind, never loads one before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from viewtime.options import OptionError

_warm: dict[str, tuple[Any, Any]] = {}


def warm_generator(name: str, device: str = "auto") -> Any:
    """A viewtime.generator.Generator. Raises GeneratorError, ModelError, OptionError."""
    from viewtime.generator import load_generator

    return _kept("generator", name, device, load_generator)


def warm_reconstructor(name: str, device: str = "auto") -> Any:
    """A viewtime.reconstructor.model.Reconstructor. Raises ModelError, OptionError."""
    from viewtime.reconstructor.load import load_reconstructor

    return _kept("reconstructor", name, device, load_reconstructor)


def _kept(kind: str, name: str, device: str, load: Callable[..., Any]) -> Any:
    """The model of this name, kept for the next run; one per kind, so that memory is bounded."""
    import torch

    # Weights that were trained further since the last run are not the same model.
    files = sorted(Path(name).rglob("*.safetensors")) if Path(name).is_dir() else []
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise OptionError(f"device is {device!r}, but this torch finds no CUDA GPU; choose cpu")
    key = name, device, [(str(path), path.stat().st_mtime_ns) for path in files]
    if kind not in _warm or _warm[kind][0] != key:
        _warm.pop(kind, None)
        _warm[kind] = key, load(name, device=device)
    return _warm[kind][1]
