# SPDX-License-Identifier: Apache-2.0
"""Procedural scenes: exact depth, agreement between cameras, real motion. Never compares looks."""

import math

import numpy as np
import pytest

from viewtime.data import raycast as rc
from viewtime.data.synthetic import (
    Body,
    Motion,
    Scene,
    Solid,
    look_at,
    random_rig,
    random_scene,
    render_cell,
    sample_grid,
)


def plain_light(softness: float = 0.0) -> np.ndarray:
    light = np.zeros(rc.LIGHT_SIZE)
    light[rc.SUN : rc.SUN + 3] = np.array([1.0, 2.0, 2.0]) / 3.0
    light[rc.SOFTNESS] = softness
    light[rc.SUN_COLOR : rc.SUN_COLOR + 3] = 0.7
    light[rc.AMBIENT : rc.AMBIENT + 3] = 0.3
    return light


def material(texture: int = rc.NOISE) -> np.ndarray:
    row = np.zeros(rc.MATERIAL_SIZE)
    row[rc.TEXTURE], row[rc.SCALE] = texture, 0.8
    row[rc.COLOR_A : rc.COLOR_A + 3] = 0.7, 0.5, 0.2
    row[rc.COLOR_B : rc.COLOR_B + 3] = 0.1, 0.3, 0.6
    return row


def rays(camera) -> tuple[np.ndarray, np.ndarray]:
    """Camera centre (3,) and world rays (H,W,3) whose camera z is 1, through pixel centres."""
    y, x = np.mgrid[0 : camera.height, 0 : camera.width] + 0.5
    pixel = np.stack([x, y, np.ones_like(x)], -1)
    return camera.center, pixel @ np.linalg.inv(camera.intrinsics).T @ camera.rotation


CAMERA = look_at(np.array([3.0, -4.0, 2.5]), np.array([0.0, 0.0, 0.5]), 60.0, 48, 40, "a")


def test_depth_of_the_ground_is_the_plane():
    _, depth = render_cell(Scene((), plain_light(), material()), CAMERA, 0.0)
    centre, direction = rays(CAMERA)
    expected = np.where(direction[..., 2] < 0, -centre[2] / direction[..., 2], np.inf)
    expected[expected > 400.0] = np.inf
    np.testing.assert_allclose(depth, expected, rtol=1e-6)


def test_depth_of_an_ellipsoid_is_the_analytic_one():
    half, place = np.array([0.9, 0.6, 0.4]), np.array([0.2, 0.1, 0.7])
    scene = Scene((Body((Solid(rc.ELLIPSOID, half, material()),), place),), plain_light())
    _, depth = render_cell(scene, CAMERA, 0.0)
    centre, direction = rays(CAMERA)
    o, d = (centre - place) / half, direction / half
    a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum(-1) - 1.0
    disc = b * b - a * c
    expected = np.where(disc > 0, (-b - np.sqrt(np.maximum(disc, 0))) / a, np.inf)
    assert np.isfinite(expected).sum() > 50
    np.testing.assert_allclose(depth, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [rc.BOX, rc.CYLINDER, rc.CAPSULE])
def test_surface_points_lie_on_the_solid(kind):
    half, place = np.array([0.5, 0.5, 0.6]), np.array([0.0, 0.1, 0.5])
    scene = Scene((Body((Solid(kind, half, material()),), place),), plain_light())
    _, depth = render_cell(scene, CAMERA, 0.0)
    centre, direction = rays(CAMERA)
    hit = np.isfinite(depth)
    assert 50 < hit.sum() < hit.size
    p = np.abs(centre + depth[hit][:, None].astype(np.float64) * direction[hit] - place)
    if kind == rc.BOX:
        gap = (p - half).max(-1)
    elif kind == rc.CYLINDER:
        gap = np.maximum(np.hypot(p[:, 0], p[:, 1]) - 0.5, p[:, 2] - 0.6)
    else:
        gap = (
            np.linalg.norm(
                p - np.stack([0 * p[:, 2]] * 2 + [np.minimum(p[:, 2], 0.6)], -1), axis=-1
            )
            - 0.5
        )
    np.testing.assert_allclose(gap, 0.0, atol=1e-5)


