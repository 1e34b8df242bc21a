# SPDX-License-Identifier: Apache-2.0
"""Reference frames with depth, reprojected into the views and times that nobody rendered.

Only moves pixels that were given; holes are marked and filled smoothly, never imagined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from viewtime.gaussians.fill import push_pull, segments
from viewtime.gaussians.lift import Surfels, clean_depth, surfels
from viewtime.gaussians.ops import concatenate
from viewtime.gaussians.project import SAME, THROUGH, judge_points, project_points
from viewtime.gaussians.raster_cpu import Rendered, render
from viewtime.progress import Cancelled
from viewtime_formats.errors import CaptureError
from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Camera, Rig

if TYPE_CHECKING:
    from viewtime.grid import FrameGrid

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

HOLE, COLUMN, ROW, STILL, GIVEN, NAIVE = 0, 1, 2, 3, 4, 5
"""Where a pixel of the prior comes from: nowhere (filled), the freeze-time frame of its view, the
fixed view's frame of its time, what stands still in all references, a known cell, or a reference
copied as it is because nothing is known of the geometry (see `viewtime.generator.naive`)."""

EVIDENCE = 13
"""Channels of what a prior was chosen from: colours (3 each) of the column, of the row and of what
stands still, whether there is each of these, and how far the reprojection is to be trusted: 1 with
exact depth, 1/2 with PREDICTED_NOISE, 0 where nothing was reprojected."""

PREDICTED_NOISE = 0.02
"""The depth_noise that goes with predicted depth (measured: 0.02 is better than 0 and 0.05)."""
DEPTH_TOLERANCE = 0.02
"""Relative depth difference of one surface seen twice; twice the depth's noise is added."""
SHADOW = 0.09
"""Colour difference over which the fixed view's pixel of this time replaces the column's."""
CHANGED = 0.08
"""Colour difference over which a pixel of the fixed view differs from the freeze time."""
RECOLOURED = 0.25
"""Colour difference over which a point, seen again at another time, is not the same surface."""
GONE_SHARE = 0.75
"""A depth-connected segment is gone as a whole when more than this share of it is known to be."""
MIN_ALPHA = 0.5


@dataclass(frozen=True, eq=False)
class Prior:
    """What the references say of each cell.

    frames (V, T, 3, H, W) display sRGB, complete: holes are filled from around them. depth
    (V, T, H, W) planar z, nan in holes, inf for the sky. valid (V, T, H, W) bool, False in holes
    and where nothing but a naive filling is known. source (V, T, H, W) uint8: HOLE, COLUMN, ROW,
    STILL, GIVEN or NAIVE. evidence (V, T, EVIDENCE, H, W) float16 in [0, 1], zero in known cells
    and where there is none, or None: for a model that was made to choose anew.
    """

    frames: Float32
    depth: Float32
    valid: Bool
    source: NDArray[np.uint8]
    evidence: NDArray[np.float16] | None = None

    def part(self, views: list[int], times: list[int]) -> Prior:
        """The prior of some views and times, in that order."""
        box = np.ix_(views, times)
        return Prior(
            self.frames[box], self.depth[box], self.valid[box], self.source[box],
            None if self.evidence is None else self.evidence[box],
        )  # fmt: skip


def gather_evidence(layers: list[tuple[Float32, Bool] | None], trust: float) -> Float32:
    """(EVIDENCE, H, W) of one cell: column, row and still, each an image (H, W, 3) and where it is
    to be had (H, W), or None."""
    height, width = next(layer[1].shape for layer in layers if layer is not None)
    out = np.zeros((EVIDENCE, height, width), np.float32)
    for number, layer in enumerate(layers):
        if layer is not None:
            out[3 * number : 3 * number + 3] = (layer[0] * layer[1][..., None]).transpose(2, 0, 1)
            out[9 + number] = layer[1]
    out[12] = trust
    return out


