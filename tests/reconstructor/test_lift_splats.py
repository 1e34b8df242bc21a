# SPDX-License-Identifier: Apache-2.0
"""The learned head in the pipeline: one path for predicted and captured geometry, any world."""

import dataclasses

import numpy as np
import pytest
import torch

from viewtime.data.synthetic import sample_grid
from viewtime.gaussians.ops import transform
from viewtime.grid import FrameGrid
from viewtime.models import ModelError
from viewtime.reconstructor import lift_predict
from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.lift import reconstruct
from viewtime.reconstructor.lift_predict import predict, spans
from viewtime.reconstructor.memory import Chunks, Shape, estimate_gb
from viewtime.reconstructor.model import Reconstructor
from viewtime.reconstructor.pose import matrix_from_quaternion
from viewtime_formats.errors import ViewtimeError
from viewtime_formats.gaussians import sh0_to_rgb
from viewtime_formats.rig import Camera, Rig

SIZE = 32


def model_with(head: str, **changes) -> Reconstructor:
    torch.manual_seed(0)
    config = ReconstructorConfig.small(
        dim=32, depth=4, heads=2, camera_heads=2, head_channels=(8, 8, 8, 8), head_features=8,
        size=SIZE, gaussian_head=head, **changes,
    )  # fmt: skip
    model = Reconstructor(config).eval()
    torch.nn.init.constant_(model.depth_head.surface.bias, 1.0)  # everything is a surface
    # An untrained camera head answers with quaternions near nothing.
    with torch.no_grad():
        model.camera_head.pose_branch.fc2.bias += torch.tensor([0, 0, 0, 0, 0, 0, 1.0, 0.9, 0.9])
    return model


@pytest.fixture(scope="module")
def scene():
    return sample_grid(3, 3, 2, SIZE)


def moved(rig: Rig, matrix: np.ndarray, scale: float) -> Rig:
    """The rig after its world was moved by x' = scale R x + t, scale R and t in matrix."""
    rotation, shift = matrix[:3, :3] / scale, matrix[:3, 3]
    cameras = []
    for c in rig.cameras:
        turn = c.rotation @ rotation.T
        center = matrix[:3, :3] @ c.center + shift
        cameras.append(Camera(c.name, c.width, c.height, c.intrinsics, np.c_[turn, -turn @ center]))
    return Rig(tuple(cameras), rig.world)


def test_captured_geometry_puts_the_heads_gaussians_on_the_captured_surface(scene):
    grid, rig = scene
    steps = reconstruct(model_with("residual"), grid, rig)
    assert steps.provenance["depth"] == "captured" and "residual" in steps.provenance["gaussians"]
    found = list(steps)
    assert len(found) == 2
    means, colours = [], []
    for v, camera in enumerate(rig.cameras):
        y, x = np.nonzero(np.isfinite(grid.depth[v, 1]))
        pixels = np.stack([x + 0.5, y + 0.5, np.ones(len(x))], -1)
        local = pixels @ np.linalg.inv(camera.intrinsics).T * grid.depth[v, 1, y, x][:, None]
        means.append((local - camera.translation) @ camera.rotation)
        colours.append(grid.frames[v, 1][:, y, x].T)
    np.testing.assert_allclose(found[1].means, np.concatenate(means), atol=2e-3)
    shown = sh0_to_rgb(found[1].sh[:, 0])
    assert np.abs(shown - np.concatenate(colours)).mean() < 0.05


def test_who_makes_the_gaussians_can_be_chosen(scene):
    """Asked for by name, else as the model's config has it; the grid's own pixels either way."""
    grid, rig = scene

    def maker(model: Reconstructor, **chosen: str) -> str:
        return reconstruct(model, grid, rig, **chosen).provenance["gaussians"]

    learned, analytic = model_with("residual"), model_with("residual", analytic=True)
    assert maker(learned) == maker(analytic, gaussians="learned") == "learned (residual)"
    assert maker(analytic) == maker(learned, gaussians="analytic") == "analytic"
    with pytest.raises(ModelError, match="no Gaussian head"):
        maker(model_with("none"), gaussians="learned")