def test_two_cameras_see_the_same_colour_at_the_same_point():
    solid = Solid(rc.BOX, np.array([0.5, 0.6, 0.4]), material(rc.NOISE))
    scene = Scene((Body((solid,), np.array([0.0, 0.0, 0.4])),), plain_light(0.05), material())
    other = look_at(np.array([4.0, -2.0, 2.2]), np.array([0.0, 0.0, 0.5]), 120.0, 96, 80, "b")
    first = CAMERA.resized(96, 80)
    rgb, depth = render_cell(scene, first, 0.0)
    rgb_other, depth_other = render_cell(scene, other, 0.0)
    centre, direction = rays(first)
    point = centre + np.where(np.isfinite(depth), depth, 0.0)[..., None] * direction
    local = point @ other.rotation.T + other.translation
    pixel = local @ other.intrinsics.T
    x, y = pixel[..., 0] / pixel[..., 2], pixel[..., 1] / pixel[..., 2]
    inside = np.isfinite(depth) & (x > 0) & (x < 96) & (y > 0) & (y < 80) & (local[..., 2] < 9)
    i, j = x[inside].astype(int), y[inside].astype(int)
    seen = np.abs(depth_other[j, i] - local[..., 2][inside]) < 0.05
    assert seen.mean() > 0.6
    error = np.abs(rgb[inside][seen] - rgb_other[j, i][seen])
    assert np.median(error) < 0.02 and error.mean() < 0.04


def test_a_blocked_sun_leaves_a_shadow_with_a_soft_border_only_when_soft():
    ball = Solid(rc.ELLIPSOID, np.full(3, 0.5), material(rc.PLAIN))
    camera = look_at(np.array([0.0, -0.1, 9.0]), np.zeros(3), 160.0, 96, 96, "top")
    levels = []
    for softness in (0.0, 0.2):
        ground = material(rc.PLAIN)
        scene = Scene((Body((ball,), np.array([0.5, 1.0, 2.0])),), plain_light(softness), ground)
        rgb, depth = render_cell(scene, camera, 0.0)
        floor = rgb[depth > 8.0][:, 0]
        lit, dark = floor.max(), floor.min()
        assert dark < 0.75 * lit
        levels.append(((floor > dark + 0.05) & (floor < lit - 0.05)).sum())
    assert levels[1] > 1.5 * levels[0]


def test_a_seed_gives_the_same_arrays_and_another_seed_others():
    grid, rig = sample_grid(5, 2, 2, 24)
    again, rig_again = sample_grid(5, 2, 2, 24)
    other, _ = sample_grid(6, 2, 2, 24)
    assert np.array_equal(grid.frames, again.frames) and np.array_equal(grid.depth, again.depth)
    assert all(
        np.array_equal(a.camera_from_world, b.camera_from_world)
        for a, b in zip(rig.cameras, rig_again.cameras)
    )
    assert not np.array_equal(grid.frames, other.frames)


def test_grids_are_full_and_move_unless_they_are_still():
    moved = 0
    for seed in range(6):
        grid, rig = sample_grid(seed, 3, 3, 24, height=16, frame_step=3.0)
        assert grid.frames.shape == (3, 3, 3, 16, 24) and grid.depth.shape == (3, 3, 16, 24)
        assert grid.known.all() and len(rig.cameras) == 3
        assert grid.frames.min() >= 0.0 and grid.frames.max() <= 1.0
        assert (grid.depth > 0).all() and not np.isnan(grid.depth).any()
        moved += int(np.abs(grid.frames[:, 0] - grid.frames[:, 2]).max() > 0.1)
        still, _ = sample_grid(seed, 2, 2, 24, still=True, frame_step=3.0)
        assert np.array_equal(still.frames[:, 0], still.frames[:, 1])
    assert moved >= 5


def test_a_motion_turns_by_its_spin_and_returns_after_a_period():
    motion = Motion(swing=np.array([1.0, 0.0, 0.0]), period=8.0, spin=0.1)
    np.testing.assert_allclose(motion.offset(0.0), motion.offset(8.0), atol=1e-9)
    turned = motion.rotation(5.0) @ [1.0, 0.0, 0.0]
    assert math.isclose(math.atan2(turned[1], turned[0]), 0.5)


def test_cameras_stand_on_an_arc_and_see_the_scene():
    for seed in range(20):
        scene = random_scene(seed)
        rig = random_rig(seed, scene, 4, 16, 16)
        rays_to_target = np.array([c.center - scene.target for c in rig.cameras])[:, :2]
        rays_to_target /= np.linalg.norm(rays_to_target, axis=1, keepdims=True)
        span = math.degrees(math.acos((rays_to_target @ rays_to_target.T).min()))
        assert 39.0 < span < 111.0
        for camera in rig.cameras:
            middle = camera.intrinsics @ (camera.rotation @ scene.target + camera.translation)
            np.testing.assert_allclose(middle[:2] / middle[2], 8.0, atol=1e-6)
