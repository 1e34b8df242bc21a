# SPDX-License-Identifier: Apache-2.0
"""LPIPS: our feature stack beside torchmetrics' own combination of the same features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from viewtime.lpips import BACKBONES, WIDTHS, Lpips, gradient_distance, load_lpips
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
    """VGG16's features as a plain chain, with its five taps: written out independently."""
    layers = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
    x = (x * 2 - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor(
        [0.458, 0.448, 0.450]
    ).view(1, 3, 1, 1)
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


def test_it_is_the_published_distance_of_its_features(tmp_path):
    state = weights("vgg")
    save_file(state, tmp_path / "lpips.safetensors")
    a, b = torch.rand(2, 2, 3, 32, 48).unbind()
    expected = torch.zeros(2)
    for number, (fa, fb) in enumerate(zip(vgg_by_the_book(state, a), vgg_by_the_book(state, b))):
        na, nb = (f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in (fa, fb))
        weighted = F.conv2d((na - nb) ** 2, state[f"lin{number}.model.1.weight"])
        expected += weighted.mean(dim=(1, 2, 3))
    ours = load_lpips(tmp_path / "lpips.safetensors")(a, b)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


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
