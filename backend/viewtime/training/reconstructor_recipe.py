# SPDX-License-Identifier: Apache-2.0
"""Settings of the reconstructor's training in stages (paper, section 3.2 and appendix C), checked.

Numbers and names only: it draws no scene and trains nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.training.common import TrainingError

FRESH = "fresh"
STAGES = ("geometry", "static", "dynamic")
TRAINS = ("all", "head", "temporal")
"""Everything; the Gaussian head; the temporal layers and the Gaussian head."""
USUAL = {"geometry": "all", "static": "head", "dynamic": "temporal"}
KINDS = ("scenes", "objects", "tracks")
"""Made scenes: solids on a ground seen along a wide arc, solids before white, solids on a ground
seen along a short path."""
PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Stage:
    """A part of the training, which starts from the weights of the one before.

    kind: "geometry" learns depth, sky and cameras from made scenes, for a model that starts from
      nothing; "static" learns Gaussians of still scenes; "dynamic" of moving and still ones.
    trains: one of TRAINS; "" means what the paper trains in this kind of stage.
    batch: scenes per step and process (geometry: frames of full size, about). at_once: how many of
      them go through the model together; 0 is all.
    minutes: the stage ends after so many, if `steps` did not end it, and its learning rate falls
      accordingly. Such a stage depends on the clock; one without is the same however often it is
      stopped.
    views, times, novel: source views, timesteps, and target cameras per scene. own: how many of the
      source views are targets too, seen by their predicted cameras.
    still: share of still scenes in a dynamic stage; below 0 all of `static` and `dynamic` count
      alike, as in the paper. rays: share of steps whose cameras are given to the model.
    geometry: weight of the losses of depth, sky and cameras beside the pictures', where the truth
      is known; 0 in the paper.
    """

    kind: str
    steps: int
    trains: str = ""
    batch: int = 1
    at_once: int = 0
    peak_rate: float = 2e-4
    warm_up: int = 100
    minutes: float = math.inf
    views: int = 4
    times: int = 1
    novel: int = 4
    own: int = 0
    still: float = -1.0
    rays: float = 0.0
    geometry: float = 0.0

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, STAGES)
        object.__setattr__(self, "trains", self.trains or USUAL[self.kind])
        _one_of("trains", self.trains, TRAINS)
        least = {
            "steps": 1, "batch": 1, "at_once": 0, "warm_up": 0, "views": 2, "novel": 1, "own": 0,
            "times": 2 if self.kind == "dynamic" else 1,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise TrainingError(
                    f"{self.kind} stage: {name} is {value!r}, must be {low} or more"
                )
        if self.own > self.views:
            raise TrainingError(
                f"{self.kind} stage: own is {self.own}, must be at most views, {self.views}"
            )
        if self.kind == "static" and self.times != 1:
            raise TrainingError(f"static stage: times is {self.times}, must be 1")
        for name, lowest, highest in (
            ("peak_rate", 0.0, math.inf), ("geometry", 0.0, math.inf), ("rays", 0.0, 1.0),
            ("still", -math.inf, 1.0), ("minutes", 1e-9, math.inf),
        ):  # fmt: skip
            if not lowest <= getattr(self, name) <= highest:
                raise TrainingError(
                    f"{self.kind} stage: {name} is {getattr(self, name)!r}, "
                    f"must be {lowest:g} to {highest:g}"
                )


@dataclass(frozen=True)
class Recipe:
    """The whole training; the defaults are the paper's where it says something.

    base: what `load_reconstructor` takes, or FRESH for a small model whose sizes `model` gives.
    model: for FRESH the fields of ReconstructorConfig, else those that a checkpoint may change
      (temporal, gaussian_head, replace_cameras, ...: the ablations of Table 8 among them).
    static, dynamic: where scenes come from, each one of KINDS or a dataset's folder
      (`viewtime.data.readers`); all of a list are drawn alike (Table S5 has lists of one).
    height, width: pixels of frames and pictures. lpips: safetensors file with the weights of LPIPS
      (VGG); without it a distance of gradients stands in. perceptual: its weight beside MSE.
    average: decay of the averaged weights, 0 = none. beside: draw scenes in another process.
    read_back: where a model was given its cameras, train and judge the ones that it reads back from
      its camera tokens all the same, for comparisons too short to learn cameras from pictures.
    """

    folder: str
    stages: tuple[Stage, ...]
    base: str = FRESH
    model: Mapping[str, Any] = field(default_factory=dict)
    static: tuple[str, ...] = KINDS
    dynamic: tuple[str, ...] = ("scenes", "objects")
    height: int = 96
    width: int = 96
    lpips: str = ""
    perceptual: float = 0.25
    weight_decay: float = 0.05
    gradient_limit: float = 1.0
    average: float = 0.999
    precision: str = "bf16"
    checkpointing: bool = False
    beside: bool = False
    read_back: bool = False
    seed: int = 0
    held_out: int = 4
    log_every: int = 20
    checkpoint_every: int = 500
    sample_every: int = 2000

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Recipe:
        """Raises TrainingError naming what is unknown, absent or of no meaning."""
        values = _known(cls, settings, "settings")
        for name in ("folder", "stages"):
            if not values.get(name):
                raise TrainingError(f"{name} is absent")
        stages = []
        for number, stage in enumerate(values["stages"], 1):
            found = _known(Stage, stage, f"settings of stage {number}")
            for name in ("kind", "steps"):
                if name not in found:
                    raise TrainingError(f"stage {number}: {name} is absent")
            stages.append(Stage(**found))
        values["stages"] = tuple(stages)
        recipe = cls(**values)
        _one_of("precision", recipe.precision, PRECISIONS)
        for name in ("static", "dynamic"):
            object.__setattr__(recipe, name, tuple(getattr(recipe, name)))
            if not getattr(recipe, name) and not (name == "dynamic" and not recipe.has("dynamic")):
                raise TrainingError(f"{name} is empty; one of {', '.join(KINDS)} or a folder")
            for source in getattr(recipe, name):
                if source not in KINDS and not Path(source).exists():
                    raise TrainingError(
                        f"{name}: {source!r} must be one of {', '.join(KINDS)}, "
                        "or a folder that is there"
                    )
        if recipe.lpips and not Path(recipe.lpips).is_file():
            raise TrainingError(f"lpips: there is no file {recipe.lpips!r}")
        if any(s.kind == "geometry" for s in recipe.stages[1:]):
            raise TrainingError("stages: a geometry stage comes first")
        return recipe

    def has(self, kind: str) -> bool:
        """Whether any stage is of this kind."""
        return any(stage.kind == kind for stage in self.stages)

    def check_model(self, config: ReconstructorConfig) -> None:
        """Raises TrainingError where the stages ask for what the model has not."""
        for name in ("height", "width"):
            if getattr(self, name) % config.patch:
                raise TrainingError(
                    f"{name} is {getattr(self, name)}, must be a multiple of {config.patch} px"
                )
        renders = self.has("static") or self.has("dynamic")
        if renders and config.gaussian_head != "residual":
            raise TrainingError(
                f'model: gaussian_head is {config.gaussian_head!r}, must be "residual"'
            )
        if self.has("geometry") and config.patch != 8:
            raise TrainingError(f"model: patch is {config.patch}; the geometry stage needs 8")
        if any(stage.rays > 0 for stage in self.stages) and not config.rays:
            raise TrainingError("rays is above 0, but the model takes none (model: rays)")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they may stand in a file."""
        values = dataclasses.asdict(self)
        for stage in values["stages"]:
            if math.isinf(stage["minutes"]):
                del stage["minutes"]
        return values


def _known(kind: type, settings: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        raise TrainingError(f"{what}: {settings!r}, must be names and values")
    unknown = set(settings) - {f.name for f in fields(kind)}
    if unknown:
        raise TrainingError(f"unknown {what}: {', '.join(sorted(unknown))}")
    return dict(settings)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise TrainingError(f"{name} is {value!r}, must be one of {', '.join(allowed)}")
