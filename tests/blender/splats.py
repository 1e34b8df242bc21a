# SPDX-License-Identifier: GPL-3.0-or-later
"""Splats for tests: made by seed, written as sequences, read back from Blender's attributes.
It needs the extension installed (the fixture `viewtime`) and makes no assertions of its own."""

from __future__ import annotations

import importlib
from pathlib import Path

import bpy
import numpy as np


def gaussians(formats, count: int, seed: int, coefficients: int = 1):
    rng = np.random.default_rng(seed)
    rotations = rng.normal(size=(count, 4))
    return formats.Gaussians(
        means=rng.normal(size=(count, 3)).astype(np.float32),
        scales=rng.uniform(0.01, 0.1, (count, 3)).astype(np.float32),
        rotations=(rotations / np.linalg.norm(rotations, axis=1)[:, None]).astype(np.float32),
        opacities=rng.uniform(0.1, 0.9, count).astype(np.float32),
        sh=rng.normal(size=(count, coefficients, 3)).astype(np.float32),
    )


def write_sequence(
    formats,
    folder: Path,
    counts,
    *,
    times=None,
    frame_start=1,
    frame_step=1,
    seed=0,
    coefficients=1,
    order=None,
):
    """A sequence whose step i holds gaussians(counts[i], seed + i)."""
    times = times or len(counts)
    with formats.SequenceWriter(
        folder, times=times, fps=24.0, frame_start=frame_start, frame_step=frame_step
    ) as writer:
        for step in order or range(len(counts)):
            writer.write_step(step, gaussians(formats, counts[step], seed + step, coefficients))
    return folder


def import_sequence(folder: Path) -> bpy.types.Object:
    assert bpy.ops.viewtime.import_sequence(directory=str(folder)) == {"FINISHED"}
    return bpy.context.object


def positions(ob: bpy.types.Object) -> np.ndarray:
    return attribute(ob, "position", "vector", 3)


def attribute(ob: bpy.types.Object, name: str, field: str, width: int) -> np.ndarray:
    values = np.empty(len(ob.data.points) * width, np.float32)
    ob.data.attributes[name].data.foreach_get(field, values)
    return values.reshape(-1, width)


def message(viewtime: str, ob: bpy.types.Object) -> str:
    return importlib.import_module(f"{viewtime}.playback").message(ob)


def truncate(folder: Path, step: int) -> Path:
    path = folder / f"step.{step:04d}.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    return path


def plays(ob: bpy.types.Object, counts: dict[int, int]) -> bool:
    shown = {}
    for frame in counts:
        bpy.context.scene.frame_set(frame)
        shown[frame] = len(ob.data.points)
    return shown == counts
