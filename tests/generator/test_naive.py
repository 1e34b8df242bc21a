# SPDX-License-Identifier: Apache-2.0
"""The start without geometry: which reference a cell repeats, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest

from viewtime.generator.generation import prior_maps
from viewtime.generator.naive import naive_prior
from viewtime.generator.prior import EVIDENCE, GIVEN, NAIVE


def grid(changes_with_time, changes_with_view):
    """Grey frames (4, 5, 3, 8, 8): brightness rises along both axes, as much as is said."""
    v, t = np.mgrid[:4, :5]
    grey = (0.1 + changes_with_view * v + changes_with_time * t).astype(np.float32)
    return np.broadcast_to(grey[:, :, None, None, None], (4, 5, 3, 8, 8)).copy()


def given(row=None, column=None):
    known = np.zeros((4, 5), bool)
    if row is not None:
        known[row] = True
    if column is not None:
        known[:, column] = True
    return known


@pytest.mark.parametrize("with_time, with_view, column", [(0.01, 0.1, True), (0.1, 0.01, False)])
def test_a_cell_repeats_the_reference_across_which_less_changes(with_time, with_view, column):
    frames, known = grid(with_time, with_view), given(row=1, column=2)
    made = naive_prior(frames, known)
    for v, t in np.argwhere(~known):
        expected = frames[v, 2] if column else frames[1, t]
        # Where a cell is as far from both as its references say, either is as good.
        if abs(t - 2) * with_time != abs(v - 1) * with_view:
            nearer = abs(t - 2) * with_time < abs(v - 1) * with_view
            expected = frames[v, 2] if nearer else frames[1, t]
        assert np.array_equal(made.frames[v, t], expected), (v, t)


def test_one_reference_is_repeated_and_the_nearest_of_several():
    frames = grid(0.1, 0.1)
    row = naive_prior(frames, given(row=1))
    assert np.array_equal(row.frames, np.broadcast_to(frames[1], frames.shape))
    column = naive_prior(frames, given(column=0))
    assert np.array_equal(column.frames, np.broadcast_to(frames[:, :1], frames.shape))
    known = given(column=0) | given(column=4)
    assert np.array_equal(naive_prior(frames, known).frames[:, 3], frames[:, 4])
    lone = np.zeros((4, 5), bool)
    lone[0, 0] = True
    assert np.array_equal(naive_prior(frames, lone).frames[3, 4], frames[0, 0])


def test_nothing_of_it_is_valid_and_its_evidence_is_the_references():
    frames, known = grid(0.1, 0.05), given(row=1, column=2)
    made = naive_prior(frames, known)
    assert set(np.unique(made.source[known])) == {GIVEN}
    assert set(np.unique(made.source[~known])) == {NAIVE}
    assert np.array_equal(made.valid.all(axis=(2, 3)), known)
    maps = prior_maps(made, known, 3 + EVIDENCE)
    assert not maps[:, :, :3][~known].any()
    assert np.array_equal(maps[..., 0, 0][:, :, 0], known)
    evidence = maps[:, :, 3:]
    np.testing.assert_allclose(evidence[3, 4, 0:3], frames[3, 2], atol=1e-3)  # the column
    np.testing.assert_allclose(evidence[3, 4, 3:6], frames[1, 4], atol=1e-3)  # the row
    np.testing.assert_allclose(evidence[3, 4, 6:9], frames[1, 2], atol=1e-3)  # where they meet
    assert (evidence[3, 4, 9:12] == 1).all() and not evidence[:, :, 12].any()
    alone = naive_prior(frames, given(row=1)).evidence[3, 4]
    assert (alone[10] == 1).all() and not alone[[9, 11]].any() and not alone[:3].any()


def test_where_nothing_is_known_there_is_no_such_start():
    with pytest.raises(ValueError, match="no frame is known"):
        naive_prior(grid(0.1, 0.1), given())
