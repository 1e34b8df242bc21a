# SPDX-License-Identifier: Apache-2.0
"""Pixels with depth to disks: exact on planes, honest at edges, silent about the sky."""

from __future__ import annotations

import numpy as np
import pytest

from viewtime.gaussians import render
from viewtime.gaussians.lift import surfels
from viewtime.gaussians.ops import concatenate, quaternion_from_matrix, select, transform
from viewtime_formats.rig import Camera

TURN = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
TURN = TURN * np.sign(np.linalg.det(TURN))


def camera(size: int = 48) -> Camera:
    intrinsics = np.array([[60.0, 0, size / 2 + 1], [0, 57.0, size / 2 - 2], [0, 0, 1]])
    return Camera("test", size, size, intrinsics, np.column_stack([TURN, [0.5, -1.0, 2.0]]))


def rays(view: Camera) -> np.ndarray:
    """(H, W, 3) in camera axes, z = 1, through the pixel centres."""
    x, y = np.meshgrid(np.arange(view.width) + 0.5, np.arange(view.height) + 0.5)
    pixels = np.stack([x, y, np.ones_like(x)], -1)
    return pixels @ np.linalg.inv(view.intrinsics).T


def plane(view: Camera, normal: np.ndarray, distance: float) -> np.ndarray:
    """Depth (H, W) of the plane normal . x = -distance in camera axes."""
    return (-distance / (rays(view) @ normal)).astype(np.float32)


def rotation_matrices(q: np.ndarray) -> np.ndarray:
    w, x, y, z = np.moveaxis(q.astype(np.float64), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.5, 0.2, -0.8), (-0.3, 0.85, -0.4)])
def test_a_tilted_plane_gives_its_exact_normal_everywhere(normal):
    view, normal = camera(), np.array(normal) / np.linalg.norm(normal)
    depth = plane(view, normal, 3.0)
    seen = (depth > 0) & (depth < 20)
    disks = surfels(np.zeros((48, 48, 3), np.float32), np.where(seen, depth, np.inf), view)
    inside = np.zeros((48, 48), bool)
    inside[1:-1, 1:-1] = seen[1:-1, 1:-1] & seen[:-2, 1:-1] & seen[2:, 1:-1]
    inside[1:-1, 1:-1] &= seen[1:-1, :-2] & seen[1:-1, 2:]
    inner = inside.ravel()[disks.pixel]
    assert inner.sum() > 500
    expected = normal @ view.rotation
    np.testing.assert_allclose(
        disks.normals[inner], np.broadcast_to(expected, (inner.sum(), 3)), atol=2e-4
    )
    assert not disks.edge[inner].any()
    turned = rotation_matrices(disks.rotations)
    np.testing.assert_allclose(turned[..., 2], disks.normals, atol=1e-5)
    # The long axis lies along the slant: no part of the view ray is left across it.
    ray = disks.means - view.center
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    across = np.einsum("nk,nk->n", turned[..., 1], ray)
    np.testing.assert_allclose(across[inner], 0, atol=1e-3)


def test_means_lie_on_the_surface_and_disks_cover_a_pixel():
    view, depth = camera(), plane(camera(), np.array([0, 0, -1.0]), 3.0)
    disks = surfels(np.zeros((48, 48, 3), np.float32), depth, view, footprint=0.6)
    points = disks.means @ view.rotation.T + view.translation
    np.testing.assert_allclose(points, 3.0 * rays(view).reshape(-1, 3), atol=1e-5)
    np.testing.assert_allclose(disks.scales[:, 1], 0.6 * 3 / np.sqrt(60 * 57), rtol=1e-5)
    stretch = disks.scales[:, 0] / disks.scales[:, 1]
    np.testing.assert_allclose(stretch, 1 / disks.cosine, rtol=1e-4)


