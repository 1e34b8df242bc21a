# SPDX-License-Identifier: Apache-2.0
"""Spherical harmonics of 3DGS files: their values and their turn. Never compares with our own."""

from __future__ import annotations

import numpy as np
import pytest

from viewtime_formats.sh import rotate_sh, sh_basis, sh_rotation


def turn(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def directions(count: int = 50) -> np.ndarray:
    d = np.random.default_rng(1).normal(size=(count, 3))
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def test_the_constants_are_those_of_3dgs():
    """The numbers that every 3DGS viewer carries, at directions that single them out."""
    x, y, z = np.eye(3)
    d = np.array([x, y, z])
    basis = sh_basis(d, 3)
    assert basis[:, 0] == pytest.approx([0.28209479177387814] * 3)
    assert basis[1, 1] == pytest.approx(-0.4886025119029199)
    assert basis[2, 2] == pytest.approx(0.4886025119029199)
    assert basis[0, 3] == pytest.approx(-0.4886025119029199)
    assert basis[2, 6] == pytest.approx(2 * 0.31539156525252005)
    assert basis[0, 8] == pytest.approx(0.5462742152960396)
    assert basis[2, 12] == pytest.approx(2 * 0.3731763325901154)
    assert basis[0, 15] == pytest.approx(-0.5900435899266435)
    slant = sh_basis([[1, 1, 1]] / np.sqrt(3), 3)[0] * 3
    assert slant[[4, 5, 7]] == pytest.approx(1.0925484305920792 * np.array([1, -1, -1]))
    assert slant[10] == pytest.approx(2.890611442640554 / np.sqrt(3))
    assert slant[11] == pytest.approx(-2 * 0.4570457994644658 / np.sqrt(3))


def test_the_functions_are_orthonormal():
    # Gauss-Legendre by 16 longitudes integrates polynomials of degree 6 exactly.
    z, weights = np.polynomial.legendre.leggauss(8)
    angle = np.arange(16) * np.pi / 8
    radius = np.sqrt(1 - z * z)[:, None]
    d = np.stack([radius * np.cos(angle), radius * np.sin(angle), z[:, None] + 0 * angle], -1)
    w = np.repeat(weights * np.pi / 8, 16)
    basis = sh_basis(d.reshape(-1, 3), 3)
    np.testing.assert_allclose(basis.T @ (w[:, None] * basis), np.eye(16), atol=1e-13)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_turned_splat_shows_what_it_showed_from_where_one_came(degree, seed):
    rotation, d = turn(seed), directions()
    sh = np.random.default_rng(seed).normal(size=(7, (degree + 1) ** 2, 3)).astype(np.float32)
    before = np.einsum("mk,nkc->nmc", sh_basis(d @ rotation, degree), sh.astype(np.float64))
    after = np.einsum("mk,nkc->nmc", sh_basis(d, degree), rotate_sh(sh, rotation))
    np.testing.assert_allclose(after, before, atol=2e-6)


def test_the_matrices_are_orthogonal_and_compose():
    a, b = turn(3), turn(4)
    for one, two, both in zip(sh_rotation(a, 3), sh_rotation(b, 3), sh_rotation(a @ b, 3)):
        np.testing.assert_allclose(one @ one.T, np.eye(len(one)), atol=1e-12)
        np.testing.assert_allclose(one @ two, both, atol=1e-12)


def test_a_number_of_coefficients_without_a_degree_is_refused():
    with pytest.raises(ValueError, match="1, 4, 9 or 16"):
        rotate_sh(np.zeros((2, 5, 3), np.float32), np.eye(3))
