# SPDX-License-Identifier: Apache-2.0
"""Text in the training of a generator: from a scene's caption to what the model is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from viewtime.generator import text
from viewtime.generator.text import encode_prompts
from viewtime.training import fine_tuning
from viewtime.training.fine_tuning import FineTuning, train

CPU = torch.device("cpu")


@pytest.fixture
def scenes(tmp_path):
    """Two scenes of two cameras, one of which says what it shows."""
    for scene in ("said", "unsaid"):
        for camera in ("a", "b"):
            folder = tmp_path / "scenes" / scene / camera
            folder.mkdir(parents=True)
            for t in range(5):
                picture = np.full((16, 16, 3), 40 * t, np.uint8)
                Image.fromarray(picture).save(folder / f"{t}.png")
    (tmp_path / "scenes" / "said" / "prompt.txt").write_text("a red cat\n")
    return str(tmp_path / "scenes")


def given_texts(base, folder, scenes, monkeypatch, **other):
    """The text that the model is given, grid by grid, and how often the encoder was loaded."""
    given, loaded = [], []
    batch_of, load = fine_tuning.batch_of, text._load
    with monkeypatch.context() as patch:
        patch.setattr(
            fine_tuning, "batch_of", lambda g, grids, t: (given.append(t), batch_of(g, grids, t))[1]
        )
        patch.setattr(text, "_load", lambda *a: (loaded.append(a), load(*a))[1])
        patch.setattr(fine_tuning, "write_sample_sheet", lambda *a, **k: None)
        train(FineTuning.from_dict({
            "base": str(base), "folder": str(folder), "phases": [{"frames": 5, "steps": 6}],
            "views": 2, "height": 16, "width": 16, "batch": 2, "warm_up": 0, "precision": "no",
            "mixture": {
                "shares": {"objects": 1.0}, "datasets": {"objects": [scenes]},
                "captions": {scenes: "a cat runs"},
            }, **other,
        }))  # fmt: skip
    return given, loaded


def test_captions_reach_the_model_and_the_encoder_is_loaded_once(
    wan_base, tmp_path, scenes, monkeypatch
):
    said, unsaid, empty = encode_prompts(wan_base, ["a red cat", "a cat runs", ""], CPU)
    given, loaded = given_texts(wan_base, tmp_path / "all", scenes, monkeypatch, drop_text=0.0)
    assert len(given) == 12 and len(loaded) == 1
    found = [[torch.equal(t[0], wanted) for wanted in (said, unsaid, empty)] for t in given]
    counts = np.sum(found, axis=0)
    assert counts[0] > 0 and counts[1] > 0 and counts[0] + counts[1] == 12

    given, _ = given_texts(wan_base, tmp_path / "none", scenes, monkeypatch, drop_text=1.0)
    assert all(torch.equal(t[0], empty) for t in given)


def test_a_model_without_a_text_encoder_is_given_the_same_for_every_prompt(
    wan_base, tmp_path, scenes, monkeypatch
):
    wan_base.joinpath("text_encoder").rename(tmp_path / "away")
    given, loaded = given_texts(wan_base, tmp_path / "run", scenes, monkeypatch, drop_text=0.5)
    assert not loaded and all(torch.equal(t, torch.zeros(1, 512, 8)) for t in given)