@pytest.mark.parametrize("head", ["residual", "anysplat"])
def test_predicted_geometry_given_as_captured_makes_the_same_gaussians(scene, head):
    grid, _ = scene
    model = model_with(head, rays=False)
    bare = FrameGrid(grid.frames, grid.known)
    wanted = reconstruct(model, bare, None)
    predicted = predict(model, grid.frames, None)
    again = reconstruct(model, FrameGrid(grid.frames, grid.known, predicted.depth), wanted.rig)
    assert wanted.provenance["cameras"] == "predicted" and again.provenance["depth"] == "captured"
    for a, b in zip(wanted, again):
        assert 500 < len(a) < len(b)  # the least confident go where depth is predicted
        nearest = np.square(a.means[::37, None] - b.means[None]).sum(-1).argmin(1)
        np.testing.assert_allclose(b.means[nearest], a.means[::37], atol=1e-4)
        np.testing.assert_allclose(b.scales[nearest], a.scales[::37], rtol=1e-3)
        np.testing.assert_allclose(b.sh[nearest], a.sh[::37], atol=1e-3)


@pytest.mark.parametrize("head", ["residual", "anysplat"])
def test_the_world_and_its_unit_make_no_difference_to_what_is_seen(scene, head):
    grid, rig = scene
    model = model_with(head, rays=False, voxel_size=0.02 if head == "anysplat" else 0.0)
    matrix = np.eye(4)
    matrix[:3, :3] = 2.5 * matrix_from_quaternion([0.3, -0.5, 0.2, 0.7])
    matrix[:3, 3] = 3.0, -1.0, 0.5
    there = FrameGrid(grid.frames, grid.known, 2.5 * grid.depth)
    for a, b in zip(
        reconstruct(model, grid, rig), reconstruct(model, there, moved(rig, matrix, 2.5))
    ):
        wanted = transform(a, matrix)
        assert abs(len(wanted) - len(b)) <= 2
        if len(wanted) == len(b):  # a voxel's border may fall the other way
            np.testing.assert_allclose(b.means, wanted.means, atol=2e-4)
            np.testing.assert_allclose(b.scales, wanted.scales, rtol=1e-3)
            np.testing.assert_allclose(b.sh, wanted.sh, atol=1e-3)
            same = np.abs((b.rotations * wanted.rotations).sum(-1))
            assert same.min() > 1 - 1e-4
        assert b.sh.shape[1] == (16 if head == "anysplat" else 1)


def test_holes_of_the_captured_depth_are_predicted_and_sky_makes_nothing(scene):
    grid, rig = scene
    depth = grid.depth.copy()
    depth[:, :, :8] = np.inf
    model = model_with("residual")
    whole = next(reconstruct(model, FrameGrid(grid.frames, grid.known, depth), rig))
    assert len(whole) == np.isfinite(depth[:, 0]).sum()
    depth[:, :, 20:26, 10:20] = np.nan
    steps = reconstruct(model, FrameGrid(grid.frames, grid.known, depth), rig)
    assert steps.provenance["depth"] == "completed"
    holed = next(steps)
    assert np.isfinite(depth[:, 0]).sum() < len(holed) <= len(whole)


class Moody(Reconstructor):
    """Answers each call in another unit, as a model does that is not told the cameras."""

    def forward(self, frames, rays=None, **options):
        self.calls = [*getattr(self, "calls", []), frames.shape[1]]
        answer = super().forward(frames, rays, **options)
        unit = 1.0 if rays is not None else 1.0 + 0.7 * (len(self.calls) % 3)
        parts = {"depth": answer.depth / unit}
        if answer.gaussians is not None:  # offsets and sizes are in the model's unit as well
            gaussians = answer.gaussians.clone()
            gaussians[:, :, :, 4:7] -= float(np.log(unit))
            gaussians[:, :, :, :3] = 0.0
            parts["gaussians"] = gaussians
        return dataclasses.replace(answer, **parts)


