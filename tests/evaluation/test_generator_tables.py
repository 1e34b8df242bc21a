# SPDX-License-Identifier: Apache-2.0
"""The small-scale tables: which runs they share, their geometry, and how they are set beside the
paper's. Never trains for longer than a step."""

from __future__ import annotations

import numpy as np
import pytest

from viewtime.evaluation import generator_tables as tables
from viewtime.evaluation.paper import PUBLISHED, agreement, beside_the_paper
from viewtime.training import fine_tuning


def test_two_orders_are_compared_pair_by_pair():
    paper = {"a": 3.0, "b": 2.0, "c": 1.0, "only the paper's": 9.0}
    ours = {"a": [30, 32], "b": [29, 31], "c": [30.0, 31.2], "only ours": [0, 0]}
    found = agreement(ours, paper)
    # a over b by exactly 1 with both seeds; a over c by 0 and 0.8; c over b by 1 and 0.2.
    assert (found.pairs, found.alike) == (3, 2)
    assert (found.clear, found.clear_alike) == (2, 1)
    assert found.against == (("b", "c", pytest.approx(0.6), True),)
    back = agreement(ours, paper, higher_is_better=False)
    assert (back.pairs, back.alike, back.clear, back.clear_alike) == (3, 1, 2, 1)


def test_one_seed_is_never_clear_and_what_is_equal_in_the_paper_does_not_count():
    found = agreement({"a": [3], "b": [1], "c": [2]}, {"a": 2, "b": 1, "c": 1})
    assert (found.pairs, found.alike, found.clear, found.against) == (2, 2, 0, ())
    assert agreement({"a": [1]}, {"b": 1}).pairs == 0


def test_the_papers_values_are_of_variants_and_sets_that_there_are():
    for name, columns in PUBLISHED.items():
        if name == "S2":
            variants = {f"{steps} steps" for steps in tables.STEP_TABLE}
        else:
            variants = {variant.name for variant in tables.TABLES[name]}
        for column in columns:
            assert set(column.values) <= variants and set(column.stands_for) <= set(tables.TESTS)


def test_the_paper_stands_beside_ours_with_the_verdict_in_words():
    rows = {
        name: [{"objects_psnr": objects + seed, "physics_psnr": physics} for seed in (0.0, 0.25)]
        for name, objects, physics in (
            ("Sequential (interleaved)", 20, 20), ("Parallel (linear synchronisation)", 22, 21),
            ("Parallel (weighted average)", 25, 25), ("Fused view-time attention", 21, 22),
        )
    }  # fmt: skip
    text = beside_the_paper("2", rows)
    assert "| Sequential (interleaved) | 5.935 | 20.12 ± 0.18 |" in text
    assert "weighted" not in text  # the paper has no figure for it
    assert "The order does not agree: 2 of 3 pairs" in text
    assert (
        "Parallel (linear synchronisation) is 1.00 dB above Fused view-time attention, cl" in text
    )
    assert "The order agrees: 3 of 3 pairs" in text
    assert beside_the_paper("prior", rows) == "The paper has no such table."


def test_geometry_is_that_of_the_held_out_grids():
    """Known cells of the prior are the grid's own, bit for bit: the same scene, rig and times."""
    for kind in tables.TESTS:
        for number, truth in enumerate(tables.held_out(kind, 2)):
            prior = tables.geometry(kind, number)
            assert np.array_equal(prior.frames[truth.known], truth.frames[truth.known])
            assert prior.valid[~truth.known].mean() > 0.2
            error = np.abs(prior.frames - truth.frames).transpose(0, 1, 3, 4, 2).max(axis=-1)
            error, valid = error[~truth.known], prior.valid[~truth.known]
            assert np.median(error[valid]) < 0.1


def test_the_added_tables_share_the_runs_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SEEDS", (0,))
    monkeypatch.setattr(tables, "MODEL", {**tables.MODEL, "layers": 1, "heads": 1, "ffn": 64})
    monkeypatch.setattr(fine_tuning, "write_sample_sheet", lambda *_, **__: None)
    scale = tables.Scale(base_steps=1, steps=1, batch=1, scenes=1, sample_steps=2)
    text = tables.report("prior", tmp_path, scale, say=lambda _: None)
    for row in ("Without geometry", "Reprojected pixels kept", "The prior alone", "Blend"):
        assert f"| {row}" in text
    assert text.endswith("The paper has no such table.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "fused-0"]
    rows = tables.run_table("prior", tmp_path, scale)
    without, kept = (
        rows["Without geometry"][0],
        rows["Reprojected pixels kept (latent replacement)"][0],
    )
    assert kept["objects_psnr"] != without["objects_psnr"]

    trained, train = [], tables.train
    monkeypatch.setattr(tables, "train", lambda recipe: trained.append(recipe) or train(recipe))
    rows = tables.run_table("references", tmp_path, scale, say=lambda _: None)
    assert list(rows) == ["Added to the noised latents", "Clean tokens in their place"]
    assert [recipe.model for recipe in trained] == [{"references": "clean", "t_max": 4}]
    assert rows["Added to the noised latents"][0] == without
    assert rows["Clean tokens in their place"][0]["physics_psnr"] != without["physics_psnr"]
