# SPDX-License-Identifier: Apache-2.0
"""The state of a training: what is read back goes on as what was written would have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from viewtime.training.checkpoints import load_state, save_state
from viewtime.training.common import Average, TrainingError


class Two(nn.Module):
    """Two layers, the second of which is used from step `late` on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.late = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, step: int) -> torch.Tensor:
        x = self.used(x)
        return self.late(x) if step >= 4 else x


def begun(seed: int = 0):
    torch.manual_seed(seed)
    model = Two()
    return model, Average(model, 0.9), torch.optim.AdamW(model.parameters(), lr=0.1)


def go_on(model, average, optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        model(torch.full((1, 3), step + 1.0), step).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step)


def test_a_layer_that_had_no_gradient_yet_starts_fresh_after_a_resume_as_it_would_have(tmp_path):
    whole = begun()
    go_on(*whole, 0, 2)
    save_state(tmp_path / "train.safetensors", 2, *whole, facts={"seconds": "1.5"})
    resumed = begun(seed=1)
    assert load_state(tmp_path / "train.safetensors", *resumed) == 2
    for training in (whole, resumed):
        go_on(*training, 2, 7)
    one, two = whole[0].state_dict(), resumed[0].state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(whole[1].state[n], resumed[1].state[n]) for n in whole[1].state)


def test_a_checkpoint_of_something_else_or_of_no_training_is_refused(tmp_path):
    from safetensors.torch import save_file

    model, average, optimizer = begun()
    path = tmp_path / "train.safetensors"
    weights = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for tensors in (weights, {"model.other": torch.zeros(1)}):
        save_file(tensors, path, {"step": "3"})
        with pytest.raises(TrainingError, match="not a checkpoint of this model"):
            load_state(path, model, average, optimizer)
