# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a generator: what each mode gives, and that the truth would win."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from viewtime.evaluation.generator import (
    BEST_PSNR,
    MODES,
    evaluate,
    fill,
    held_out_scene,
    known_cells,
    table,
)
from viewtime.evaluation.generator import score as score_of
from viewtime.generator.load import load_generator
from viewtime.reconstructor.load import load_reconstructor
from viewtime.training.examples import HELD_OUT_SEED


@pytest.fixture(scope="module")
def scene():
    return held_out_scene(1, views=3, times=5, size=32)


def test_each_mode_gives_what_its_name_says(scene):
    given = {mode: known_cells(mode, scene) for mode in MODES}
    row = given["row"].all(axis=1)
    column = given["column"].all(axis=0)
    assert row.tolist() == [True, False, False] and given["row"].sum() == 5
    assert column.tolist() == [False, False, True, False, False] and given["column"].sum() == 3
    assert np.array_equal(given["both"], given["row"] | given["column"])
    assert np.array_equal(given["depth"], given["both"]) and not given["none"].any()
    assert np.array_equal(given["predicted"], given["both"])
    with pytest.raises(ValueError, match="mode is 'all', must be one of both"):
        known_cells("all", scene)


def test_methods_see_the_references_alone(scene):
    """What is not given is black for them; the truth of unseen cells must not reach a method."""
    reconstructor = load_reconstructor("bundled")
    for mode in MODES:
        made = fill(None, scene, mode, steps=1, reconstructor=reconstructor)
        dark = held_out_scene(1, views=3, times=5, size=32)
        dark.grid.frames[~known_cells(mode, scene)] = 0.5
        if dark.grid.depth is not None:
            seen = known_cells(mode, scene) if mode == "depth" else np.zeros((3, 5), bool)
            dark.grid.depth[~seen] = 1.0
        again = fill(None, dark, mode, steps=1, reconstructor=reconstructor)
        assert made or mode == "none"
        for method in made:
            assert np.array_equal(made[method], again[method]), (mode, method)


def test_the_truth_scores_best_and_only_unseen_cells_count(scene):
    known = known_cells("both", scene)
    truth = scene.grid.frames.copy()
    assert score_of(truth, scene, known)["ssim"] > 0.999
    truth[known] = 0
    assert score_of(truth, scene, known)["psnr"] == BEST_PSNR
    truth[~known] += 0.1
    assert score_of(truth, scene, known)["psnr"] < 21


def test_a_table_and_a_sheet_of_every_mode_with_the_bundled_model(tmp_path):
    results = evaluate(
        load_generator(), scenes=1, views=2, times=2, size=32, steps=1, sheets=tmp_path / "sheets"
    )
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {f"{m}-0.png" for m in MODES}
    with (
        Image.open(tmp_path / "sheets" / "depth-0.png") as five,
        Image.open(tmp_path / "sheets" / "none-0.png") as three,
    ):  # blocks: the truth, frames and errors of prior and model, or of the model alone
        assert five.width > 1.5 * three.width and five.height == three.height
    assert {m: set(r) for m, r in results.items()} == {
        "both": {"start", "nearest", "blend", "model"},
        "row": {"start", "copy", "model"},
        "column": {"start", "copy", "model"},
        "none": {"model"},
        "depth": {"prior", "nearest", "blend", "model"},
        "predicted": {"prior", "nearest", "blend", "model"},
    }
    text = table(results)
    assert text.count("**") == 2 * len(MODES) and "| depth | prior |" in text
    assert HELD_OUT_SEED > 0