def test_a_wall_straight_ahead_of_an_unturned_camera_has_a_rotation():
    view = Camera("plain", 9, 9, np.array([[9.0, 0, 4.5], [0, 9, 4.5], [0, 0, 1]]), np.eye(4)[:3])
    disks = surfels(np.zeros((9, 9, 3), np.float32), np.full((9, 9), 2.0, np.float32), view)
    np.testing.assert_allclose(np.linalg.norm(disks.rotations, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rotation_matrices(disks.rotations)[..., 2], disks.normals, atol=1e-5)


def test_ground_seen_at_a_grazing_angle_has_no_gaps():
    view, depth = camera(), plane(camera(), np.array([0, -0.995, -0.0998]), 1.0)
    depth = np.where((depth > 0) & (depth < 30), depth, np.inf)
    disks = surfels(np.zeros((48, 48, 3), np.float32), depth, view)
    assert disks.cosine.min() < 0.1
    # At its own pixel every disk is opaque; between the pixels only stretched ones meet.
    alpha = render(disks.gaussians(), view.resized(96, 96)).alpha
    assert (alpha[np.isfinite(depth).repeat(2, 0).repeat(2, 1)] > 0.9).mean() > 0.98


def test_sky_and_unknown_pixels_give_no_disks():
    depth = np.full((48, 48), 2.0, np.float32)
    depth[:10], depth[10:20], depth[20:30], depth[30:31] = np.inf, 1e10, np.nan, 0.0
    disks = surfels(np.zeros((48, 48, 3), np.float32), depth, camera())
    np.testing.assert_array_equal(disks.pixel, np.arange(31 * 48, 48 * 48))
    for name in ("means", "scales", "rotations"):
        assert np.isfinite(getattr(disks, name)).all()
    disks.gaussians().validate("disks")


def test_both_sides_of_a_step_are_edges_and_keep_their_own_normals():
    view, depth = camera(), np.full((48, 48), 4.0, np.float32)
    depth[:, 24:] = 3.0
    disks = surfels(np.zeros((48, 48, 3), np.float32), depth, view)
    edge = np.zeros((48, 48), bool)
    edge.ravel()[disks.pixel] = disks.edge
    expected = np.zeros((48, 48), bool)
    expected[:, 23:25] = True
    np.testing.assert_array_equal(edge, expected)
    facing = np.broadcast_to(-view.rotation[2], disks.normals.shape)
    np.testing.assert_allclose(disks.normals, facing, atol=1e-5)


def test_a_pixel_between_strangers_faces_the_camera_with_a_sane_disk():
    view, depth = camera(), np.full((48, 48), np.inf, np.float32)
    depth[20, 20] = 3.0
    disks = surfels(np.zeros((48, 48, 3), np.float32), depth, view)
    np.testing.assert_allclose(disks.normals[0], -view.rotation[2], atol=1e-5)
    assert disks.edge.all()


def test_its_own_camera_sees_the_picture_again():
    view, normal = camera(), np.array([0.4, 0.1, -0.9])
    depth = plane(view, normal / np.linalg.norm(normal), 3.0)
    x, y = np.meshgrid(np.linspace(0, 6, 48), np.linspace(0, 6, 48))
    image = (0.5 + 0.4 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)).astype(np.float32)
    shown = render(surfels(image, depth, view).gaussians(), view)
    assert shown.alpha.min() > 0.97
    assert np.square(shown.color - image)[3:-3, 3:-3].mean() < 10**-3.5  # 35 dB
    np.testing.assert_allclose(shown.depth, depth, rtol=0.01)


def test_picture_depth_and_camera_must_have_one_size():
    with pytest.raises(ValueError, match="48 x 48"):
        surfels(np.zeros((48, 40, 3), np.float32), np.ones((48, 40), np.float32), camera())


def test_quaternions_come_back_from_matrices_at_every_angle():
    rng = np.random.default_rng(3)
    q = rng.normal(size=(500, 4))
    q[:8] = np.concatenate([np.eye(4), np.eye(4) + 1e-9])
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    back = quaternion_from_matrix(rotation_matrices(q))
    np.testing.assert_allclose(np.abs(np.einsum("nk,nk->n", back, q)), 1, atol=1e-9)
    np.testing.assert_allclose(rotation_matrices(back), rotation_matrices(q), atol=1e-9)


def test_moving_gaussians_and_camera_together_changes_nothing():
    view, depth = camera(), plane(camera(), np.array([0.2, 0.1, -0.97]), 3.0)
    rng = np.random.default_rng(0)
    splats = surfels(rng.random((48, 48, 3), np.float32), depth, view).gaussians()
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    scale, shift = 1.7, np.array([3.0, -1.0, 2.0])
    moved = transform(splats, np.column_stack([scale * turn, shift]))
    pose = np.column_stack(
        [view.rotation @ turn.T, scale * view.translation - view.rotation @ turn.T @ shift]
    )
    other = Camera("moved", 48, 48, view.intrinsics, pose)
    np.testing.assert_allclose(render(moved, other).color, render(splats, view).color, atol=5e-3)
    with pytest.raises(ValueError, match="similarity"):
        transform(splats, np.diag([1.0, 1, -1, 1]))
    with pytest.raises(ValueError, match="shears"):
        transform(splats, np.diag([1.0, 1, 2, 1]))


def test_joining_keeps_order_and_pads_lower_degrees():
    depth = np.full((48, 48), 2.0, np.float32)
    splats = surfels(np.full((48, 48, 3), 0.25, np.float32), depth, camera()).gaussians()
    richer = select(splats, slice(0, 5))
    richer.sh = np.ones((5, 4, 3), np.float32)
    joined = concatenate([splats, richer])
    joined.validate("joined")
    assert len(joined) == len(splats) + 5 and joined.sh_degree == 1
    np.testing.assert_array_equal(joined.means[-5:], splats.means[:5])
    assert not joined.sh[: len(splats), 1:].any()