def only_references(grid: FrameGrid, fixed_view: int, freeze_time: int) -> FrameGrid:
    """The grid with everything forgotten but the fixed view's row and the freeze-time column."""
    from viewtime.grid import FrameGrid

    known = np.zeros_like(grid.known)
    known[fixed_view], known[:, freeze_time] = True, True
    known &= grid.known
    depth = None if grid.depth is None else np.where(known[..., None, None], grid.depth, np.nan)
    return FrameGrid(
        np.where(known[..., None, None, None], grid.frames, np.float32(0)), known, depth
    )


@dataclass(frozen=True, eq=False)
class _Frame:
    """A reference frame: image (H, W, 3), depth (H, W), camera, one disk per pixel of surface."""

    image: Float32
    depth: Float32
    camera: Camera
    disks: Surfels


@dataclass(frozen=True, eq=False)
class _Clip:
    """The fixed view's clip: its frames, and changed (T, H, W) bool, where a frame differs from the
    one at the freeze time. Nothing but a change there can overrule a column frame."""

    frames: list[_Frame]
    changed: Bool


@dataclass(frozen=True, eq=False)
class _Fate:
    """What becomes of a column frame's surface pixels: gone (T, N) at each time, moves (N,)."""

    gone: Bool
    moves: Bool


def _difference(a: Float32, b: Float32) -> Float32:
    """Colour difference (...): mean over the channels of the absolute difference."""
    return np.abs(a - b).mean(axis=-1)


def _spread(gone: Bool, judged: Bool, segment: NDArray[np.int64]) -> Bool:
    """gone, plus all of every segment of which more than GONE_SHARE of the judged pixels is."""
    size = int(segment.max(initial=-1)) + 1
    votes = np.bincount(segment[judged], minlength=size)
    ayes = np.bincount(segment[gone & judged], minlength=size)
    return gone | (ayes > GONE_SHARE * votes)[segment]


def _changed(row: list[_Frame], freeze_time: int, tolerance: float) -> Bool:
    """(T, H, W): pixels, and those next to them, with another depth or colour than at the freeze
    time."""
    then = row[freeze_time]
    masks = []
    for frame in row:
        with np.errstate(invalid="ignore"):
            nearer = np.minimum(frame.depth, then.depth)
            moved = ~(np.abs(frame.depth - then.depth) <= tolerance * nearer)
        moved &= ~(np.isinf(frame.depth) & np.isinf(then.depth))
        masks.append(_grown(moved | (_difference(frame.image, then.image) > CHANGED)))
    return np.stack(masks)


def _grown(mask: Bool) -> Bool:
    """The mask (H, W) and the pixels next to it, corners included."""
    for axis in (0, 1):
        before, after = np.roll(mask, 1, axis), np.roll(mask, -1, axis)
        np.moveaxis(before, axis, 0)[0] = False
        np.moveaxis(after, axis, 0)[-1] = False
        mask = mask | before | after
    return mask


def _fate(column: _Frame, clip: _Clip, freeze_time: int, tolerance: float) -> _Fate:
    """Follow a column frame's points through the fixed view's clip."""
    row = clip.frames
    disks, count, times = column.disks, len(column.disks), len(row)
    through, same = np.zeros((times, count), bool), np.zeros((times, count), bool)
    recoloured = np.zeros((times, count), bool)
    pixel, z = project_points(disks.means, row[0].camera)
    for t, frame in enumerate(row):
        verdict = judge_points(pixel, z, frame.depth, tolerance)
        changed = clip.changed[t].ravel()[pixel]
        through[t] = (verdict == THROUGH) & changed
        same[t] = verdict == SAME
        seen = np.flatnonzero(same[t])
        colour = frame.image.reshape(-1, 3)[pixel[seen]]
        recoloured[t, seen] = _difference(colour, disks.rgb[seen]) > RECOLOURED
        recoloured[t] &= changed
    others = np.arange(times) != freeze_time
    moves = (through[others] | recoloured[others]).any(axis=0)
    judged = (through[others] | same[others]).any(axis=0)
    segment = segments(column.depth)[disks.pixel]
    moves = _spread(moves, judged, segment)
    gone = np.empty((times, count), bool)
    for t in range(times):
        there = same[t] & ~recoloured[t]
        gone[t] = _spread(through[t] | (moves & ~there), through[t] | same[t] | moves, segment)
    return _Fate(gone, moves)


