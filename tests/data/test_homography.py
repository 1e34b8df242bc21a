# SPDX-License-Identifier: Apache-2.0
"""Warped videos: exact corners, identity for view 0, no invented border. Never reads a file."""

import numpy as np

from viewtime.data.homography import homography_from_corners, random_homographies, warp_video


def test_corners_land_where_they_were_sent():
    source = np.array([[0.0, 0.0], [8.0, 0.0], [8.0, 6.0], [0.0, 6.0]])
    target = source + np.array([[1.0, 0.5], [-1.0, 0.2], [-0.5, -1.0], [0.3, -0.4]])
    matrix = homography_from_corners(source, target)
    moved = np.concatenate([source, np.ones((4, 1))], 1) @ matrix.T
    np.testing.assert_allclose(moved[:, :2] / moved[:, 2:], target, atol=1e-9)


def test_view_0_is_the_video_itself_and_the_others_are_not():
    video = np.random.default_rng(0).random((2, 12, 16, 3), np.float32)
    grid = warp_video(video, random_homographies(3, 4, 16, 12))
    assert grid.shape == (4, 2, 3, 12, 16)
    np.testing.assert_allclose(grid[0].transpose(0, 2, 3, 1), video, atol=1e-5)
    assert np.abs(grid[3] - grid[0]).mean() > 0.05


def test_a_linear_picture_warps_to_its_own_coordinates():
    height, width = 20, 24
    y, x = np.mgrid[0:height, 0:width] + 0.5
    video = np.stack([x / width, y / height, np.ones_like(x)], -1)[None].astype(np.float32)
    homographies = random_homographies(7, 3, width, height)
    grid = warp_video(video, homographies)
    for v in range(3):
        point = np.stack([x, y, np.ones_like(x)], -1) @ homographies[v].T
        wanted = point[..., :2] / point[..., 2:]
        inside = ((wanted > 1.0) & (wanted < [width - 1, height - 1])).all(-1)
        got = np.stack([grid[v, 0, 0] * width, grid[v, 0, 1] * height], -1)
        np.testing.assert_allclose(got[inside], wanted[inside], atol=1e-3)
        assert ((wanted >= 0) & (wanted <= [width, height])).all()
