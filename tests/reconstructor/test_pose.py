# SPDX-License-Identifier: Apache-2.0
"""Pose encodings and rays: round trips, the rig's own unit, and what no similarity changes."""

import numpy as np

from viewtime.data.synthetic import random_rig, random_scene
from viewtime.reconstructor.pose import (
    decode_rig,
    encode_rig,
    focus_of,
    matrix_from_quaternion,
    quaternion_from_matrix,
    rig_rays,
    upward,
)
from viewtime_formats.rig import Camera, Rig

SCENE = random_scene(4)
RIG = random_rig(4, SCENE, 4, 32, 24)


def moved(rig: Rig, scale: float, turn: float, shift: np.ndarray) -> Rig:
    """The rig in a world scaled, turned about Z and shifted."""
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    cameras = []
    for camera in rig.cameras:
        r = camera.rotation @ rotation.T
        center = scale * rotation @ camera.center + shift
        pose = np.concatenate([r, (-r @ center)[:, None]], 1)
        cameras.append(Camera(camera.name, 32, 24, camera.intrinsics, pose))
    return Rig(tuple(cameras))


def test_quaternions_and_matrices_turn_into_each_other():
    rng = np.random.default_rng(0)
    for _ in range(20):
        q = rng.normal(size=4)
        m = matrix_from_quaternion(q)
        np.testing.assert_allclose(m @ m.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(matrix_from_quaternion(quaternion_from_matrix(m)), m, atol=1e-9)
    half_turn = np.diag([1.0, -1.0, -1.0])
    np.testing.assert_allclose(np.abs(quaternion_from_matrix(half_turn)), [1, 0, 0, 0], atol=1e-12)


def test_a_rig_survives_its_encoding_up_to_view_0s_frame_and_the_scale():
    rig = decode_rig(encode_rig(RIG, 2.0), 32, 24)
    assert rig.world == "view0"
    np.testing.assert_allclose(rig.cameras[0].camera_from_world, np.eye(4)[:3], atol=1e-7)
    reference = RIG.cameras[0].world_from_camera
    for camera, original in zip(rig.cameras, RIG.cameras):
        wanted = original.camera_from_world @ reference
        np.testing.assert_allclose(camera.rotation, wanted[:, :3], atol=1e-5)
        np.testing.assert_allclose(camera.translation, wanted[:, 3] / 2.0, atol=1e-5)
        np.testing.assert_allclose(camera.intrinsics, original.intrinsics, rtol=1e-4)


def test_the_focus_is_what_the_cameras_look_at():
    focus, unit = focus_of(RIG)
    np.testing.assert_allclose(focus, SCENE.target, atol=1e-6)
    distances = [np.linalg.norm(c.center - SCENE.target) for c in RIG.cameras]
    np.testing.assert_allclose(unit, np.mean(distances))
    assert focus_of(Rig(RIG.cameras[:1])) is None


def test_rays_hit_the_focus_and_do_not_know_the_worlds_scale_place_or_heading():
    found = rig_rays(RIG, 32, 24)
    assert found.rays.shape == (4, 6, 24, 32)
    np.testing.assert_allclose(np.linalg.norm(found.rays[:, 3:], axis=1), 1.0, atol=1e-5)
    middle = found.rays[:, 3:, 11:13, 15:17].mean((2, 3))
    origin = found.rays[:, :3, 0, 0]
    np.testing.assert_allclose(np.cross(middle, origin), 0.0, atol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(origin, axis=1).mean(), 1.0, rtol=1e-5)
    other = rig_rays(moved(RIG, 3.0, 1.1, np.array([5.0, -2.0, 1.0])), 32, 24)
    np.testing.assert_allclose(other.rays, found.rays, atol=1e-5)
    np.testing.assert_allclose(other.unit, 3.0 * found.unit)


def tilted(rig: Rig, quaternion: list[float]) -> Rig:
    """The rig in a dataset's world: turned by a quaternion xyzw, twice as large, and moved."""
    rotation, cameras = matrix_from_quaternion(quaternion), []
    for c in rig.cameras:
        turn = c.rotation @ rotation.T
        center = 2.0 * rotation @ c.center + [1.0, -3.0, 2.0]
        cameras.append(Camera(c.name, c.width, c.height, c.intrinsics, np.c_[turn, -turn @ center]))
    return Rig(tuple(cameras), "dataset")


def test_a_dataset_whose_z_points_anywhere_gives_the_rays_of_an_upright_world():
    wanted = rig_rays(RIG, 32, 24).rays
    rng = np.random.default_rng(1)
    for _ in range(5):
        found = rig_rays(tilted(RIG, rng.normal(size=4)), 32, 24)
        again = rig_rays(tilted(RIG, rng.normal(size=4)), 32, 24)
        np.testing.assert_allclose(found.rays, again.rays, atol=1e-5)
        np.testing.assert_allclose(found.rays, wanted, atol=0.02)


def test_up_in_a_world_that_does_not_say_is_up_in_the_pictures():
    for seed in range(8):
        rig = random_rig(seed, random_scene(seed), 5, 32, 24)
        assert upward(rig).tolist() == [0.0, 0.0, 1.0]
        assert upward(Rig(rig.cameras, "dataset"))[2] > np.cos(np.radians(3.0))
    # One heading says nothing of the lean, and a rig that agrees on nothing keeps Z.
    camera = RIG.cameras[0]
    np.testing.assert_allclose(upward(Rig((camera,), "dataset")), -camera.rotation[1], atol=1e-9)
    over = np.diag([-1.0, -1.0, 1.0]) @ camera.camera_from_world
    pair = (camera, Camera("over", 32, 24, camera.intrinsics, over))
    assert upward(Rig(pair, "dataset")).tolist() == [0.0, 0.0, 1.0]