def _still(columns: dict[int, _Frame], fates: dict[int, _Fate], row: list[_Frame]) -> Gaussians:
    """What stands still: column pixels that never move, and the fixed view's farthest surfaces."""
    parts = [
        columns[v].disks.select(~fates[v].moves & ~columns[v].disks.edge).gaussians()
        for v in columns
    ]
    depth = np.stack([frame.depth for frame in row])
    farthest = depth.argmax(axis=0).ravel()
    for t, frame in enumerate(row):
        disks = frame.disks
        parts.append(disks.select((farthest[disks.pixel] == t) & ~disks.edge).gaussians())
    return concatenate(parts)


def _references(
    grid: FrameGrid, rig: Rig, fixed_view: int, freeze_time: int
) -> tuple[list[_Frame], dict[int, _Frame]]:
    """The fixed view's clip, and the freeze-time frames of the other views."""
    views, times, _, height, width = grid.frames.shape
    if not (0 <= fixed_view < views and 0 <= freeze_time < times):
        raise CaptureError(
            f"prior: fixed view {fixed_view} and freeze time {freeze_time} in a grid of "
            f"{views} views and {times} times"
        )
    if len(rig) != views:
        raise CaptureError(f"prior: a rig of {len(rig)} cameras for a grid of {views} views")
    if grid.depth is None:
        raise CaptureError("prior: the grid has no depth; reprojection needs it")
    cameras = rig.resized(width, height).cameras

    def frame(v: int, t: int) -> _Frame:
        assert grid.depth is not None
        depth = grid.depth[v, t]
        if not grid.known[v, t]:
            raise CaptureError(f"prior: reference frame of view {v} at time {t} is unknown")
        if np.isnan(depth).all():
            raise CaptureError(f"prior: reference frame of view {v} at time {t} has no depth")
        image = np.ascontiguousarray(grid.frames[v, t].transpose(1, 2, 0))
        depth = clean_depth(depth)
        return _Frame(image, depth, cameras[v], surfels(image, depth, cameras[v]))

    row = [frame(fixed_view, t) for t in range(times)]
    columns = {v: frame(v, freeze_time) for v in range(views) if not grid.known[v].all()}
    return row, columns


def _news(shown: Rendered, camera: Camera, fixed: Camera, changed: Bool) -> Bool:
    """Where a camera is shown something that changed in the fixed view since the freeze time."""
    rows, columns = np.nonzero(shown.alpha > MIN_ALPHA)
    k, z = camera.intrinsics, shown.depth[rows, columns]
    x, y = (columns + 0.5 - k[0, 2]) / k[0, 0], (rows + 0.5 - k[1, 2]) / k[1, 1]
    points = (np.stack([x * z, y * z, z], -1) - camera.translation) @ camera.rotation
    pixel, _ = project_points(points.astype(np.float32), fixed)
    news = np.zeros_like(shown.alpha, bool)
    news[rows, columns] = (pixel < 0) | changed.ravel()[pixel]
    return news


