# SPDX-License-Identifier: Apache-2.0
"""The differentiable similarity between predicted and captured cameras."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from viewtime.reconstructor.align import align_cameras
from viewtime.training.reconstructor_novel import align
from viewtime_formats.rig import Camera, Rig


def some_cameras(count: int, seed: int, line: bool = False) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    turns = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    turns *= np.sign(np.linalg.det(turns))[:, None, None]
    centres = rng.normal(size=(count, 3))
    if line:
        centres = np.linspace(0, 1, count)[:, None] * centres[:1]
    places = -np.einsum("vij,vj->vi", turns, centres)
    return torch.from_numpy(np.concatenate([turns, places[..., None]], -1))


@pytest.mark.parametrize("count, line", [(2, True), (4, True), (4, False)])
def test_the_similarity_between_cameras_is_found(count, line):
    captured = some_cameras(count, 1, line)
    turn, place, scale = some_cameras(1, 3)[0, :, :3], torch.tensor([1.0, -2.0, 0.5]).double(), 1.7
    rotation = captured[..., :3] @ turn  # x_captured = scale * turn @ x_predicted + place
    predicted = torch.cat([rotation, _column(captured, place) / scale], -1)
    found = align(predicted, captured)
    assert float(found.scale) == pytest.approx(scale)
    torch.testing.assert_close(found.rotation, turn)
    torch.testing.assert_close(found.translation, place)


def _column(poses: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    return (poses[..., 3] + poses[..., :3] @ place)[..., None]


def test_the_similaritys_gradients_are_those_of_finite_differences():
    captured = some_cameras(4, 1)
    turn = some_cameras(1, 3)[0, :, :3]
    predicted = torch.cat([captured[..., :3] @ turn, captured[..., 3:]], -1)
    predicted = predicted + 0.05 * torch.randn(predicted.shape, dtype=torch.float64)
    predicted.requires_grad_()

    def fit(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = align(x, captured)
        return found.scale, found.rotation, found.translation

    assert torch.autograd.gradcheck(fit, (predicted,), atol=1e-4)


def test_the_similarity_is_the_aligners_where_no_camera_is_an_outlier():
    captured, noise = some_cameras(5, 4), np.random.default_rng(5)
    predicted = captured.clone()
    predicted[..., 3] = 0.5 * predicted[..., 3] + torch.from_numpy(0.01 * noise.normal(size=(5, 3)))
    lens = np.array([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]])

    def rig(poses: torch.Tensor) -> Rig:
        return Rig(tuple(Camera(str(v), 16, 16, lens, p.numpy()) for v, p in enumerate(poses)))

    robust = align_cameras(rig(predicted), rig(captured))
    found = align(predicted, captured)
    assert float(found.scale) == pytest.approx(robust.scale, rel=0.03)
    np.testing.assert_allclose(found.rotation.numpy(), robust.rotation, atol=0.03)
