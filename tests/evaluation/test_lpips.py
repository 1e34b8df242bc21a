# SPDX-License-Identifier: Apache-2.0
"""LPIPS beside VGG16 written out here, its features put together by torchmetrics' own pieces.

torchmetrics' whole class cannot be asked: its backbone is torchvision's, which is not installed.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchmetrics.functional.image.lpips import (
    NetLinLayer,
    ScalingLayer,
    _normalize_tensor,
    _spatial_average,
)

from viewtime.lpips import BACKBONES, WIDTHS, Lpips, _unit, gradient_distance, load_lpips
from viewtime_formats.errors import ViewtimeError


def weights(backbone):
    torch.manual_seed(0)
    model = Lpips(backbone)
    state = {}
    for name, layer in model.features.items():
        state[f"features.{name}.weight"] = torch.randn_like(layer.weight) * 0.05
        state[f"features.{name}.bias"] = torch.randn_like(layer.bias) * 0.05
    for number, width in enumerate(WIDTHS[backbone]):
        state[f"lin{number}.model.1.weight"] = torch.rand(1, width, 1, 1)
    return state


def vgg_by_the_book(state, x):
    """VGG16's features as a plain chain, with its five taps. x: (B, 3, H, W) in [0, 1]."""
    layers = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
    x = ScalingLayer()(2 * x - 1)
    number, taps = 0, []
    for place, layer in enumerate(layers):
        if layer == "M":
            taps.append(x)
            x, number = F.max_pool2d(x, 2, 2), number + 1
            continue
        weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
        assert weight.shape[0] == layer
        x, number = F.relu(F.conv2d(x, weight, bias, padding=1)), number + 2
        if place == len(layers) - 1:
            taps.append(x)
    return taps


def by_torchmetrics(state, a, b):
    """The distance (B,) of VGG16's features as `_LPIPS.forward` of torchmetrics computes it."""
    total = torch.zeros(len(a))
    for number, (fa, fb) in enumerate(zip(vgg_by_the_book(state, a), vgg_by_the_book(state, b))):
        layer = NetLinLayer(fa.shape[1])
        layer.model[0].weight.data = state[f"lin{number}.model.1.weight"]
        with torch.no_grad():
            weighted = layer((_normalize_tensor(fa) - _normalize_tensor(fb)) ** 2)
        total += _spatial_average(weighted, keep_dim=True).flatten()
    return total


def test_it_is_the_distance_that_torchmetrics_makes_of_the_same_features(tmp_path):
    state = weights("vgg")
    save_file(state, tmp_path / "lpips.safetensors")
    a, b = torch.rand(2, 2, 3, 32, 48).unbind()
    ours = load_lpips(tmp_path / "lpips.safetensors")(a, b)
    torch.testing.assert_close(ours, by_torchmetrics(state, a, b), rtol=1e-4, atol=1e-6)


def test_features_that_are_almost_zero_are_scaled_as_torchmetrics_scales_them():
    features = 1e-4 * torch.rand(2, 4, 3, 3)
    torch.testing.assert_close(_unit(features), _normalize_tensor(features))
    assert 0.1 < float(_unit(features).norm(dim=1).max()) < 0.95


def test_features_that_are_all_zero_have_a_gradient():
    """Where no channel of a layer answers; it used to be nan, and spoilt the whole step."""
    model = Lpips("alex")
    for layer in model.features.values():
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(layer.bias, -1.0)  # silent after the ReLU
    picture = torch.rand(1, 3, 64, 64, requires_grad=True)
    model(picture, torch.rand(1, 3, 64, 64)).sum().backward()
    assert picture.grad is not None and picture.grad.eq(0).all()
    silent = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit = _unit(silent)
    assert unit.eq(0).all()
    unit.sum().backward()
    assert silent.grad is not None and torch.isfinite(silent.grad).all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_equal_pictures_are_at_no_distance_and_gradients_reach_the_picture(backbone, tmp_path):
    save_file(weights(backbone), tmp_path / "w.safetensors")
    model = load_lpips(tmp_path / "w.safetensors", backbone)
    a = torch.rand(1, 3, 64, 64)
    assert model(a, a).item() == 0
    b = torch.rand(1, 3, 64, 64, requires_grad=True)
    model(a, b).sum().backward()
    assert b.grad is not None and b.grad.abs().sum() > 0


def test_other_weights_are_refused_by_what_is_absent(tmp_path):
    state = weights("alex")
    del state["lin3.model.1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ViewtimeError, match="not the weights of LPIPS .alex.: 'lin3"):
        load_lpips(tmp_path / "w.safetensors", "alex")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ViewtimeError, match="not readable as safetensors"):
        load_lpips(tmp_path / "x.safetensors")
    with pytest.raises(ViewtimeError, match="backbone is 'resnet', must be one of vgg, alex"):
        Lpips("resnet")


def test_the_stand_in_sees_blur_that_a_mean_cannot():
    """A blurred picture loses to the truth, a shifted brightness does not."""
    truth = torch.rand(1, 3, 32, 32)
    blurred = F.avg_pool2d(F.pad(truth, (1, 1, 1, 1), mode="reflect"), 3, 1)
    assert gradient_distance(truth, truth).item() == 0
    assert gradient_distance(truth, truth + 0.2).item() < 1e-6
    assert gradient_distance(truth, blurred).item() > 0.1