def _cell(
    column: _Frame, gone: Bool, a: Rendered, news: Bool, behind: Rendered, tolerance: float
) -> tuple[Float32, Float32, NDArray[np.uint8]]:
    """Choose for each pixel of one cell. Returns image (H, W, 3), depth (H, W), source (H, W)."""
    a_color, seen = _unmixed(a)
    kept = ~np.isnan(column.depth)
    kept.ravel()[column.disks.pixel[gone]] = False
    with np.errstate(invalid="ignore"):
        nearer = seen & news & (a.depth < column.depth * (1 - tolerance))
        agrees = seen & news & ~nearer & (a.depth <= column.depth * (1 + tolerance))
    changed = agrees & np.isfinite(column.depth) & (_difference(a_color, column.image) > SHADOW)
    still_color, still = _unmixed(behind)
    # Pixels next to what is gone, or to a shadow that moved, carry a trace of its colour.
    rim = _grown(np.isfinite(column.depth) & ~kept | changed) & (seen | still)
    from_column = kept & ~nearer & ~changed & ~rim
    from_row = seen & ~from_column
    from_still = still & ~seen & ~from_column
    source = np.full(seen.shape, HOLE, np.uint8)
    image, depth = np.zeros_like(column.image), np.full(seen.shape, np.nan, np.float32)
    for mask, name, color, z in (
        (from_column, COLUMN, column.image, column.depth),
        (from_row, ROW, a_color, a.depth),
        (from_still, STILL, still_color, behind.depth),
    ):
        source[mask], image[mask], depth[mask] = name, color[mask], z[mask]
    return image, depth, source


def reprojection_prior(
    grid: FrameGrid,
    rig: Rig,
    fixed_view: int,
    freeze_time: int,
    *,
    background: ArrayLike = (0.0, 0.0, 0.0),
    depth_noise: float = 0.0,
    evidence: bool = True,
    should_cancel: Callable[[], bool] | None = None,
) -> Prior:
    """Fill a grid's unknown cells from the fixed view's clip and the freeze-time column.

    Args:
        grid: knows the row `fixed_view` and the column `freeze_time`, with depth.
        rig: V cameras; resized to the grid's pictures where it is of another size.
        background: (3,) display sRGB, for holes in a cell that nothing at all is known of.
        depth_noise: relative error of the depth, 0 for a renderer.
        evidence: keep what the pixels were chosen from, which some models ask for.
        should_cancel: asked before each view.

    Raises:
        CaptureError: when a reference frame, its depth, or the rig is missing. Cancelled.
    """
    row, columns = _references(grid, rig, fixed_view, freeze_time)
    tolerance = DEPTH_TOLERANCE + 2 * depth_noise
    trust = PREDICTED_NOISE / (PREDICTED_NOISE + depth_noise)
    views, times, _, height, width = grid.frames.shape
    frames = grid.frames.astype(np.float32, copy=True)
    depth = np.full((views, times, height, width), np.nan, np.float32)
    source = np.full((views, times, height, width), HOLE, np.uint8)
    clip = _Clip(row, _changed(row, freeze_time, tolerance))
    fates = {v: _fate(column, clip, freeze_time, tolerance) for v, column in columns.items()}
    still = _still(columns, fates, row)
    splats = [frame.disks.gaussians() for frame in row]
    kept = np.zeros((views, times, EVIDENCE, height, width), np.float16) if evidence else None
    for v, column in columns.items():
        if should_cancel is not None and should_cancel():
            raise Cancelled("the run was cancelled")
        behind = render(still, column.camera)
        for t in np.flatnonzero(~grid.known[v]):
            shown = render(splats[t], column.camera)
            news = _news(shown, column.camera, row[t].camera, clip.changed[t])
            cell = _cell(column, fates[v].gone[t], shown, news, behind, tolerance)
            frames[v, t] = push_pull(cell[0], cell[2] != HOLE, background).transpose(2, 0, 1)
            depth[v, t], source[v, t] = cell[1], cell[2]
            if kept is not None:
                there = ~np.isnan(column.depth)
                layers = [(column.image, there), _unmixed(shown), _unmixed(behind)]
                kept[v, t] = gather_evidence(layers, trust)  # type: ignore[arg-type]
    assert grid.depth is not None
    depth[grid.known], source[grid.known] = grid.depth[grid.known], GIVEN
    return Prior(frames, depth, source != HOLE, source, kept)


def _unmixed(shown: Rendered) -> tuple[Float32, Bool]:
    """The colour (H, W, 3) of what was rendered, and where it hides most of what is behind it."""
    seen = shown.alpha > MIN_ALPHA
    return (shown.color / np.maximum(shown.alpha, MIN_ALPHA)[..., None]).astype(np.float32), seen
