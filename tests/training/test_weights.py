# SPDX-License-Identifier: Apache-2.0
"""What a training leaves in weights/: a generator that loads, whole, whatever was killed when."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from viewtime.generator import generate, load_generator
from viewtime.generator.codec import WanCodec
from viewtime.generator.errors import GeneratorError
from viewtime.grid import FrameGrid
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
    weights_module.write_weights(weights, load_generator(wan_base).model, base=wan_base)
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
        tmp_path / "weights", load_generator(wan_base).model, base=wan_base
    )
    linked = tmp_path / "weights" / "vae" / "config.json"
    assert not linked.is_symlink() and linked.samefile(blob)
