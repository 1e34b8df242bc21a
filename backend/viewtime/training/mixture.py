# SPDX-License-Identifier: Apache-2.0
"""The paper's mixture of training grids (appendix B): objects, physics, 2D-transformed videos, and
static scenes. Each example is a function of its number; where no dataset is given, all are made.

It decides what a grid shows and which of its cells are references; it never trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from viewtime.data.homography import random_homographies, warp_video
from viewtime.data.synthetic import sample_grid
from viewtime.training.common import TrainingError
from viewtime.training.examples import HELD_OUT_SEED

KINDS = ("objects", "physics", "homography", "static")
PAPER_SHARES = {"objects": 0.4, "physics": 0.2, "homography": 0.2, "static": 0.2}
"""Objaverse, Kubric, 2D-transformed videos, static scenes."""


@dataclass(frozen=True)
class TrainingGrid:
    """frames: (V, T, 3, H, W) float32 in [0, 1]. known: (V, T) bool, its references. kind: one of
    KINDS. prompt: what it shows, "" when nobody said."""

    frames: np.ndarray
    known: np.ndarray
    kind: str
    prompt: str = ""


@dataclass(frozen=True)
class Mixture:
    """shares: of each kind, any positive numbers; a kind that is absent is never drawn.

    references: chances of what is given: both, row (the fixed-view video alone), column (the
      freeze-time video alone), none. Static grids are never given a column: theirs holds the
      answer, and a model that sees it learns to copy (appendix B).
    datasets: folders of real grids per kind, as `viewtime.data.readers` reads them. captions: by
      such a folder, what those of its scenes show that say nothing themselves.
    freeze_anywhere: put the freeze time at any time, not only the first.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: dict(PAPER_SHARES))
    references: Mapping[str, float] = field(
        default_factory=lambda: {"both": 0.5, "row": 0.2, "column": 0.2, "none": 0.1}
    )
    datasets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    reverse: float = 0.5
    freeze_anywhere: bool = False

    def __post_init__(self) -> None:
        _check_shares("shares", self.shares, KINDS)
        _check_shares("references", self.references, ("both", "row", "column", "none"))
        for kind in self.datasets:
            if kind not in KINDS:
                raise TrainingError(f"datasets: {kind!r} must be one of {', '.join(KINDS)}")
        for folder in self.captions:
            if folder not in self._folders():
                raise TrainingError(f"captions: {folder!r} is not one of the datasets")

    def _folders(self) -> list[str]:
        return [folder for folders in self.datasets.values() for folder in folders]

    def prompts(self) -> set[str]:
        """All that grids of this mixture may be said to show, "" (nobody said) among them."""
        from viewtime.data.readers import read_caption, scenes_in

        return {""} | {
            read_caption(scene) or self.captions.get(folder, "")
            for folder in self._folders()
            for scene in scenes_in(folder)
        }

    def grid(
        self, number: int, *, seed: int, views: int, times: int, height: int, width: int,
        device: str = "cpu",
    ) -> TrainingGrid:  # fmt: skip
        """The number-th grid of a training with this seed.

        device: where made scenes are cast; a GPU casts them itself, with the same pictures but
        for rounding.
        """
        rng = np.random.default_rng((seed, number, 3))
        kind = str(rng.choice(list(self.shares), p=_normal(self.shares.values())))
        frames, prompt = self._frames(kind, rng, views, times, height, width, device)
        known = self.draw_references(kind, rng, views, times)
        if rng.random() < self.reverse:  # the order of views says nothing of where they are
            frames, known = frames[::-1], known[::-1]
        return TrainingGrid(np.ascontiguousarray(frames), np.ascontiguousarray(known), kind, prompt)

    def draw_references(
        self, kind: str, rng: np.random.Generator, views: int, times: int
    ) -> np.ndarray:
        """(V, T) bool, the cells that the model is given."""
        choice = str(rng.choice(list(self.references), p=_normal(self.references.values())))
        freeze = int(rng.integers(times)) if self.freeze_anywhere else 0
        known = np.zeros((views, times), bool)
        if choice in ("both", "row"):
            known[0] = True
        if choice in ("both", "column") and kind != "static":
            known[:, freeze] = True
        return known

    def _frames(
        self, kind: str, rng: np.random.Generator, views: int, times: int, height: int,
        width: int, device: str,
    ) -> tuple[np.ndarray, str]:  # fmt: skip
        """A grid of a kind, read or made, and what it is said to show."""
        folders = self.datasets.get(kind, ())
        if folders:
            from viewtime.data.readers import captioned_clip

            folder = folders[int(rng.integers(len(folders)))]
            frames, prompt = captioned_clip(folder, rng, views, times, height, width, kind)
            return frames, prompt or self.captions.get(folder, "")
        return self._made(kind, rng, views, times, height, width, device), ""

    def _made(
        self, kind: str, rng: np.random.Generator, views: int, times: int, height: int,
        width: int, device: str,
    ) -> np.ndarray:  # fmt: skip
        scene, step = draw_scene(rng)

        def cast(views: int, times: int, **settings: Any) -> np.ndarray:
            return _cast(device, scene, views, times, width, height, **settings)

        if kind == "static":
            if views == 1:  # for a video model: a clip along a camera path through a still scene
                return cast(times, 1, still=True).swapaxes(0, 1)
            return np.repeat(cast(views, 1, still=True), times, axis=1)
        if kind == "homography":
            video = cast(1, times, frame_step=step)[0]
            return transformed_video(video.transpose(0, 2, 3, 1), views, scene)
        return cast(views, times, frame_step=step, ground=kind == "physics")


def draw_scene(rng: np.random.Generator) -> tuple[int, float]:
    """Number and frame step of a procedural scene."""
    scene = int(rng.integers(HELD_OUT_SEED))
    return scene, float(np.exp(rng.uniform(np.log(0.5), np.log(3.0))))


def _cast(
    device: str, scene: int, views: int, times: int, width: int, height: int, **settings: Any
) -> np.ndarray:
    """Frames (V, T, 3, H, W) of a procedural scene, cast where the training runs."""
    if device == "cpu":
        return sample_grid(scene, views, times, width, height=height, **settings)[0].frames
    from viewtime.data.raycast_torch import sample_grid_on

    frames, _, _ = sample_grid_on(device, scene, views, times, width, height=height, **settings)
    return frames.float().cpu().numpy()


def transformed_video(video: np.ndarray, views: int, seed: int) -> np.ndarray:
    """A grid (V, T, 3, H, W) of one video (T, H, W, 3), each view under a homography of its own."""
    _, height, width, _ = video.shape
    return warp_video(video, random_homographies(seed, views, width, height))


def _normal(shares: Iterable[float]) -> np.ndarray:
    values = np.array(list(shares), float)
    return values / values.sum()


def _check_shares(name: str, shares: Mapping[str, float], allowed: Sequence[str]) -> None:
    for key, value in shares.items():
        if key not in allowed:
            raise TrainingError(f"{name}: {key!r} must be one of {', '.join(allowed)}")
        if not value >= 0:
            raise TrainingError(f"{name}: {key} is {value}, must be 0 or more")
    if not sum(shares.values()) > 0:
        raise TrainingError(f"{name}: at least one must be above 0")
