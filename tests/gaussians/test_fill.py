# SPDX-License-Identifier: Apache-2.0
"""Regions of depth maps, verdicts of other views, and holes filled smoothly."""

from __future__ import annotations

import numpy as np

from viewtime.gaussians.fill import push_pull, segments
from viewtime.gaussians.project import BEHIND, SAME, THROUGH, UNSEEN, judge_points, project_points
from viewtime_formats.rig import Camera


def test_a_depth_map_falls_apart_at_its_jumps():
    depth = np.full((6, 9), 2.0, np.float32)
    depth[:, 4] = np.inf
    depth[:, 7:] = 3.0
    depth[0, 0] = np.nan
    label = segments(depth).reshape(6, 9)
    assert label[0, 0] == -1 and (label[:, 4] == -1).all()
    left, middle, right = label[1, 0], label[0, 5], label[0, 8]
    assert len({left, middle, right}) == 3
    assert (label[1:, :4] == left).all() and (label[:, 7:] == right).all()


def test_a_slope_without_jumps_is_one_segment():
    depth = np.broadcast_to(np.linspace(2, 4, 80, dtype=np.float32), (5, 80))
    assert (segments(depth) == 0).all()


def test_filling_keeps_what_is_valid_and_stays_between_its_neighbours():
    rng = np.random.default_rng(0)
    image = rng.uniform(0.3, 0.7, (37, 50, 3)).astype(np.float32)
    valid = np.ones((37, 50), bool)
    valid[5:30, 10:45] = False
    filled = push_pull(np.where(valid[..., None], image, 77), valid)
    np.testing.assert_array_equal(filled[valid], image[valid])
    assert 0.3 <= filled.min() and filled.max() <= 0.7


def test_filling_between_two_colours_blends_from_one_to_the_other():
    image = np.zeros((32, 64, 3), np.float32)
    image[:, 48:] = 1
    valid = np.ones((32, 64), bool)
    valid[:, 16:48] = False
    filled = push_pull(image, valid)[16, :, 0]
    assert (np.diff(filled) >= -1e-6).all() and np.diff(filled).max() < 0.3


def test_filling_nothing_gives_the_empty_colour():
    filled = push_pull(np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), bool), (0.1, 0.2, 0.3))
    np.testing.assert_allclose(filled[3, 3], (0.1, 0.2, 0.3))


def test_another_view_says_what_it_sees_of_a_point():
    camera = Camera("c", 5, 5, np.array([[5.0, 0, 2.5], [0, 5, 2.5], [0, 0, 1]]), np.eye(4)[:3])
    points = np.array([[0, 0, 2], [0, 0, -2], [9, 0, 2], [0.8, 0, 2]], np.float32)
    pixel, z = project_points(points, camera)
    np.testing.assert_array_equal(pixel, [12, -1, -1, 14])
    np.testing.assert_allclose(z, [2, -2, 2, 2])
    for depth, verdict in ((2.01, SAME), (1.5, BEHIND), (2.5, THROUGH), (np.inf, THROUGH)):
        seen = judge_points(pixel, z, np.full((5, 5), depth, np.float32), 0.02)
        np.testing.assert_array_equal(seen, [verdict, UNSEEN, UNSEEN, verdict])
    sky_around_one = np.full((5, 5), np.inf, np.float32)
    sky_around_one[2, 3] = 2.0  # beside the first and the last point's pixels
    np.testing.assert_array_equal(judge_points(pixel, z, sky_around_one, 0.02), [UNSEEN] * 4)
    unknown = np.full((5, 5), np.nan, np.float32)
    assert THROUGH not in judge_points(pixel, z, unknown, 0.02)
