# SPDX-License-Identifier: Apache-2.0
"""Models kept loaded between the runs of one process, on the device that this process may use.
Never holds more than one model of a kind, never loads one before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_warm: dict[str, tuple[Any, Any]] = {}


def warm_generator(name: str) -> Any:
    """A viewtime.generator.Generator. Raises GeneratorError, ModelError."""
    from viewtime.generator import load_generator

    return _kept("generator", name, load_generator)


def warm_reconstructor(name: str) -> Any:
    """A viewtime.reconstructor.model.Reconstructor. Raises ModelError."""
    from viewtime.reconstructor.model import load_reconstructor

    return _kept("reconstructor", name, load_reconstructor)


def _kept(kind: str, name: str, load: Callable[..., Any]) -> Any:
    """The model of this name, kept for the next run; one per kind, so that memory is bounded."""
    import torch

    # Weights that were trained further since the last run are not the same model.
    files = sorted(Path(name).rglob("*.safetensors")) if Path(name).is_dir() else []
    key = name, [(str(path), path.stat().st_mtime_ns) for path in files]
    if kind not in _warm or _warm[kind][0] != key:
        _warm.pop(kind, None)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        _warm[kind] = key, load(name, device=device)
    return _warm[kind][1]
