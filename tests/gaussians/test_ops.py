# SPDX-License-Identifier: Apache-2.0
"""Gaussians moved, cropped, pruned and merged: pictures say whether they are still the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewtime.gaussians import render
from viewtime.gaussians.harmonics import values
from viewtime.gaussians.ops import (
    concatenate,
    crop,
    empty,
    prune,
    quaternion_from_matrix,
    select,
    transform,
    voxel_merge,
)
from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Camera
from viewtime_formats.sh import sh_basis


def splats(count: int, degree: int, seed: int = 0) -> Gaussians:
    rng = np.random.default_rng(seed)
    rotations = rng.normal(size=(count, 4))
    arrays = (
        rng.normal(size=(count, 3)),
        np.exp(rng.uniform(-3.5, -1.0, (count, 3))),
        rotations / np.linalg.norm(rotations, axis=1, keepdims=True),
        rng.uniform(0.1, 1, count),
        rng.normal(size=(count, (degree + 1) ** 2, 3)) * 0.4,
    )
    return Gaussians(*(array.astype(np.float32) for array in arrays))


def turn(seed: int) -> np.ndarray:
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return q * np.sign(np.linalg.det(q))


def camera(rotation: np.ndarray, translation: np.ndarray) -> Camera:
    lens = np.array([[50.0, 0, 21.0], [0, 46.0, 19.0], [0, 0, 1]])
    return Camera("test", 40, 36, lens, np.column_stack([rotation, translation]))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_moving_the_scene_and_the_camera_together_changes_nothing(degree):
    g, rotation, shift, scale = splats(80, degree), turn(3), np.array([2.0, -1.0, 0.5]), 1.7
    view = camera(turn(5), np.array([0.1, -0.2, 5.0]))
    moved = transform(g, np.column_stack([scale * rotation, shift]))
    moved.validate("moved")
    seen = view.rotation @ rotation.T
    other = camera(seen, scale * view.translation - seen @ shift)
    before, after = render(g, view), render(moved, other)
    # Dilation counts in pixels and both cameras have the same lens, so even that agrees.
    np.testing.assert_allclose(after.color, before.color, atol=2e-4)
    np.testing.assert_allclose(after.alpha, before.alpha, atol=2e-4)
    if degree:
        unturned = Gaussians(
            moved.means, moved.scales, moved.rotations, moved.opacities, g.sh
        )  # the test would notice colours left behind
        assert np.abs(render(unturned, other).color - before.color).max() > 0.05


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_compiled_harmonics_are_those_of_the_formats(seed, degree):
    d = np.random.default_rng(seed).normal(size=(20, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    np.testing.assert_allclose(values(d, degree), sh_basis(d, degree), atol=1e-12)


def test_matrices_that_are_no_similarity_are_refused():
    g = splats(3, 1)
    for matrix, message in (
        (np.diag([1.0, 1, -1, 1]), "determinant"),
        (np.diag([1.0, 1, 2, 1]), "shears"),
        (np.eye(3), r"shape \(3, 3\)"),
        (np.full((4, 4), np.nan), "finite"),
        (np.diag([1.0, 1, 1, 2]), "last row"),
    ):
        with pytest.raises(ValueError, match=message):
            transform(g, matrix)
    g.sh = np.zeros((3, 25, 3), np.float32)
    assert transform(g, np.eye(4)).sh_degree == 4
    with pytest.raises(ValueError, match="degree 4"):
        transform(g, np.column_stack([turn(1), np.zeros(3)]))


def test_cropping_keeps_the_box_or_the_rest():
    g = splats(500, 1)
    inside = crop(g, (-1, -np.inf, -0.5), (1, 0.5, np.inf))
    outside = crop(g, (-1, -np.inf, -0.5), (1, 0.5, np.inf), keep_outside=True)
    assert 0 < len(inside) < 500 and len(inside) + len(outside) == 500
    assert (np.abs(inside.means[:, 0]) <= 1).all() and (inside.means[:, 1] <= 0.5).all()
    assert not set(map(bytes, inside.means)) & set(map(bytes, outside.means))
    with pytest.raises(ValueError, match="low .* exceeds high"):
        crop(g, (1, 0, 0), (0, 1, 1))
    with pytest.raises(ValueError, match="three numbers"):
        crop(g, (1, 0), (2, 1, 1))


def test_pruning_keeps_what_is_opaque_and_of_a_size():
    g = splats(500, 0)
    kept = prune(g, min_opacity=0.4, min_size=0.1, max_size=0.3)
    size = g.scales.max(axis=1)
    expected = (g.opacities >= 0.4) & (size >= 0.1) & (size <= 0.3)
    np.testing.assert_array_equal(kept.means, g.means[expected])
    assert len(prune(empty(), min_opacity=0.5)) == 0
    for bad in ({"min_opacity": 2.0}, {"min_size": 2.0, "max_size": 1.0}, {"min_size": -1.0}):
        with pytest.raises(ValueError, match="prune"):
            prune(g, **bad)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 3.0))
def test_merging_leaves_one_to_a_cube_and_keeps_the_singles(seed, voxel):
    g = splats(200, 1, seed)
    merged = voxel_merge(g, voxel)
    merged.validate("merged")
    cells = np.floor(g.means.astype(np.float64) / voxel)
    names, counts = np.unique(cells, axis=0, return_counts=True)
    assert len(merged) == len(names)
    alone = {tuple(name) for name, count in zip(names, counts) if count == 1}
    singles = {bytes(mean) for mean, cell in zip(g.means, cells) if tuple(cell) in alone}
    assert singles <= set(map(bytes, merged.means))


def test_merging_equal_gaussians_gives_nearly_the_same_picture():
    g, view = splats(60, 2, seed=4), camera(turn(5), np.array([0.1, -0.2, 5.0]))
    g = prune(g, min_opacity=0.1)
    g.opacities[:] = 0.5
    half = select(g, slice(None))
    half.opacities = np.full(len(g), 1 - np.sqrt(0.5), np.float32)  # two of them block one half
    twice = voxel_merge(concatenate([half, half]), 1e-4)
    assert len(twice) == len(g)
    np.testing.assert_allclose(twice.opacities, 0.5, atol=1e-6)
    assert np.abs(render(twice, view).color - render(g, view).color).mean() < 0.01


def test_merging_a_dense_sheet_keeps_its_picture():
    """Four disks to a cube on a wall become one, and the wall stays opaque and coloured."""
    x, y = np.meshgrid(np.arange(-20, 20) * 0.05 + 0.025, np.arange(-20, 20) * 0.05 + 0.025)
    means = np.stack([x.ravel(), y.ravel(), np.full(x.size, 2.03)], 1)
    colours = 0.5 + 0.3 * np.stack([np.sin(2 * x), np.cos(2 * y), x * y], -1).reshape(-1, 1, 3)
    wall = Gaussians(
        *(
            array.astype(np.float32)
            for array in (
                means,
                np.broadcast_to([0.035, 0.035, 0.004], means.shape),
                np.broadcast_to([1.0, 0, 0, 0], (len(means), 4)),
                np.full(len(means), 0.95),
                (colours - 0.5) / 0.28209479177387814,
            )
        )
    )
    merged = voxel_merge(wall, 0.1)
    assert len(merged) == len(wall) // 4
    view = camera(np.eye(3), np.zeros(3))
    before, after = render(wall, view), render(merged, view)
    assert after.alpha[5:-5, 5:-5].min() > 0.85 and after.alpha[5:-5, 5:-5].mean() > 0.92
    assert np.abs(before.color - after.color)[5:-5, 5:-5].mean() < 0.02
    with pytest.raises(ValueError, match="voxel"):
        voxel_merge(wall, 0.0)
    assert len(voxel_merge(empty(), 1.0)) == 0


def test_quaternions_of_half_turns_come_back():
    for axis in np.eye(3):
        half_turn = 2 * np.outer(axis, axis) - np.eye(3)
        np.testing.assert_allclose(np.abs(quaternion_from_matrix(half_turn)), [0, *axis], atol=1e-9)
