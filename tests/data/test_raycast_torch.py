# SPDX-License-Identifier: Apache-2.0
"""The torch ray caster against the numba one: same scenes, same pictures, same depth."""

import numpy as np
import pytest
import torch

from viewtime.data import raycast as rc
from viewtime.data.raycast_torch import render_grid, sample_grid_on
from viewtime.data.synthetic import (
    Body,
    Motion,
    Scene,
    Solid,
    look_at,
    render_cell,
    sample_grid,
)
from viewtime_formats.rig import Rig

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"))]  # fmt: skip


# In float32 a ray that passes an edge, of a solid or of a pattern, may fall on its other side.
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "mean", "most", "depth_tolerance"),
    [(torch.float64, 1e-6, 1e-6, 1e-6), (torch.float32, 1e-5, 0.25, 1e-3)],
)
@pytest.mark.parametrize("seed", [3, 5, 8, 10])
def test_grids_are_those_of_the_numba_caster(seed, dtype, mean, most, depth_tolerance, device):
    grid, rig = sample_grid(seed, 2, 2, 32, height=24, frame_step=3.0)
    frames, depth, same_rig = sample_grid_on(
        device, seed, 2, 2, 32, height=24, frame_step=3.0, dtype=dtype
    )
    assert frames.dtype == dtype and frames.device.type == device
    assert all(
        np.array_equal(a.camera_from_world, b.camera_from_world)
        for a, b in zip(rig.cameras, same_rig.cameras)
    )
    error = np.abs(frames.cpu().numpy() - grid.frames)
    assert error.mean() < mean and error.max() < most
    depth = depth.cpu().numpy()
    both = np.isfinite(depth) & np.isfinite(grid.depth)
    assert (np.isfinite(depth) != np.isfinite(grid.depth)).mean() <= (dtype == torch.float32) * 1e-3
    np.testing.assert_allclose(depth[both], grid.depth[both], rtol=depth_tolerance)


@pytest.mark.parametrize("kind", [rc.ELLIPSOID, rc.BOX, rc.CYLINDER, rc.CAPSULE])
@pytest.mark.parametrize("texture", range(7))
def test_every_solid_and_every_texture_looks_the_same(kind, texture):
    material = np.zeros(rc.MATERIAL_SIZE)
    material[rc.TEXTURE], material[rc.SCALE] = texture, 2.2
    material[rc.PHASE : rc.PHASE + 3] = 0.4, 1.3, 2.7
    material[rc.COLOR_A : rc.COLOR_A + 3] = 0.7, 0.5, 0.2
    material[rc.COLOR_B : rc.COLOR_B + 3] = 0.1, 0.3, 0.6
    material[rc.GRAIN], material[rc.GLOSS], material[rc.EXPONENT] = 0.4, 0.5, 12.0
    light = np.zeros(rc.LIGHT_SIZE)
    light[rc.SUN : rc.SUN + 3] = np.array([2.0, -2.0, 1.0]) / 3.0
    light[rc.SUN_COLOR : rc.SUN_COLOR + 3], light[rc.AMBIENT : rc.AMBIENT + 3] = 0.9, 0.3
    light[rc.SHOULDER] = 0.5
    solid = Solid(kind, np.array([0.5, 0.5, 0.7]), material)
    turning = Motion(spin=0.3, axis=np.array([0.6, 0.0, 0.8]))
    scene = Scene((Body((solid,), np.array([0.1, 0.2, 0.8]), motion=turning),), light, material)
    eye = look_at(np.array([2.0, -2.4, 1.6]), np.array([0.0, 0.0, 0.6]), 30.0, 24, 20, "a")
    frames, depth = render_grid(scene, Rig((eye,)), [2.0], dtype=torch.float64)
    rgb, expected_depth = render_cell(scene, eye, 2.0)
    np.testing.assert_allclose(frames[0, 0].permute(1, 2, 0), rgb, atol=2e-6)
    np.testing.assert_allclose(depth[0, 0], expected_depth, rtol=1e-6)
    assert rgb.std() > 0.02


def test_a_grid_cast_in_pieces_is_the_same_grid():
    whole = sample_grid_on("cpu", 7, 3, 2, 16)
    pieces = sample_grid_on("cpu", 7, 3, 2, 16, rays_at_once=2 * 5 * 16 * 16)
    assert torch.equal(whole[0], pieces[0]) and torch.equal(whole[1], pieces[1])


def test_scenes_of_solids_alone_and_of_nothing_are_drawn():
    light = np.zeros(rc.LIGHT_SIZE)
    light[rc.SUN + 2] = 1.0
    light[rc.HORIZON : rc.HORIZON + 3] = light[rc.ZENITH : rc.ZENITH + 3] = 1.0
    eye = look_at(np.array([2.0, -2.4, 1.6]), np.zeros(3), 30.0, 6, 4, "a")
    frames, depth = render_grid(Scene((), light), Rig((eye,)), [0.0, 1.0])
    assert frames.shape == (1, 2, 3, 4, 6) and depth.shape == (1, 2, 4, 6)
    assert (frames > 0.9999).all() and (frames <= 1).all() and depth.isinf().all()
