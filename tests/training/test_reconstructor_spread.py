# SPDX-License-Identifier: Apache-2.0
"""The reconstructor's training in two processes (DDP over gloo): where one ends, both end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from viewtime.training.reconstructor_recipe import Recipe
from viewtime.training.reconstructor_stages import train
from viewtime.training.samples import read_losses

TINY = {
    "dim": 16, "depth": 4, "heads": 2, "camera_heads": 2, "head_channels": [8, 8, 8, 8],
    "head_features": 8, "size": 16, "temporal": "layer", "gaussian_head": "residual",
    "gaussian_log_scale": -3.0, "gaussian_opacity": 0.0, "rays": True,
}  # fmt: skip
PICTURES = {
    "steps": 3,
    "views": 3,
    "novel": 2,
    "warm_up": 1,
    "trains": "all",
    "peak_rate": 1e-3,
    "rays": 1.0,
}
WEIGHTS = "weights/model.safetensors"
SPREAD = """
import json, os, pathlib, sys
from safetensors.torch import save_file
from viewtime.training import reconstructor_stages as stages
from viewtime.training.reconstructor_recipe import Recipe
models, choose = [], stages.choose_parameters
def chosen(model, stage):
    models.append(model)
    return choose(model, stage)
stages.choose_parameters = chosen
recipe = json.loads(pathlib.Path(sys.argv[1]).read_text())
stages.train(Recipe.from_dict(recipe))
state = {name: value.detach().clone() for name, value in models[-1].state_dict().items()}
save_file(state, pathlib.Path(recipe["folder"]) / f"process{os.environ['RANK']}.safetensors")
"""


def settings(folder, stages, **other):
    return {
        "folder": str(folder), "stages": stages, "model": TINY, "height": 16, "width": 16,
        "precision": "no", "held_out": 1, "average": 0.9, "log_every": 1, "checkpoint_every": 2,
        "sample_every": 100, "static": ["scenes"], "dynamic": ["scenes"], **other,
    }  # fmt: skip


def logged(log: Path) -> list[list[float]]:
    """Loss and its parts of each line."""
    pattern = r"loss=(\S+) mse=(\S+) perceptual=(\S+) gradient"
    return [[float(x) for x in found] for found in re.findall(pattern, log.read_text())]


def in_two_processes(folder: Path, recipe: dict) -> list[dict[str, torch.Tensor]]:
    """Train in two processes that find each other over loopback; what each ends with."""
    (folder / "spread.py").write_text(SPREAD)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    answer = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", folder / "spread.py",
         folder / "recipe.json"],
        capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    return [load_file(Path(recipe["folder"]) / f"process{n}.safetensors") for n in (0, 1)]


def test_two_processes_end_where_one_does_with_twice_the_batch(tmp_path):
    """The scenes of a step are shared out, and the gradient is their mean; through both stages."""
    stages = [{"kind": "static", **PICTURES}, {"kind": "dynamic", "times": 2, "own": 1, **PICTURES}]
    first, second = in_two_processes(tmp_path, settings(tmp_path / "two", stages))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = settings(tmp_path / "one", [{**stage, "batch": 2} for stage in stages])
    train(Recipe.from_dict(alone))
    for part in ("1-static", "2-dynamic", "."):
        one, two = (load_file(tmp_path / n / part / WEIGHTS) for n in ("one", "two"))
        for name, value in one.items():
            rounded = 1e-3 if part == "." else 0.0  # one step of float16, which these are kept in
            torch.testing.assert_close(
                two[name], value, atol=2e-4, rtol=rounded, msg=f"{part}: {name}"
            )
    for part in ("1-static", "2-dynamic"):
        one, two = (logged(tmp_path / n / part / "log.txt") for n in ("one", "two"))
        assert len(one) == len(two) == 3
        np.testing.assert_allclose(two, one, rtol=5e-3)


def test_processes_that_see_other_scenes_and_sizes_stay_one_model(tmp_path):
    """In a geometry stage each draws batches of its own; and one goes on where both stopped."""
    stage = {"kind": "geometry", "steps": 6, "batch": 2, "rays": 0.5, "warm_up": 1}
    recipe = settings(tmp_path / "run", [stage])
    first, second = in_two_processes(tmp_path, recipe)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(bool(torch.isfinite(value).all()) for value in first.values())
    train(Recipe.from_dict({**recipe, "stages": [{**stage, "steps": 7}]}))
    assert read_losses(tmp_path / "run/1-geometry/log.txt")[0].tolist() == [1, 2, 3, 4, 5, 6, 7]
