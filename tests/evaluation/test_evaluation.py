# SPDX-License-Identifier: Apache-2.0
"""Metrics against their definition and contact sheets against their pixels."""

import numpy as np
import pytest
from PIL import Image

from viewtime.evaluation.contact_sheet import contact_sheet
from viewtime.evaluation.error_shares import error_shares
from viewtime.evaluation.metrics import mean_psnr, psnr, ssim


def test_psnr_is_minus_ten_log_ten_of_the_mean_squared_error():
    rng = np.random.default_rng(0)
    truth = rng.random((3, 16, 20))
    wrong = np.clip(truth + rng.normal(0, 0.05, truth.shape), 0, 1)
    expected = -10 * np.log10(np.mean((wrong - truth) ** 2))
    assert psnr(wrong, truth) == pytest.approx(expected, abs=1e-3)


def test_mean_psnr_counts_the_selected_cells_alone():
    truth = np.full((2, 2, 3, 8, 8), 0.5, np.float32)
    wrong = truth.copy()
    wrong[0, 1] += 0.1
    wrong[1, 0] = 0.0
    cells = np.array([[False, True], [False, False]])
    assert mean_psnr(wrong, truth, cells) == pytest.approx(20.0, abs=1e-3)
    with pytest.raises(ValueError, match="no cell"):
        mean_psnr(wrong, truth, np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match=r"\(2, 2, 3, 8, 8\)"):
        mean_psnr(wrong[:1], truth, cells)


def test_ssim_is_one_for_equal_pictures_and_less_for_noise():
    rng = np.random.default_rng(1)
    truth = rng.random((3, 32, 32)).astype(np.float32)
    assert ssim(truth, truth) == pytest.approx(1.0, abs=1e-5)
    assert ssim(rng.random((3, 32, 32)).astype(np.float32), truth) < 0.3


def test_contact_sheet_shows_every_block_and_frames_the_given_cells(tmp_path):
    red = np.zeros((2, 3, 3, 8, 8), np.float32)
    red[:, :, 0] = 1.0
    marked = np.array([[True, False, False], [False, False, False]])
    path = tmp_path / "sheet.png"
    contact_sheet(path, {"a": red, "b": 1 - red}, marked=marked, times=[0, 2], cell=16)
    pixels = np.asarray(Image.open(path)).reshape(-1, 3)

    def count(colour):
        return int((pixels == colour).all(1).sum())

    assert count((255, 0, 0)) == 2 * 2 * 16 * 16
    assert count((0, 255, 255)) == 2 * 2 * 16 * 16
    assert count((250, 176, 5)) > 2 * 16
    with pytest.raises(ValueError, match="times"):
        contact_sheet(path, {"a": red}, marked=marked, times=[3])


def test_error_shares_place_each_error_where_it_was_made():
    depth = np.full((24, 24), 4.0)
    depth[:, :8] = np.inf
    depth[:, 16:] = 2.0  # an edge between columns 15 and 16
    truth = np.zeros((3, 24, 24))

    def shares_of_an_error_at(column):
        shown = truth.copy()
        shown[:, 12, column] = 0.5
        return error_shares(shown, truth, depth)

    for column, place in ((2, "sky"), (8, "sky_outline"), (12, "surfaces"), (16, "depth_edges")):
        assert shares_of_an_error_at(column)[place] == pytest.approx(1.0), (column, place)
    mixed = truth + 0.1
    assert sum(error_shares(mixed, truth, depth).values()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="depth"):
        error_shares(truth, truth, depth[1:])
