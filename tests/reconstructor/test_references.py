# SPDX-License-Identifier: Apache-2.0
"""Depth of references that carry none: what it keeps, what it follows, when it gives up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from viewtime.data.synthetic import sample_grid
from viewtime.generator.prior import only_references
from viewtime.grid import FrameGrid
from viewtime.progress import Cancelled
from viewtime.reconstructor import references
from viewtime.reconstructor.lift_predict import predict
from viewtime.reconstructor.load import load_reconstructor
from viewtime.reconstructor.references import depth_of_the_alike, reference_depth


@pytest.fixture(scope="module")
def scene():
    grid, rig = sample_grid(102, 4, 3, 64, frame_step=3)
    return only_references(grid, 0, 1), rig, grid.depth


@pytest.fixture(scope="module")
def reconstructor():
    return load_reconstructor("bundled")


def test_references_get_depth_near_the_truth_and_nothing_else_does(scene, reconstructor):
    grid, rig, truth = scene
    depth = reference_depth(reconstructor, replace(grid, depth=None), rig, 0, 1)
    assert np.isnan(depth[1:, [0, 2]]).all() and not np.isnan(depth[grid.known]).any()
    both = np.isfinite(truth) & np.isfinite(depth)
    column = np.zeros_like(both)
    column[:, 1] = True
    off = np.abs(np.log(np.where(both, depth, 1) / np.where(both, truth, 1)))
    assert np.median(off[both & column]) < 0.1
    assert np.median(off[both & ~column]) < 0.15
    # What does not change keeps its depth to the last bit.
    same = np.abs(grid.frames[0] - grid.frames[0, 1]).mean(axis=1) < 1e-6
    quiet = same[0] & (depth[0, 0] == depth[0, 1])
    assert quiet.sum() > 0.8 * same[0].sum()


def test_depth_that_was_captured_is_kept(scene):
    grid, rig, truth = scene
    column = np.where(np.arange(3)[None, :, None, None] == 1, grid.depth, np.nan)
    depth = reference_depth(None, FrameGrid(grid.frames, grid.known, column), rig, 0, 1)
    assert np.array_equal(depth[:, 1], truth[:, 1])
    both = np.isfinite(depth[0, 0]) & np.isfinite(truth[0, 0])
    assert np.median(np.abs(np.log(depth[0, 0][both] / truth[0, 0][both]))) < 0.02
    everything = reference_depth(None, grid, rig, 0, 1)
    assert np.array_equal(everything[0], truth[0])


def test_what_moved_takes_the_depth_of_what_looks_like_it():
    """A red square before a far blue wall, moved by 20 pixels; where it was, the wall is seen."""
    then, depth = np.zeros((3, 48, 64), np.float32), np.full((48, 64), 9.0, np.float32)
    then[2], now = 0.8, np.zeros((3, 48, 64), np.float32)
    now[2] = 0.8
    then[:, 10:20, 5:15], depth[10:20, 5:15] = np.array([1, 0, 0])[:, None, None], 2.0
    now[:, 10:20, 25:35] = np.array([1, 0, 0])[:, None, None]
    changed = np.abs(now - then).sum(axis=0) > 0
    made = depth_of_the_alike(now, then, depth, changed, changed)
    assert (made[10:20, 25:35] == 2.0).all() and (made[10:20, 5:15] == 9.0).all()
    depth[depth == 9.0] = np.inf
    made = depth_of_the_alike(now, then, depth, changed, changed)
    assert np.isinf(made[10:20, 5:15]).all() and (made[10:20, 25:35] == 2.0).all()
    nowhere = depth_of_the_alike(now, then, depth, changed, changed & False)
    assert np.array_equal(nowhere, depth)


def test_it_stops_when_asked_and_gives_up_without_a_scale(scene, reconstructor, monkeypatch):
    grid, rig, _ = scene
    plain = replace(grid, depth=None)
    with pytest.raises(Cancelled):
        reference_depth(reconstructor, plain, rig, 0, 1, should_cancel=lambda: True)
    monkeypatch.setattr(
        references,
        "predict",
        lambda *given, **settings: replace(predict(*given, **settings), scale="guessed"),
    )
    assert reference_depth(reconstructor, plain, rig, 0, 1) is None
