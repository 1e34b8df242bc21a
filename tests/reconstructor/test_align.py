# SPDX-License-Identifier: Apache-2.0
"""Predicted cameras over a captured rig: exact where right, deaf to those that are wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewtime.reconstructor.align import AlignmentError, align_cameras, align_points
from viewtime.reconstructor.pose import matrix_from_quaternion
from viewtime_formats.rig import Camera, Rig

INTRINSICS = np.array([[40.0, 0, 16], [0, 40.0, 16], [0, 0, 1]])


def rotation(rng: np.random.Generator) -> np.ndarray:
    return matrix_from_quaternion(rng.normal(size=4))


def small_turn(rng: np.random.Generator, sigma: float) -> np.ndarray:
    return matrix_from_quaternion([*(0.5 * sigma * rng.normal(size=3)), 1.0])


def rig_of(centers: np.ndarray, rotations: np.ndarray) -> Rig:
    """rotations: camera axes from world axes."""
    return Rig(
        tuple(
            Camera(f"c{v}", 32, 32, INTRINSICS, np.c_[turn, -turn @ center])
            for v, (center, turn) in enumerate(zip(centers, rotations))
        )
    )


def moved(rig: Rig, scale: float, turn: np.ndarray, shift: np.ndarray) -> Rig:
    """The rig in a world of which x = scale * turn @ x' + shift gives the rig's own."""
    centers = np.stack([c.center for c in rig.cameras])
    rotations = np.stack([c.rotation for c in rig.cameras])
    return rig_of((centers - shift) @ turn / scale, rotations @ turn)


def random_rig(rng: np.random.Generator, count: int) -> Rig:
    return rig_of(rng.normal(size=(count, 3)), np.stack([rotation(rng) for _ in range(count)]))


def spoiled(rig: Rig, rng: np.random.Generator, which: np.ndarray) -> Rig:
    centers = np.stack([c.center for c in rig.cameras])
    rotations = np.stack([c.rotation for c in rig.cameras])
    reach = np.ptp(centers, axis=0).max()
    for v in which:
        centers[v] += reach * rng.uniform(0.5, 3.0) * rotation(rng)[0]
        rotations[v] = rotation(rng)
    return rig_of(centers, rotations)


similarities = st.tuples(st.integers(0, 2**32 - 1), st.floats(-4.0, 4.0))


@settings(max_examples=40, deadline=None)
@given(similarities, st.integers(2, 12))
def test_a_similarity_is_recovered_exactly(seed_and_scale, count):
    seed, log_scale = seed_and_scale
    rng = np.random.default_rng(seed)
    scale, turn, shift = np.exp(log_scale), rotation(rng), 10.0 * rng.normal(size=3)
    captured = random_rig(rng, count)
    found = align_cameras(moved(captured, scale, turn, shift), captured)
    assert found.scale == pytest.approx(scale, rel=1e-9)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-9)
    np.testing.assert_allclose(found.translation, shift, atol=1e-8)
    assert found.inliers.all()
    assert found.rotation_error.max() < 1e-6 and found.position_error.max() < 1e-8


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 12))
def test_wrong_cameras_up_to_three_in_ten_change_nothing(seed, count):
    rng = np.random.default_rng(seed)
    captured = random_rig(rng, count)
    wrong = rng.choice(count, max(1, int(0.3 * count)), replace=False)
    turn, shift = rotation(rng), rng.normal(size=3)
    found = align_cameras(spoiled(moved(captured, 0.3, turn, shift), rng, wrong), captured)
    assert found.scale == pytest.approx(0.3, rel=1e-9)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-9)
    assert set(np.flatnonzero(~found.inliers)) == set(wrong)
    assert found.record()["outliers"] == sorted(int(v) for v in wrong)


def test_the_error_grows_with_the_noise_and_with_no_more_than_it():
    errors = []
    for sigma in (1e-4, 1e-3, 1e-2):
        worst = 0.0
        for seed in range(10):
            rng = np.random.default_rng(seed)
            captured = random_rig(rng, 10)
            turn, shift = rotation(rng), rng.normal(size=3)
            exact = moved(captured, 2.0, turn, shift)
            noisy = rig_of(
                np.stack([c.center + 0.5 * sigma * rng.normal(size=3) for c in exact.cameras]),
                np.stack([small_turn(rng, sigma) @ c.rotation for c in exact.cameras]),
            )
            found = align_cameras(spoiled(noisy, rng, np.array([1, 7])), captured)
            assert not found.inliers[[1, 7]].any() and found.inliers.sum() >= 7
            worst = max(worst, abs(np.log(found.scale / 2.0)), np.abs(found.rotation - turn).max())
        errors.append(worst)
        assert worst < 3.0 * sigma
    assert errors[0] < 0.05 * errors[1] + 1e-4 and errors[1] < 0.3 * errors[2]


@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_row_of_cameras_is_turned_as_its_cameras_look(count):
    rng = np.random.default_rng(count)
    centers = np.linspace(-1, 1, count)[:, None] * rotation(rng)[0] + rng.normal(size=3)
    captured = rig_of(centers, np.stack([rotation(rng) for _ in range(count)]))
    turn, shift = rotation(rng), rng.normal(size=3)
    found = align_cameras(moved(captured, 5.0, turn, shift), captured)
    assert found.method == "orientations and one line"
    assert found.scale == pytest.approx(5.0, rel=1e-9)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-9)


def test_parallel_cameras_in_a_row_with_a_wrong_one():
    turn = rotation(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    captured = rig_of(np.arange(5.0)[:, None] * [1, 0, 0], np.stack([turn] * 5))
    away = rotation(rng)
    found = align_cameras(spoiled(moved(captured, 0.5, away, np.ones(3)), rng, [3]), captured)
    assert found.scale == pytest.approx(0.5, rel=1e-9)
    np.testing.assert_allclose(found.rotation, away, atol=1e-9)
    assert list(np.flatnonzero(~found.inliers)) == [3]


def test_what_gives_no_scale_is_refused_in_words_and_taken_with_one():
    rng = np.random.default_rng(4)
    alone = random_rig(rng, 1)
    turn, shift = rotation(rng), rng.normal(size=3)
    with pytest.raises(AlignmentError, match="one camera .* no scale"):
        align_cameras(moved(alone, 2.0, turn, shift), alone)
    found = align_cameras(moved(alone, 2.0, turn, shift), alone, scale=2.0)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-9)
    np.testing.assert_allclose(found.translation, shift, atol=1e-9)
    assert found.method == "orientations"

    spot = rig_of(np.ones((4, 3)), np.stack([rotation(rng) for _ in range(4)]))
    with pytest.raises(AlignmentError, match="captured cameras all stand in one place"):
        align_cameras(random_rig(rng, 4), spot)
    with pytest.raises(AlignmentError, match="predicted cameras all stand in one place"):
        align_cameras(spot, random_rig(rng, 4))
    found = align_cameras(moved(spot, 2.0, turn, shift), spot, scale=2.0)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-9)


def test_cameras_that_have_nothing_to_do_with_the_rig_are_refused():
    refused = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        try:
            align_cameras(random_rig(rng, 9), random_rig(rng, 9))
        except AlignmentError as error:
            assert "do not fit the rig" in str(error)
            refused += 1
    assert refused >= 9


def test_wrong_counts_and_scales_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(AlignmentError, match="3 predicted cameras, 2 captured"):
        align_cameras(random_rig(rng, 3), random_rig(rng, 2))
    with pytest.raises(AlignmentError, match="scale is -1"):
        align_cameras(random_rig(rng, 2), random_rig(rng, 2), scale=-1)


def test_points_alone_are_aligned_by_least_squares_whatever_a_mirror_would_fit():
    rng = np.random.default_rng(4)
    p, turn, shift = rng.normal(size=(6, 3)), rotation(rng), rng.normal(size=3)
    found = align_points(p, 0.3 * p @ turn.T + shift)
    for value, wanted in zip(found, (0.3, turn, shift)):
        np.testing.assert_allclose(value, wanted, atol=1e-12)

    q = p * [1, 1, -1] + 0.1 * rng.normal(size=p.shape)  # a mirror image, and noise
    scale, own, moved_by = align_points(p, q)
    assert np.linalg.det(own) == pytest.approx(1.0)

    def squares(by: float, then: np.ndarray) -> float:
        place = scale * (1 + by) * p @ (then @ own).T + moved_by
        return float(np.square(place - q).sum())

    still = squares(0.0, np.eye(3))
    for _ in range(20):  # nothing near is better
        near = small_turn(rng, 0.02)
        assert squares(rng.normal(scale=0.02), near) >= still - 1e-9

    scale, own, moved_by = align_points(np.ones((3, 3)), q[:3])
    assert scale == 0.0 and np.allclose(moved_by, q[:3].mean(0))