def moody(head: str, **changes) -> Moody:
    usual = model_with(head, temporal="none", **changes)
    model = Moody(usual.config).eval()
    model.load_state_dict(usual.state_dict())
    return model


def test_the_windows_of_a_long_grid_agree_on_the_unit(scene, monkeypatch):
    """Each sees the last timestep of the one before again; what the model says is the same."""
    grid, _ = scene
    many = FrameGrid(grid.frames[:, [0, 1] * 5], np.ones((3, 10), bool))
    model = moody("residual")
    whole = predict(model, many.frames, None)
    model.calls = []
    wanted = list(reconstruct(model, many, None))
    assert model.calls == [10]
    monkeypatch.setattr(lift_predict, "WINDOW", 4)
    monkeypatch.setattr(lift_predict, "WINDOW_GB", 0.0)
    model.calls = [0]  # begin in another mood
    found = predict(model, many.frames, None)
    assert model.calls == [0, 4, 4, 4]
    scale = np.median(found.depth / whole.depth)
    np.testing.assert_allclose(found.depth, scale * whole.depth, rtol=1e-4)
    model.calls, seen = [], []
    steps = list(reconstruct(model, many, None, on_step=lambda i, n: seen.append((i, n))))
    assert len(steps) == 10 and seen == [(i + 1, 10) for i in range(10)]
    for a, b in zip(steps, wanted):
        np.testing.assert_allclose(a.means, b.means, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(a.scales, b.scales, rtol=1e-3)


def test_a_rig_that_is_told_needs_no_timestep_twice(scene, monkeypatch):
    grid, rig = scene
    frames = grid.frames[:, [0, 1] * 5]
    model = moody("none")
    wanted = predict(model, frames, rig, refine=False)
    weights = sum(p.numel() * 4 for p in model.parameters())
    needed = estimate_gb(model.config, Shape(1, 6, 3, SIZE, SIZE), Chunks(1, 1, 1, 1), weights)
    model.calls = []
    found = predict(model, frames, rig, refine=False, memory_budget_gb=needed)
    assert wanted.scale == "rays" and model.calls == [5, 5]
    np.testing.assert_allclose(found.depth, wanted.depth, rtol=1e-4)


def test_windows_are_even_cover_every_time_once_and_repeat_what_they_are_told_to():
    assert spans(10, 10, 1) == [(0, 10)] and spans(1, 1, 1) == [(0, 1)]
    assert spans(10, 4, 1) == [(0, 4), (3, 7), (6, 10)]
    for times in range(1, 40):
        for longest in range(2, 12):
            for repeat in (0, 1):
                found = spans(times, longest, repeat)
                assert found[0][0] == 0 and found[-1][1] == times
                assert all(end - first <= longest for first, end in found)
                assert all(a[1] - repeat == b[0] for a, b in zip(found, found[1:]))
                assert times == 1 or all(end - first > repeat for first, end in found)


def test_a_memory_budget_changes_nothing_but_the_memory(scene):
    grid, rig = scene
    model = model_with("residual")
    bare = FrameGrid(grid.frames, grid.known)
    wanted = next(reconstruct(model, bare, rig))
    got = next(reconstruct(model, bare, rig, memory_budget_gb=0.01))
    np.testing.assert_allclose(got.means, wanted.means, atol=1e-4)
    with pytest.raises(ViewtimeError, match="memory budget of 1e-06 GB"):
        reconstruct(model, bare, rig, memory_budget_gb=1e-6)


def test_between_two_timesteps_gradients_are_as_they_were(scene):
    """The steps come from a generator: what it switches off must be on again when it yields."""
    grid, rig = scene
    steps = reconstruct(model_with("residual"), FrameGrid(grid.frames, grid.known, grid.depth), rig)
    next(steps)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        next(steps)
        assert not torch.is_grad_enabled()
