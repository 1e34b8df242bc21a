# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads sequences and steps from disk into buffers that Blender's foreach_set takes at full speed.
It never touches bpy, and never keeps a step: only the index of each sequence stays in memory.
Steps may be read from any thread; sequences are opened by the main thread alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from viewtime_formats import Gaussians, SequenceError, SplatSequence, read_sequence

# Blender 5.3 stores log scales in 9 bits over the range of the whole cloud: one zero would take
# the precision of all others. A nanometre at a metre per unit is smaller than anything visible.
MINIMUM_SCALE = 1e-9


@dataclass(frozen=True)
class CloudArrays:
    """One step in the attribute layout of Blender's point clouds.

    Every array is C-contiguous native float32: a view whose format says '<f' (a memory map) makes
    foreach_set some 250 times slower.
    """

    position: np.ndarray  # (N, 3)
    scale: np.ndarray  # (N, 3) linear
    rotation: np.ndarray  # (N, 4) wxyz
    base: np.ndarray  # (N, 4) raw SH DC rgb, opacity in [0, 1]
    rest: tuple[np.ndarray, ...]  # K - 1 of (N, 3), coefficient by coefficient

    def __len__(self) -> int:
        return len(self.position)

    @property
    def nbytes(self) -> int:
        return step_bytes(len(self), 1 + len(self.rest))


def step_bytes(count: int, coefficients: int) -> int:
    """Bytes of CloudArrays with `count` Gaussians of `coefficients` (K) per channel."""
    return 4 * count * (3 + 3 + 4 + 4 + 3 * (coefficients - 1))


def _native(array: np.ndarray) -> np.ndarray:
    contiguous = np.ascontiguousarray(array, dtype=np.float32)
    return np.asarray(contiguous).view(np.ndarray).view(np.dtype("f"))


def cloud_arrays(gaussians: Gaussians, *, copy: bool = False) -> CloudArrays:
    """Lay out one step of (N) Gaussians for a point cloud.

    copy: take everything off the memory map, so that nothing is read from the disk later.
    """
    base = np.empty((len(gaussians), 4), np.float32)
    base[:, :3] = gaussians.sh[:, 0]
    base[:, 3] = gaussians.opacities
    take = np.array if copy else np.asarray
    return CloudArrays(
        position=_native(take(gaussians.means)),
        scale=_native(np.maximum(gaussians.scales, np.float32(MINIMUM_SCALE))),
        rotation=_native(take(gaussians.rotations)),
        base=base,
        rest=tuple(_native(gaussians.sh[:, k]) for k in range(1, gaussians.sh.shape[1])),
    )


def read_step(sequence: SplatSequence, step: int, *, copy: bool = False) -> CloudArrays:
    """Step `step` of an opened sequence; raises SequenceError when the file is damaged."""
    try:
        return cloud_arrays(sequence.step(step), copy=copy)
    except OSError as error:
        raise SequenceError(f"step {step} cannot be read: {error}") from error


class SequenceReader:
    """Opens sequences once, and again when a running job has rewritten their index."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[tuple[int, int], SplatSequence]] = {}

    def open(self, folder: Path) -> SplatSequence:
        """The sequence in `folder`.

        Raises SequenceError, with one line to show, when there is none or it does not hold up.
        """
        index = folder / "sequence.json"
        try:
            status = os.stat(index)
        except OSError:
            self._open.pop(folder, None)
            if not folder.is_dir():
                raise SequenceError(f"{folder}: the folder of the sequence is missing") from None
            raise SequenceError(
                f"{folder}: no sequence.json in this folder; choose a folder that Viewtime wrote"
            ) from None
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._open.get(folder)
        if known is None or known[0] != stamp:
            known = (stamp, read_sequence(folder))
            self._open[folder] = known
        return known[1]

    def forget(self) -> None:
        """Close everything (another file was loaded, or the add-on goes)."""
        self._open.clear()
