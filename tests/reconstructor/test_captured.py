# SPDX-License-Identifier: Apache-2.0
"""Captured geometry to splats, judged at cameras that lent no pixel."""

from __future__ import annotations

import numpy as np
import pytest

from viewtime.data.synthetic import random_rig, random_scene, render_cell
from viewtime.evaluation.metrics import psnr
from viewtime.evaluation.photos import leave_one_out_views
from viewtime.gaussians import render
from viewtime.reconstructor.captured import background_from_sky, fuse_views

SEED, SIZE, TIME = 100, 96, 3.0


@pytest.fixture(scope="module")
def shot():
    """Seven cameras of an arc: images, depths, cameras; four to fuse, three between them to ask."""
    scene = random_scene(SEED)
    cameras = random_rig(SEED, scene, 7, SIZE, SIZE, degrees=(60, 60)).cameras
    cameras = sorted(cameras, key=lambda camera: camera.center @ cameras[0].rotation[0])
    cells = [render_cell(scene, camera, TIME) for camera in cameras]
    images, depths = (np.stack(parts) for parts in zip(*cells))
    return images, depths, cameras


def parts(shot, which):
    images, depths, cameras = shot
    return images[which], depths[which], [cameras[v] for v in which]


def quality(splats, shot, views, background):
    images, _, cameras = shot
    return np.mean(
        [psnr(render(splats, cameras[v], background=background).color, images[v]) for v in views]
    )


def test_held_out_cameras_see_the_scene_again(shot):
    known, held_out = [0, 2, 4, 6], [1, 3, 5]
    images, depths, cameras = parts(shot, known)
    background = background_from_sky(images, depths)
    refitted = fuse_views(images, depths, cameras)
    refitted.validate("splats")
    plain = fuse_views(images, depths, cameras, refit=False)
    assert quality(refitted, shot, held_out, background) > 30
    np.testing.assert_array_equal(refitted.means, plain.means)
    for views in (known, held_out):
        before = quality(plain, shot, views, background)
        assert quality(refitted, shot, views, background) > before + 0.5


def test_fusion_drops_what_other_views_saw_sharper_and_tears_no_holes(shot):
    images, depths, cameras = parts(shot, [0, 2, 4, 6])
    splats = fuse_views(images, depths, cameras, refit=False)
    surface = np.isfinite(depths)
    assert len(splats) < 0.7 * surface.sum()
    for depth, camera in zip(depths, cameras):
        alpha = render(splats, camera).alpha
        assert (alpha[np.isfinite(depth)] > 0.5).mean() > 0.99


def test_equal_views_keep_one_copy_of_everything(shot):
    images, depths, cameras = parts(shot, [2, 2, 2])
    once = fuse_views(images[:1], depths[:1], cameras[:1], refit=False)
    thrice = fuse_views(images, depths, cameras, refit=False)
    assert len(thrice) == len(once)


def test_noise_is_steadied_and_floaters_dropped(shot):
    images, depths, cameras = parts(shot, [0, 2, 4, 6])
    rng = np.random.default_rng(0)
    noisy = depths * (1 + 0.03 * rng.normal(size=depths.shape)).astype(np.float32)
    background = background_from_sky(images, depths)
    believed = fuse_views(images, noisy, cameras)
    doubted = fuse_views(images, noisy, cameras, depth_noise=0.03)
    exact = fuse_views(images, depths, cameras)
    believed, doubted, exact = (
        quality(splats, shot, [1, 3, 5], background) for splats in (believed, doubted, exact)
    )
    assert believed + 3 < doubted < exact


def test_pictures_and_noise_that_make_no_sense_are_named(shot):
    images, depths, cameras = parts(shot, [0, 1])
    with pytest.raises(ValueError, match="depth_noise is -0.1"):
        fuse_views(images, depths, cameras, depth_noise=-0.1)
    images = images.copy()
    images[1, 3, 4] = np.nan
    with pytest.raises(ValueError, match=r"images\[1\]"):
        fuse_views(images, depths, cameras)


def test_the_background_is_the_skys_colour_and_black_without_a_sky():
    images = np.zeros((2, 4, 4, 3), np.float32)
    depths = np.full((2, 4, 4), 3.0, np.float32)
    images[:, :2], depths[:, 0], depths[:, 1] = (0.2, 0.4, 0.8), np.inf, 1e10
    depths[:, 3] = np.nan
    np.testing.assert_allclose(background_from_sky(images, depths), (0.2, 0.4, 0.8))
    np.testing.assert_array_equal(background_from_sky(images, np.full((2, 4, 4), 3.0)), 0)


def test_all_sky_gives_no_gaussians(shot):
    images, depths, cameras = parts(shot, [0, 1])
    assert len(fuse_views(images, np.full_like(depths, np.inf), cameras)) == 0


def test_counts_that_differ_are_refused(shot):
    images, depths, cameras = parts(shot, [0, 1])
    with pytest.raises(ValueError, match="1 cameras"):
        fuse_views(images, depths, cameras[:1])


def test_leaving_one_out_predicts_each_view_from_the_others(shot):
    images, depths, cameras = parts(shot, [0, 2, 4, 6])
    scores = leave_one_out_views(images, depths, cameras, depth_noise=0)
    assert [score.view for score in scores] == [0, 1, 2, 3]
    assert min(score.psnr for score in scores[1:3]) > 25
    swapped = leave_one_out_views(images[::-1], depths, cameras, depth_noise=0)
    assert max(score.psnr for score in swapped) < min(score.psnr for score in scores)
