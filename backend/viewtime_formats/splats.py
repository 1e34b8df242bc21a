# SPDX-License-Identifier: Apache-2.0
"""SplatSequence: Gaussians for T timesteps in a folder that can be scrubbed while it is written.

Each step and each sequence.json appears whole or not at all; a reader never sees half of one and
never loads more than the step it asked for.
"""

from __future__ import annotations

import math
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .atomic import write_json, writing_failed
from .errors import SequenceError
from .fields import Fields, inside, read_json
from .gaussians import MAX_SH_DEGREE, Gaussians
from .rig import Rig, read_rig, write_rig
from .safetensors_io import file_sha256, map_tensors, write_tensors

FORMAT = "viewtime.splats"
MAX_TIMES = 100_000
MAX_FRAME = 10_000_000
_NAMES = ("means", "scales", "rotations", "opacities", "sh")
_STEP_FILE = re.compile(r"step\.\d{4,}\.safetensors")


@dataclass(frozen=True, eq=False)
class Step:
    """What sequence.json says of one written timestep. bounds: (2, 3) or None without Gaussians."""

    time: int
    file: str
    count: int
    sha256: str
    bounds: NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class SplatSequence:
    """A SplatSequence as it was when it was read; read_sequence again to see newer steps.

    times: T. Frame of timestep t: frame_start + t * frame_step, at `fps`.
    bounds: (2, 3) over the centres of all written steps, or None. background: (3,) sRGB or None.
    steps: the written timesteps, in order of time; some may be missing while a job runs.
    """

    folder: Path
    id: str
    times: int
    fps: float
    frame_start: int
    frame_step: int
    sh_degree: int
    complete: bool
    bounds: NDArray[np.float64] | None
    background: NDArray[np.float64] | None
    world: str
    provenance: dict[str, Any]
    rig: Rig | None
    steps: tuple[Step, ...]

    @cached_property
    def _by_time(self) -> dict[int, Step]:
        return {step.time: step for step in self.steps}

    def entry(self, time: int) -> Step | None:
        """What is known of one timestep, or None while it is not written."""
        return self._by_time.get(time)

    def has_step(self, time: int) -> bool:
        """Whether timestep `time` is written and its file is there."""
        entry = self.entry(time)
        return entry is not None and (self.folder / entry.file).is_file()

    def step(self, time: int, verify: bool = False) -> Gaussians:
        """The Gaussians of one timestep, memory-mapped: native float32, read only, read on touch.

        verify: also read everything, compare the sha256 and check every value.
        Raises SequenceError when the step is not written yet, truncated, or not what
        sequence.json says.
        """
        entry = self.entry(time)
        if entry is None:
            written = f"{len(self.steps)} of {self.times}"
            raise SequenceError(f"{self.folder}: timestep {time} is not written ({written} are)")
        path = self.folder / entry.file
        tensors = map_tensors(path)
        missing = [name for name in _NAMES if name not in tensors]
        if missing:
            raise SequenceError(f"{path}: holds no tensor {missing[0]!r}; write the step again")
        gaussians = Gaussians(*(tensors[name] for name in _NAMES))
        gaussians.check_shapes(str(path))
        if len(gaussians) != entry.count or gaussians.sh_degree != self.sh_degree:
            raise SequenceError(
                f"{path}: {len(gaussians)} Gaussians of degree {gaussians.sh_degree}; "
                f"sequence.json says {entry.count} of degree {self.sh_degree}"
            )
        if verify:
            if file_sha256(path) != entry.sha256:
                raise SequenceError(f"{path}: its sha256 is not the one in sequence.json")
            gaussians.validate(str(path))
        return gaussians

    def step_for_frame(self, frame: float) -> int:
        """The timestep shown at a frame: held until the next one, clamped at both ends."""
        step = math.floor((frame - self.frame_start) / self.frame_step)
        return min(max(step, 0), self.times - 1)


def read_sequence(folder: str | os.PathLike[str]) -> SplatSequence:
    """Read sequence.json (and rig.json). Steps are opened later, one by one, by `.step`.

    Raises SequenceError, or RigError for a broken rig.json.
    """
    folder = Path(folder)
    fields = read_json(folder / "sequence.json", SequenceError, format_name=FORMAT)
    times = fields.integer("times", 1, MAX_TIMES)
    steps: dict[int, Step] = {}
    for index, item in enumerate(fields.sequence("steps", times)):
        step = _read_step(folder, Fields(item, f"{fields.where}: steps[{index}]", SequenceError))
        if step.time >= times or step.time in steps:
            raise SequenceError(
                f"{fields.where}: steps[{index}].time is {step.time}; "
                f"each of 0 to {times - 1} may occur once"
            )
        steps[step.time] = step
    complete = fields.boolean("complete")
    if complete and len(steps) != times:
        fields.fail("complete", f"but only {len(steps)} of {times} steps are listed")
    provenance = fields.obj.get("provenance", {})
    if not isinstance(provenance, dict):
        fields.fail("provenance", "an object is needed")
    rig_path = folder / "rig.json"
    return SplatSequence(
        folder=folder,
        id=fields.text("id", limit=200),
        times=times,
        fps=fields.number("fps", 1e-3, 1e6),
        frame_start=fields.integer("frame_start", -MAX_FRAME, MAX_FRAME),
        frame_step=fields.integer("frame_step", 1, MAX_FRAME),
        sh_degree=fields.integer("sh_degree", 0, MAX_SH_DEGREE),
        complete=complete,
        bounds=fields.optional_array("bounds", (2, 3)),
        background=fields.optional_array("background", (3,)),
        world=fields.text("world", "blender", limit=1000),
        provenance=provenance,
        rig=read_rig(rig_path) if rig_path.exists() else None,
        steps=tuple(steps[time] for time in sorted(steps)),
    )


