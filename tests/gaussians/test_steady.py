# SPDX-License-Identifier: Apache-2.0
"""Noisy depth made steady: less noise on surfaces, edges where they were, nothing invented."""

from __future__ import annotations

import numpy as np
import pytest

from viewtime.gaussians.steady import steady_depth


def step(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A tilted floor behind a tilted board with a step of a third, sky above, a hole: exact and
    noisy."""
    y, x = np.mgrid[0:48, 0:64]
    floor, board = 1 / (0.2 + 0.002 * x + 0.004 * y), 1 / (0.5 - 0.001 * x + 0.001 * y)
    exact = np.where((np.abs(x - 30) < 12) & (np.abs(y - 26) < 12), board, floor).astype(np.float32)
    exact[:6] = np.inf
    exact[20, 50] = np.nan
    rng = np.random.default_rng(0)
    return exact, exact * (1 + noise * rng.standard_normal(exact.shape, np.float32))


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_noise_shrinks_and_edges_stay(noise):
    exact, noisy = step(noise)
    steady = steady_depth(noisy, noise)
    np.testing.assert_array_equal(np.isinf(steady), np.isinf(exact))
    np.testing.assert_array_equal(np.isnan(steady), np.isnan(exact))
    seen = np.isfinite(exact)
    error = np.abs(steady[seen] / exact[seen] - 1)
    assert np.sqrt(np.mean(error**2)) < 0.4 * noise
    # A rubber sheet would lie between the two surfaces: nothing comes off its own by more than
    # what the noise explains.
    assert error.max() < 5 * noise


def test_exact_planes_stay_exact():
    exact, _ = step(0)
    steady = steady_depth(exact, 0.01)
    inner = np.zeros(exact.shape, bool)
    inner[18:34, 22:38] = True
    np.testing.assert_allclose(steady[inner], exact[inner], rtol=2e-4)


def test_a_lone_pixel_keeps_its_depth():
    depth = np.full((9, 9), np.inf, np.float32)
    depth[4, 4] = 3.0
    np.testing.assert_array_equal(steady_depth(depth, 0.03), depth)
