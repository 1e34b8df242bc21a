# SPDX-License-Identifier: Apache-2.0
"""The plane sweep: it finds true depth from a poor guess, and leaves alone what it cannot judge."""

import numpy as np
import pytest

from viewtime.data import raycast as rc
from viewtime.data.synthetic import Scene, look_at, random_scene, render_cell
from viewtime.reconstructor.sweep import sweep_depth


@pytest.fixture(scope="module")
def ground():
    """A ground with an unrepeating texture from four places, and its true depth."""
    row = np.zeros(rc.MATERIAL_SIZE)
    row[rc.TEXTURE], row[rc.SCALE] = rc.NOISE, 1.2
    row[rc.COLOR_A : rc.COLOR_A + 3] = 0.9, 0.7, 0.1
    row[rc.COLOR_B : rc.COLOR_B + 3] = 0.0, 0.2, 0.5
    scene = Scene((), random_scene(0).light, row)
    cameras = [
        look_at(np.array([4 * np.sin(a), -4 * np.cos(a), 4.0]), np.zeros(3), 70.0, 48, 40, str(a))
        for a in (0.0, 0.2, 0.4, 0.6)
    ]
    cells = [render_cell(scene, camera, 0.0) for camera in cameras]
    return np.stack([c[0] for c in cells]), cameras, np.stack([c[1] for c in cells])


def test_a_poor_guess_becomes_the_depth_on_which_the_views_agree(ground):
    images, cameras, true = ground
    guess = np.full_like(true, 1.15 * float(np.median(true)))
    found = sweep_depth(images, cameras, guess, np.ones(true.shape, bool))
    before, after = (np.median(np.abs(z - true) / true) for z in (guess, found))
    assert before > 0.1 and after < 0.02


def test_a_single_view_and_a_sky_keep_the_prediction(ground):
    images, cameras, true = ground
    guess = 1.2 * true
    everywhere = np.ones(true.shape, bool)
    assert np.array_equal(
        sweep_depth(images[:1], cameras[:1], guess[:1], everywhere[:1]), guess[:1]
    )
    assert np.array_equal(sweep_depth(images, cameras, guess, ~everywhere), guess)
    twice = [cameras[0], cameras[0]]  # the same place says nothing about depth
    assert np.array_equal(sweep_depth(images[:2], twice, guess[:2], everywhere[:2]), guess[:2])


def test_without_texture_the_prediction_decides(ground):
    images, cameras, true = ground
    flat = np.full_like(images, 0.5)
    guess = 1.2 * true
    found = sweep_depth(flat, cameras, guess, np.ones(true.shape, bool))
    assert np.median(np.abs(found - guess) / guess) < 0.04  # planes are about 4% apart
