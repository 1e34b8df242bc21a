# SPDX-License-Identifier: Apache-2.0
"""The paper's protocols for a reconstructor on real data (section 4.2, Tables 6, 7 and 8): which
views are given, which are asked for, and where the cameras asked for are. Never downloads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from viewtime.evaluation.reconstructor import (
    Score,
    dilation_of,
    mean_score,
    number,
    picture_score,
    pictures,
)  # fmt: skip
from viewtime.evaluation.reconstructor_cameras import camera_errors
from viewtime.grid import FrameGrid
from viewtime.reconstructor.lift import reconstruct
from viewtime.reconstructor.lift_predict import predict
from viewtime.reconstructor.model import Reconstructor
from viewtime_formats.errors import CaptureError
from viewtime_formats.rig import Camera, Rig

__all__ = ["PROTOCOLS", "Protocol", "choose_views", "evaluate_folders", "evaluate_scene", "table"]

PAPER_SIZE = 350 / 518
"""Height over width of the paper's frames."""
PER_CALL = 7
"""Cameras asked for that are predicted at once, after the first input."""


@dataclass(frozen=True)
class Protocol:
    """inputs: numbers of given views, one line of the table each; times: None for one timestep.

    targets: views asked for at most, spread evenly over all that are not given.
    """

    table: str
    inputs: tuple[int, ...]
    times: int | None = None
    targets: int = 16


PROTOCOLS = {
    "colmap": Protocol("6, Tanks & Temples", (4, 16)),
    "llff": Protocol("6, LLFF", (4, 16)),
    "n3dv": Protocol("7, Neural 3D Video", (4,), times=4, targets=1000),
    "kubric": Protocol("8, Kubric", (4,), times=4),
    "nvidia": Protocol("NVIDIA Dynamic Scene", (4,), times=4),
}
"""By the layout of the folder. The paper says how many views are given, and for Neural 3D Video
that the rest is asked for; that they are spread evenly is ours."""
OTHERS = Protocol("calibrated folder", (4,), times=1)


def choose_views(count: int, inputs: int, targets: int) -> tuple[list[int], list[int]]:
    """Given views, spread evenly from the first to the last, and views asked for, spread evenly
    over the rest. Raises CaptureError when none is given or none is left to ask for."""
    if inputs < 1:
        raise CaptureError(f"inputs is {inputs}; 1 or more given views are needed")
    if count <= inputs:
        raise CaptureError(f"{count} views, {inputs} of them given: no view is left to ask for")
    given = [int(v) for v in np.linspace(0, count - 1, inputs).round()]
    rest = [v for v in range(count) if v not in given]
    spread = np.linspace(0, len(rest) - 1, min(targets, len(rest))).round()
    return given, [rest[int(i)] for i in spread]


def target_cameras(model: Reconstructor, frames: np.ndarray, first_depth: np.ndarray) -> Rig:
    """Where cameras are in the world of the first input, as the paper finds out: the model looks
    at the first input and the frames asked for.

    Args:
        frames: (1 + N,3,H,W), the first input and then N frames of the same time.
        first_depth: (H,W), what the model said of the first input beside the other inputs: each
            answer has a scale of its own, and the first input's depth is in both.

    Returns:
        N cameras in the world "view0" of the reconstruction.
    """
    found = predict(model, frames[:, None], None)
    scale = float(np.median(first_depth / found.depth[0, 0]))
    cameras = []
    for n, camera in enumerate(found.rig.cameras[1:]):
        pose = np.c_[camera.rotation, scale * camera.translation]
        cameras.append(Camera(f"target.{n:03d}", camera.width, camera.height,
                              camera.intrinsics, pose))  # fmt: skip
    return Rig(tuple(cameras), found.rig.world)


