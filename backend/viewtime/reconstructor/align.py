# SPDX-License-Identifier: Apache-2.0
"""Predicted cameras laid over a captured rig by a similarity that wrong cameras do not spoil.

Centres and orientations decide together, so that rows of cameras are no special case. Numpy only;
it never changes the captured rig.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewtime_formats.errors import ViewtimeError
from viewtime_formats.rig import Rig

Float64 = NDArray[np.float64]

COINCIDENT = 1e-6
"""Centres closer together than this share of their distance from the origin are one place."""
COLLINEAR = 1e-3
"""Second over first spread of the centres under which they say nothing about the turn around
their line."""
FLOOR = 0.02
"""Residual under which no camera is ever an outlier: 2% of the rig's size, or 0.02 rad."""
SPREADS = 3.0
"""Outliers lie further off than this many robust standard deviations."""
WORST = 1.0
"""Median residual from which on an alignment means nothing: the rig's own size, or 57 degrees."""
MAX_SETS = 2000
"""Minimal sets (pairs of cameras) that are tried at most."""
Similarity = tuple[float, Float64, Float64]
"""Scale, rotation (3,3) and translation (3,)."""


class AlignmentError(ViewtimeError):
    """Predicted cameras that cannot be laid over the captured ones; the message says why."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """captured = scale * rotation @ predicted + translation, and how well it fits.

    inliers (V,): the cameras that decided. rotation_error (V,) degrees and position_error (V,) in
    rig sizes (root mean square distance from the cameras' mean; one predicted unit where they
    stand in one place) are of all cameras. method:
    "centres and orientations", "orientations and one line" (the centres lie on a line) or
    "orientations" (scale given).
    """

    scale: float
    rotation: Float64
    translation: Float64
    inliers: NDArray[np.bool_]
    rotation_error: Float64
    position_error: Float64
    method: str

    @property
    def matrix(self) -> Float64:
        """(4, 4): captured world from predicted world."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.scale * self.rotation, self.translation
        return matrix

    def record(self) -> dict[str, Any]:
        """What a sequence's provenance keeps of it; errors are medians and maxima of inliers."""
        angle, place = self.rotation_error[self.inliers], self.position_error[self.inliers]
        return {
            "method": self.method,
            "scale": round(float(self.scale), 6),
            "rotation_degrees": [round(float(f(angle)), 3) for f in (np.median, np.max)],
            "position_of_rig": [round(float(f(place)), 4) for f in (np.median, np.max)],
            "outliers": [int(v) for v in np.flatnonzero(~self.inliers)],
        }


def align_cameras(predicted: Rig, captured: Rig, *, scale: float | None = None) -> Alignment:
    """The similarity that takes the predicted cameras' world to the captured rig's.

    Every pair of cameras proposes one; the proposal with the least median residual (least median
    of squares: up to half of the cameras may be wrong) is refined on the cameras that agree with
    it, with weights that fade with the residual. A camera's residual is its distance in rig sizes
    and its angle in radians together.

    Args:
        predicted, captured: V cameras each, in the same order.
        scale: the captured length of one predicted unit where it is known otherwise. With it one
            camera, or cameras in one place, are enough.

    Raises:
        AlignmentError: for different numbers of cameras; without `scale` for one camera, or for
            cameras that stand in one place; and when no similarity fits half of the cameras.
    """
    count = len(captured)
    if len(predicted) != count:
        raise AlignmentError(f"alignment: {len(predicted)} predicted cameras, {count} captured")
    if scale is not None and not 0.0 < scale < np.inf:
        raise AlignmentError(f"alignment: scale is {scale}; a number above 0 is needed")
    p, q = (np.stack([c.center for c in rig.cameras]) for rig in (predicted, captured))
    turns = np.stack(
        [b.rotation.T @ a.rotation for a, b in zip(predicted.cameras, captured.cameras)]
    )
    if scale is None:
        if count == 1:
            raise AlignmentError(
                "alignment: one camera gives a place and a direction but no scale; two cameras "
                "apart from each other, or a depth map, are needed"
            )
        for name, centers in (("captured", q), ("predicted", p)):
            if _size(centers) == 0.0:
                raise AlignmentError(
                    f"alignment: the {name} cameras all stand in one place, which gives no scale; "
                    "cameras apart from each other, or a depth map, are needed"
                )
    size = _size(q) or scale or 1.0
    best = _proposal(p, q, turns, size, scale)
    for _ in range(20):
        angle, place = _residuals(best, p, q, turns, size)
        residual = np.hypot(angle, place)
        limit = max(FLOOR, SPREADS * 1.4826 * float(np.median(residual)))
        inliers = residual <= limit
        weights = np.where(inliers, 1.0 / (1.0 + (residual / limit) ** 2) ** 2, 0.0)
        fitted = _fit(p, q, turns, weights, size, scale)
        if fitted is None:  # the inliers stand in one place
            break
        if np.allclose(fitted[1], best[1], atol=1e-14) and np.isclose(
            fitted[0], best[0], rtol=1e-14
        ):
            break
        best = fitted
    angle, place = _residuals(best, p, q, turns, size)
    residual = np.hypot(angle, place)
    middle = float(np.median(residual))
    if not middle < WORST:
        raise AlignmentError(
            f"alignment: the predicted cameras do not fit the rig: half of them are off by "
            f"{np.degrees(np.median(angle)):.0f} degrees and {np.median(place):.2f} of the rig's "
            "size or more"
        )
    inliers = residual <= max(FLOOR, SPREADS * 1.4826 * middle)
    return Alignment(*best, inliers, np.degrees(angle), place, _method(q[inliers]))