class SequenceWriter:
    """Writes a SplatSequence step by step; leave it as a context manager.

    Entering makes the folder (an older sequence in it is begun anew) and an empty sequence.json.
    A clean exit with all T timesteps written says ``complete: true``; an exception says false.
    rig: written as rig.json. background: (3,) display sRGB. provenance: JSON-able facts.
    Raises SequenceError for wrong arguments and Gaussians, ViewtimeError when the disk refuses.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        times: int,
        fps: float,
        frame_start: int,
        frame_step: int,
        rig: Rig | None = None,
        background: Any = None,
        world: str = "blender",
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.rig = rig
        self._entries: dict[int, dict[str, Any]] = {}
        self._obj: dict[str, Any] = {
            "format": FORMAT,
            "version": 1,
            "id": uuid.uuid4().hex,
            "times": times,
            "fps": float(fps),
            "frame_start": frame_start,
            "frame_step": frame_step,
            "sh_degree": 0,
            "complete": False,
            "bounds": None,
            "background": None if background is None else [float(c) for c in background],
            "world": world,
            "provenance": dict(provenance or {}),
            "steps": [],
        }
        fields = Fields(self._obj, f"{self.folder}/sequence.json", SequenceError)
        fields.integer("times", 1, MAX_TIMES)
        fields.number("fps", 1e-3, 1e6)
        fields.integer("frame_start", -MAX_FRAME, MAX_FRAME)
        fields.integer("frame_step", 1, MAX_FRAME)
        fields.optional_array("background", (3,))
        self._begin()

    @property
    def id(self) -> str:
        """The new sequence's identity, uuid4 as hex."""
        return self._obj["id"]

    def __enter__(self) -> SequenceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def write_step(self, time: int, gaussians: Gaussians) -> None:
        """Write one timestep, then a sequence.json that lists it. The order of times is free."""
        where = f"{self.folder}: timestep {time}"
        if not 0 <= time < self._obj["times"]:
            last = self._obj["times"] - 1
            raise SequenceError(f"{where} is outside the sequence; 0 to {last} is needed")
        gaussians.validate(where)
        if self._entries and gaussians.sh_degree != self._obj["sh_degree"]:
            has, need = gaussians.sh_degree, self._obj["sh_degree"]
            raise SequenceError(f"{where} has SH degree {has}; the earlier steps have {need}")
        name = f"step.{time:04d}.safetensors"
        tensors = {key: getattr(gaussians, key) for key in _NAMES}
        digest = write_tensors(self.folder / name, tensors)
        bounds = gaussians.bounds().astype(float).tolist() if len(gaussians) else None
        self._obj["sh_degree"] = gaussians.sh_degree
        self._entries[time] = {
            "time": time,
            "file": name,
            "count": len(gaussians),
            "sha256": digest,
            "bounds": bounds,
        }
        self._write()

    def close(self) -> None:
        """Say that nothing more comes: complete when all T timesteps are there."""
        self._obj["complete"] = len(self._entries) == self._obj["times"]
        self._write()

    def _begin(self) -> None:
        stale: list[Path] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / "sequence.json").exists():
                stale = [p for p in self.folder.iterdir() if _STEP_FILE.fullmatch(p.name)]
        except OSError as error:
            raise writing_failed(self.folder, error) from error
        self._write()  # the old steps leave the list before they leave the disk
        try:
            for path in stale:
                path.unlink()
            if self.rig is None:
                (self.folder / "rig.json").unlink(missing_ok=True)
        except OSError as error:
            raise writing_failed(self.folder, error) from error
        if self.rig is not None:
            write_rig(self.folder / "rig.json", self.rig)

    def _write(self) -> None:
        entries = [self._entries[time] for time in sorted(self._entries)]
        boxes = np.array([e["bounds"] for e in entries if e["bounds"] is not None])
        if len(boxes):
            low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
            self._obj["bounds"] = [low.tolist(), high.tolist()]
        self._obj["steps"] = entries
        try:
            write_json(self.folder / "sequence.json", self._obj)
        except (TypeError, ValueError) as problem:
            raise SequenceError(f"{self.folder}: provenance is not JSON ({problem})") from None


def _read_step(folder: Path, fields: Fields) -> Step:
    path = inside(folder, fields.obj.get("file"), f"{fields.where}.file", SequenceError)
    return Step(
        time=fields.integer("time", 0, MAX_TIMES),
        file=path.relative_to(folder).as_posix(),
        count=fields.integer("count", 0, 1 << 40),
        sha256=fields.text("sha256", limit=64),
        bounds=fields.optional_array("bounds", (2, 3)),
    )