def evaluate_scene(
    model: Reconstructor,
    grid: FrameGrid,
    rig: Rig | None,
    given: Sequence[int],
    asked: Sequence[int],
    *,
    known_cameras: bool = False,
    lpips: object | None = None,
) -> Score:
    """Scores of one scene: pictures asked for, drawn from splats of the views given.

    known_cameras: the rig is told, for sources and targets (its world and scale are kept). Else,
    as in the paper, all cameras are predicted from frames, those asked for too; where there is a
    rig their errors are reported. Raises CaptureError for known cameras without a rig.
    """
    if known_cameras and rig is None:
        raise CaptureError("the cameras are to be given, but the dataset has none")
    sources = FrameGrid(grid.frames[list(given)], grid.known[list(given)])
    truth = grid.frames[list(asked)]
    own = None
    if known_cameras and rig is not None:
        own = Rig(tuple(rig.cameras[v] for v in given), rig.world)
    result = reconstruct(model, sources, own)
    behind = result.background
    if behind is None:
        behind = sources.frames.mean((0, 1, 3, 4))
    cameras: list[Camera] = []
    errors: Score = {}
    if known_cameras and rig is not None:
        cameras = [rig.cameras[v] for v in asked]
    else:
        depth = predict(model, sources.frames, None).depth[0, 0]
        for n in range(0, len(asked), PER_CALL):
            frames = np.concatenate([sources.frames[:1, 0], truth[n : n + PER_CALL, 0]])
            cameras += target_cameras(model, frames, depth).cameras
        if rig is not None:
            everyone = Rig(tuple(
                Camera(f"{n}", c.width, c.height, c.intrinsics, c.camera_from_world)
                for n, c in enumerate([*result.rig.cameras, *cameras])
            ))  # fmt: skip
            errors = camera_errors(everyone, Rig(tuple(rig.cameras[v] for v in [*given, *asked])))
    made = pictures(list(result), cameras, behind, dilation_of(result))
    return {**picture_score(made, truth, lpips), **errors}


def evaluate_folders(
    model: Reconstructor,
    folders: Sequence[Path],
    *,
    inputs: Sequence[int] | None = None,
    times: int | None = None,
    known_cameras: bool = False,
    width: int | None = None,
    height: int | None = None,
    lpips: object | None = None,
    on_scene: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, int], list[tuple[str, Score]]]:
    """Scores of each scene below the folders: (protocol, number of inputs) -> [(scene, score)].

    A folder is a scene, or holds scenes. Its layout decides the protocol (PROTOCOLS); inputs and
    times change it. Frames are width x height, else as wide as the model's own size and of the
    paper's shape. Scenes with too few views for a number of inputs are left out of that line.
    Raises CaptureError when no folder gives a scene, or none has enough views.
    """
    from viewtime.data.readers import detect_layout, read_scene, scenes_in
    from viewtime.data.readers.scene import read_views

    patch = model.config.patch
    width = model.config.size if width is None else width
    height = patch * max(1, round(width * PAPER_SIZE / patch)) if height is None else height
    places = [place for folder in folders for place in scenes_in(folder)]
    found: dict[tuple[str, int], list[tuple[str, Score]]] = {}
    for done, place in enumerate(places):
        protocol = PROTOCOLS.get(detect_layout(place), OTHERS)
        count = len(read_views(place))
        for many in protocol.inputs if inputs is None else inputs:
            if count <= many:
                continue
            given, asked = choose_views(count, many, protocol.targets)
            grid, rig = read_scene(
                place, views=[*given, *asked], times=times or protocol.times or 1,
                height=height, width=width,
            )  # fmt: skip
            score = evaluate_scene(
                model, grid, rig, range(many), range(many, many + len(asked)),
                known_cameras=known_cameras, lpips=lpips,
            )  # fmt: skip
            found.setdefault((protocol.table, many), []).append((Path(place).name, score))
        if on_scene is not None:
            on_scene(done + 1, len(places))
    if not found:
        named = ", ".join(str(folder) for folder in folders)
        raise CaptureError(f"{named}: no scene there has more views than are to be given")
    return found


def table(found: dict[tuple[str, int], list[tuple[str, Score]]]) -> str:
    """A Markdown table: the mean of each protocol and number of inputs, then its scenes."""
    names = list(dict.fromkeys(
        name for scenes in found.values() for _, score in scenes for name in score
    ))  # fmt: skip
    lines = ["| protocol | inputs | scene | " + " | ".join(names) + " |"]
    lines.append("|---|---|---|" + "---|" * len(names))
    for (protocol, inputs), scenes in found.items():
        scores = [{name: score.get(name, float("nan")) for name in names} for _, score in scenes]
        rows = [(f"mean of {len(scenes)}", mean_score(scores))]
        rows += [(scene, score) for (scene, _), score in zip(scenes, scores)]
        for scene, score in rows:
            cells = " | ".join(number(name, score[name]) for name in names)
            lines.append(f"| {protocol} | {inputs} | {scene} | {cells} |")
    return "\n".join(lines)
