# SPDX-License-Identifier: Apache-2.0
"""What a training leaves in weights/: a generator that loads, whole, whatever was killed when."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from viewtime.generator import generate, load_generator
from viewtime.generator.codec import WanCodec
from viewtime.generator.errors import GeneratorError
from viewtime.generator.load import save_generator
from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer
from viewtime.grid import FrameGrid
from viewtime.training import generator as small
from viewtime.training import weights as weights_module
from viewtime.training.fine_tuning import FineTuning, train


def wan_settings(base, folder, **other):
    return {
        "base": str(base), "folder": str(folder), "phases": [{"frames": 5, "steps": 1}],
        "views": 2, "height": 16, "width": 16, "batch": 1, "warm_up": 0, "precision": "no",
        "log_every": 1, "checkpoint_every": 1, "sample_every": 1, "sample_steps": 1, **other,
    }  # fmt: skip


def a_grid():
    known = np.zeros((2, 5), bool)
    known[0] = True
    return FrameGrid(np.full((2, 5, 3, 16, 16), 0.5, np.float32), known)


def test_a_fine_tuned_checkpoint_loads_and_generates_with_its_bases_codec_and_text(
    wan_base, tmp_path
):
    weights = train(FineTuning.from_dict(wan_settings(wan_base, tmp_path / "run")))
    shutil.rmtree(wan_base)  # nothing is left of the base, and the weights are elsewhere
    moved = weights.rename(tmp_path / "moved")
    generator = load_generator(moved)
    assert isinstance(generator.codec, WanCodec) and generator.takes_text
    assert (moved / "scheduler").is_dir()
    frames = generate(generator, a_grid(), prior=None, steps=1, prompt="a red cat")
    assert frames.shape == (2, 5, 3, 16, 16)


def test_on_another_disk_the_text_encoder_is_linked_to_and_the_rest_copied(
    wan_base, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError("another disk")

    monkeypatch.setattr(weights_module, "_hard_link", refuse)
    weights = tmp_path / "weights"
    weights_module.write_weights(weights, load_generator(wan_base).model, 1, base=wan_base)
    assert (weights / "text_encoder").is_symlink() and not (weights / "vae").is_symlink()
    assert load_generator(weights).takes_text
    wan_base.rename(tmp_path / "away")
    with pytest.raises(GeneratorError, match=r"text_encoder: is a link to .*not there any more"):
        load_generator(weights)


def test_links_of_the_hubs_cache_are_followed(wan_base, tmp_path):
    """There a checkpoint's files are links into a folder of blobs."""
    blob = tmp_path / "blob"
    config = wan_base / "vae" / "config.json"
    config.rename(blob)
    config.symlink_to(os.path.relpath(blob, config.parent))
    weights_module.write_weights(
        tmp_path / "weights", load_generator(wan_base).model, 1, base=wan_base
    )
    linked = tmp_path / "weights" / "vae" / "config.json"
    assert not linked.is_symlink() and linked.samefile(blob)


# ---- kills ---------------------------------------------------------------------------------------

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def train_wan_like(tmp_path, name):
    """A fine-tuning with pixels for latents, which takes no time."""
    torch.manual_seed(3)
    transformer = new_transformer(layers=1, heads=1, head_dim=24, ffn=32)
    save_generator(
        tmp_path / "base", ViewTimeTransformer(transformer, GeneratorConfig(text_tokens=0))
    )
    return train(FineTuning.from_dict(wan_settings(tmp_path / "base", tmp_path / name)))


def train_small(tmp_path, name):
    recipe = small.Recipe(
        folder=str(tmp_path / name), layers=1, heads=1, ffn=32, features=4, context=4, size=32,
        tokens=64, steps=2, log_every=1, evaluate_every=100, held_out=1, bfloat16=False,
        beside=False,
    )  # fmt: skip
    return small.train(recipe)


@pytest.mark.parametrize("run", [train_wan_like, train_small])
@pytest.mark.parametrize("left", ["nothing", "a torn part", "weights of before"])
def test_killed_after_the_last_checkpoint_it_still_writes_its_weights(tmp_path, run, left):
    weights = run(tmp_path, "run")
    written = load_file(weights / WEIGHTS)
    if left == "weights of before":
        (weights / "training.json").write_text('{"steps": 0}')
        (weights / "config.json").write_text("stale")
    else:
        shutil.rmtree(weights)
    if left == "a torn part":
        (tmp_path / "run" / "weights.part").mkdir()
        (tmp_path / "run" / "weights.part" / "torn.safetensors").write_bytes(b"")
    again = run(tmp_path, "run")
    found = load_file(again / WEIGHTS)
    assert all(torch.equal(found[key], written[key]) for key in written)
    load_generator(again)
    assert (
        not list((tmp_path / "run").glob("weights.*")) and not (again / "torn.safetensors").exists()
    )


def test_a_finished_training_leaves_its_weights_alone(tmp_path):
    weights = train_small(tmp_path, "run")
    before = (weights / WEIGHTS).stat()
    train_small(tmp_path, "run")
    assert (weights / WEIGHTS).stat().st_mtime_ns == before.st_mtime_ns


def test_a_kill_while_the_weights_are_written_leaves_the_old_ones(tmp_path, monkeypatch):
    torch.manual_seed(3)
    transformer = new_transformer(layers=1, heads=1, head_dim=24, ffn=32)
    model = ViewTimeTransformer(transformer, GeneratorConfig(text_tokens=0))
    weights = tmp_path / "weights"
    weights_module.write_weights(weights, model, 1)

    def killed(folder, *_, **__):
        folder.mkdir()
        (folder / "config.json").write_text("half of i")
        raise KeyboardInterrupt

    weights.rename(tmp_path / "weights.before")  # and one before it, between two names
    monkeypatch.setattr(weights_module, "save_generator", killed)
    with pytest.raises(KeyboardInterrupt):
        weights_module.write_weights(weights, model, 2)
    assert weights_module.weights_step(weights) == 1
    load_generator(weights)
