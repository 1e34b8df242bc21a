# SPDX-License-Identifier: Apache-2.0
"""Source views and target views of a scene to train the reconstructor with, made or from folders.

Every scene is a function of its numbers. It knows the truth and never a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viewtime.data.synthetic import random_rig, random_scene, render_cell
from viewtime.reconstructor.pose import rig_rays
from viewtime.training.common import TrainingError
from viewtime.training.reconstructor_recipe import KINDS, Recipe, Stage
from viewtime_formats.rig import Rig

HELD_OUT_SCENES = 10_000_000
"""Seeds of made scenes from here on are never trained on."""
_TRIES = 16
_MOST_SKIPPED = 3  # the widest step between the frames of a clip from a folder


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes. The world is view 0's camera (OpenCV), the unit is the model's.

    frames (B,T,V,3,H,W), targets (B,T,N,3,H,W) display sRGB in [0,1]; extrinsics (B,V,3,4) and
    intrinsics (B,V,3,3), pixels, of the sources, target_... (B,N,...) of the targets; depth
    (B,T,V,H,W) planar, inf for sky, or None where nobody knows; rays (B,V,6,H,W) of
    pose.rig_rays where the model is to be given the cameras, else None. read_back: whether it then
    is asked for cameras of its own nevertheless (see Recipe).
    """

    frames: Tensor
    targets: Tensor
    extrinsics: Tensor
    intrinsics: Tensor
    target_extrinsics: Tensor
    target_intrinsics: Tensor
    depth: Tensor | None
    rays: Tensor | None
    read_back: bool = False

    @property
    def cameras_known(self) -> bool:
        """Whether the true cameras stand for the model's own."""
        return self.rays is not None and not self.read_back

    def to(self, device: torch.device | str) -> Scenes:
        """The same on a device."""
        return self._each(lambda x: x.to(device))

    def part(self, start: int, stop: int) -> Scenes:
        """Some of the batch."""
        return self._each(lambda x: x[start:stop])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Scenes:
        values: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            values[f.name] = change(value) if isinstance(value, Tensor) else value
        return Scenes(**values)


def stage_scenes(
    recipe: Recipe, stage: Stage, number: int, step: int, process: int = 0, processes: int = 1,
    device: torch.device | str = "cpu",
) -> Scenes:  # fmt: skip
    """What a process sees at a step of stage `number`. On CUDA made scenes are cast there."""
    with_rays = np.random.default_rng((recipe.seed, number, step, 11)).random() < stage.rays
    first = (step * processes + process) * stage.batch
    return draw_scenes(
        recipe, stage, [(recipe.seed, number, first + n) for n in range(stage.batch)],
        with_rays=bool(with_rays), device=device,
    )  # fmt: skip


def held_out_scenes(
    recipe: Recipe, stage: Stage, scene: int, *, kind: str = "scenes", with_rays: bool = False
) -> Scenes:
    """One made scene that nothing was trained on, seen as a stage sees its scenes."""
    made = replace(recipe, static=(kind,), dynamic=(kind,))
    return draw_scenes(
        made, stage, [(0, 0, scene)], with_rays=with_rays, held_out=True,
        still=stage.kind != "dynamic",
    )  # fmt: skip


def draw_scenes(
    recipe: Recipe,
    stage: Stage,
    numbers: Sequence[tuple[int, ...]],
    *,
    with_rays: bool = False,
    held_out: bool = False,
    still: bool | None = None,
    device: torch.device | str = "cpu",
) -> Scenes:
    """The scenes of some numbers, one batch.

    still: whether they stand still; None lets the stage's shares decide. A still scene of a dynamic
    stage is repeated in time, so that training on it forgets nothing and learns to stand still.
    Raises TrainingError or CaptureError, naming the folder, where a dataset has not what is needed.
    """
    rows = []
    for number in numbers:
        rng = np.random.default_rng((*number, 13))
        source, stands = _source(recipe, stage, rng)
        stands = stands if still is None else still
        count = 1 if stands else stage.times
        views = stage.views + stage.novel
        if source in KINDS:
            scene = int(rng.integers(HELD_OUT_SCENES)) + (HELD_OUT_SCENES if held_out else 0)
            frames, depth, rig = _made(source, scene, rng, views, count, recipe, stands, device)
        else:
            frames, depth, rig = _read(source, rng, views, count, recipe)
        rows.append(_row(frames, depth, rig, rng, stage, with_rays))
    if with_rays and any(row.rays is None for row in rows):
        # Cameras that look at nothing common have no unit of their own: then nobody is given any.
        return draw_scenes(recipe, stage, numbers, held_out=held_out, still=still, device=device)
    if any(row.depth is None for row in rows):
        rows = [replace(row, depth=None) for row in rows]
    batch: dict[str, Any] = {}
    for f in fields(Scenes):
        parts = [getattr(row, f.name) for row in rows]
        batch[f.name] = torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
    return replace(Scenes(**batch), read_back=recipe.read_back)


def _source(recipe: Recipe, stage: Stage, rng: np.random.Generator) -> tuple[str, bool]:
    """Where the next scene comes from, and whether it stands still."""
    if stage.kind != "dynamic":
        return str(rng.choice(recipe.static)), True
    count = len(recipe.static)
    share = count / (count + len(recipe.dynamic)) if stage.still < 0 else stage.still
    stands = bool(rng.random() < share)
    return str(rng.choice(recipe.static if stands else recipe.dynamic)), stands