def align_points(p: Float64, q: Float64) -> Similarity:
    """Least-squares (scale, rotation, translation) with q = scale R p + t for points (N,3) each.

    Points alone, all alike, as trajectories are judged: neither orientations nor outliers count.
    Points p in one place give the scale 0.
    """
    turns = np.zeros((len(p), 3, 3))
    found = _fit(p, q, turns, np.ones(len(p)), _size(q) or 1.0, None)
    return found or (0.0, np.eye(3), q.mean(0))


def _size(centers: Float64) -> float:
    """Root mean square distance of the centres from their mean; 0 where they are one place."""
    size = float(np.sqrt(np.square(centers - centers.mean(0)).sum(1).mean()))
    return size if size > COINCIDENT * float(np.linalg.norm(centers, axis=1).max()) else 0.0


def _method(centers: Float64) -> str:
    if _size(centers) == 0.0:
        return "orientations"
    spread = np.linalg.svd(centers - centers.mean(0), compute_uv=False)
    flat = len(spread) < 2 or spread[1] <= COLLINEAR * spread[0]
    return "orientations and one line" if flat else "centres and orientations"


def _proposal(
    p: Float64, q: Float64, turns: Float64, size: float, scale: float | None
) -> Similarity:
    """The similarity of the pair of cameras whose median residual over all cameras is least."""
    count = len(p)
    pairs = list(combinations(range(count), 2)) or [(0, 0)]
    if len(pairs) > MAX_SETS:
        chosen = np.random.default_rng(0).choice(len(pairs), MAX_SETS, replace=False)
        pairs = [pairs[i] for i in chosen]
    best, least = None, (np.inf, np.inf)
    for pair in pairs:
        weights = np.zeros(count)
        weights[list(pair)] = 1.0
        found = _fit(p, q, turns, weights, size, scale)
        if found is None:
            continue
        residual = np.hypot(*_residuals(found, p, q, turns, size))
        # With few cameras many pairs share a median: the sum of what is in reach decides.
        score = (float(np.median(residual)), float(np.minimum(residual, WORST).sum()))
        if score < least:
            best, least = found, score
    if best is None:
        raise AlignmentError(
            "alignment: no two cameras are apart in both rigs, so that nothing gives the scale"
        )
    return best


def _fit(
    p: Float64, q: Float64, turns: Float64, weights: Float64, size: float, scale: float | None
) -> Similarity | None:
    """Weighted least squares over centres and orientations together; None without a scale.

    Umeyama's closed form (1991) with the orientations' own correlation added: a rotation R that
    maximises tr(R^T (sum q p^T / (size of q, size of p) + sum of turns)) fits both at once, and is
    unique where the centres alone leave a turn around their line open.
    """
    share = weights / weights.sum()
    middle_p, middle_q = share @ p, share @ q
    a, b = p - middle_p, q - middle_q
    size_p = np.sqrt(float(share @ np.square(a).sum(1)))
    correlation = np.einsum("v,vij->ij", share, turns)
    length = scale
    if size_p > COINCIDENT * float(np.linalg.norm(p, axis=1).max()):
        correlation = correlation + np.einsum("v,vi,vj->ij", share, b, a) / (size * size_p)
    elif scale is None:
        return None
    left, _, right = np.linalg.svd(correlation)
    flip = np.diag([1.0, 1.0, np.linalg.det(left @ right)])
    rotation = left @ flip @ right
    if length is None:
        length = float(share @ (b * (a @ rotation.T)).sum(1)) / size_p**2
        if not length > 0.0:
            # Turned as their cameras look, the centres run the other way: they do not agree.
            return None
    return float(length), rotation, middle_q - length * rotation @ middle_p


def _residuals(
    similarity: Similarity, p: Float64, q: Float64, turns: Float64, size: float
) -> tuple[Float64, Float64]:
    """Angle (V,) in radians and distance (V,) in rig sizes of each camera."""
    scale, rotation, translation = similarity
    away = q - (scale * p @ rotation.T + translation)
    # |R - R_v| = 2 sqrt(2) sin(angle / 2) is exact for small angles, where the trace is not.
    chord = np.linalg.norm(turns - rotation, axis=(1, 2)) / np.sqrt(8.0)
    return 2.0 * np.arcsin(np.minimum(chord, 1.0)), np.linalg.norm(away, axis=1) / size