def _made(
    kind: str, seed: int, rng: np.random.Generator, views: int, times: int, recipe: Recipe,
    still: bool, device: torch.device | str,
) -> tuple[Tensor, Tensor | None, Rig]:  # fmt: skip
    """Frames (V,T,3,H,W), depth (V,T,H,W) and the rig of a made scene."""
    scene = random_scene(seed, still=still, ground=kind != "objects")
    degrees = (8.0, 25.0) if kind == "tracks" else (40.0, 110.0)
    rig = random_rig(seed, scene, views, recipe.width, recipe.height, degrees=degrees)
    step = float(rng.uniform(0.5, 4.0))
    moments = [t * step for t in range(times)]
    if torch.device(device).type == "cuda":
        from viewtime.data.raycast_torch import render_grid

        return *render_grid(scene, rig, moments, device=device), rig
    frames = torch.empty(views, times, 3, recipe.height, recipe.width)
    depth = torch.empty(views, times, recipe.height, recipe.width)
    for v, camera in enumerate(rig.cameras):
        for t, moment in enumerate(moments):
            rgb, z = render_cell(scene, camera, moment)
            frames[v, t] = torch.from_numpy(rgb).permute(2, 0, 1)
            depth[v, t] = torch.from_numpy(z)
    return frames, depth, rig


def _read(
    folder: str, rng: np.random.Generator, views: int, times: int, recipe: Recipe
) -> tuple[Tensor, Tensor | None, Rig]:
    """The same of a random scene below a folder: a run of its views and of its times."""
    from viewtime.data.readers import read_scene, scenes_in
    from viewtime.data.readers.scene import read_views

    scenes = scenes_in(folder)
    largest = (0, 0)
    for n in rng.permutation(len(scenes))[:_TRIES]:
        found = read_views(scenes[n])
        length = min((view.length() for view in found), default=0)
        if len(found) >= views and length >= times:
            grid, rig = read_scene(
                scenes[n], views=_run(rng, len(found), views, len(found)),
                times=_run(rng, length, times, _MOST_SKIPPED),
                height=recipe.height, width=recipe.width,
            )  # fmt: skip
            if rig is None:
                raise TrainingError(f"{scenes[n]}: has no cameras, which novel views need")
            depth = None if grid.depth is None else torch.from_numpy(grid.depth)
            return torch.from_numpy(grid.frames), depth, rig
        largest = max(largest, (len(found), length))
    raise TrainingError(
        f"{folder}: no scene of {min(len(scenes), _TRIES)} tried has {views} views x {times} "
        f"times; one has {largest[0]} x {largest[1]}"
    )


def _run(rng: np.random.Generator, have: int, need: int, most: int) -> list[int]:
    """`need` numbers below `have`, evenly spaced by at most `most`."""
    step = 1 if need < 2 else int(rng.integers(1, min(most, (have - 1) // (need - 1)) + 1))
    first = int(rng.integers(have - step * (need - 1)))
    return [first + step * n for n in range(need)]


def _row(
    frames: Tensor, depth: Tensor | None, rig: Rig, rng: np.random.Generator, stage: Stage,
    with_rays: bool,
) -> Scenes:  # fmt: skip
    """A scene's views as sources and targets, in view 0's frame, a batch of one.

    The first and last views are sources, so that targets lie between; the order is turned around
    at random, so that view 0 may be either end.
    """
    total = len(rig.cameras)
    inner = rng.permutation(np.arange(1, total - 1))
    sources = np.sort(np.concatenate([[0, total - 1], inner[: stage.views - 2]]))
    targets = np.sort(inner[stage.views - 2 :])
    if rng.random() < 0.5:
        sources = sources[::-1]
    height, width = frames.shape[-2:]
    given = Rig(tuple(rig.cameras[i] for i in sources), world=rig.world)
    reference = given.cameras[0].world_from_camera
    poses = np.stack([camera.camera_from_world @ reference for camera in rig.cameras])
    lenses = np.stack([camera.intrinsics for camera in rig.cameras])

    found = rig_rays(given, width, height) if with_rays else None
    seen = None if depth is None else depth[sources.copy()]
    unit = found.unit if found is not None else _unit(seen, poses)
    poses[:, :, 3] /= unit
    repeat = stage.times // frames.shape[1]

    def cells(values: Tensor, which: np.ndarray) -> Tensor:
        return values[which.copy()].transpose(0, 1).repeat(repeat, *[1] * (values.ndim - 1))[None]

    def cameras(values: np.ndarray, which: np.ndarray) -> Tensor:
        return torch.from_numpy(values[which].astype(np.float32))[None].to(frames.device)

    return Scenes(
        cells(frames, sources),
        cells(frames, targets),
        cameras(poses, sources),
        cameras(lenses, sources),
        cameras(poses, targets),
        cameras(lenses, targets),
        None if depth is None else cells(depth, sources) / unit,
        None if found is None else torch.from_numpy(found.rays)[None].to(frames.device),
    )


def _unit(depth: Tensor | None, poses: np.ndarray) -> float:
    """The mean distance of what view 0 sees at first, distances counted up to three times their
    median; without depth, how far apart the cameras are. 1 where neither says anything."""
    if depth is not None:
        z = depth[0, 0][torch.isfinite(depth[0, 0])]
        z = z if len(z) else depth[torch.isfinite(depth)]
        if len(z):
            return float(z.clamp(max=3.0 * float(z.median())).mean())
    centres = -np.einsum("vji,vj->vi", poses[:, :, :3], poses[:, :, 3])
    apart = float(np.linalg.norm(centres - centres.mean(0), axis=1).mean())
    return apart if apart > 0 else 1.0
