# SPDX-License-Identifier: GPL-3.0-or-later
"""Real spherical harmonics of degree 0 to 3 as 3DGS uses them, for numpy, GLSL and node trees.
Written once, so that the three cannot differ; it never knows who asks."""

from __future__ import annotations

from typing import Any

import numpy as np

SH_C0 = 0.28209479177387814
# Coefficient k (those of degree 0 aside) is FACTORS[k] times polynomial k of the unit direction.
FACTORS = (
    -0.4886025119029199,
    0.4886025119029199,
    -0.4886025119029199,
    1.0925484305920792,
    -1.0925484305920792,
    0.31539156525252005,
    -1.0925484305920792,
    0.5462742152960396,
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)


def polynomials(x: Any, y: Any, z: Any) -> tuple[Any, ...]:
    """The 15 polynomials, of whatever multiplies and adds: arrays, GLSL text, node sockets."""
    xx, yy, zz = x * x, y * y, z * z
    ring = 4.0 * zz - xx - yy
    return (
        y,
        z,
        x,
        x * y,
        y * z,
        2.0 * zz - xx - yy,
        x * z,
        xx - yy,
        y * (3.0 * xx - yy),
        x * y * z,
        y * ring,
        z * (2.0 * zz - 3.0 * xx - 3.0 * yy),
        x * ring,
        z * (xx - yy),
        x * (xx - 3.0 * yy),
    )


def colour(base: np.ndarray, rest: tuple[np.ndarray, ...], direction: np.ndarray) -> np.ndarray:
    """(N, 3) display sRGB, not below 0, of DC (N, 3) and coefficients (N, 3) each.

    direction: (N, 3) unit, from the camera to the splat, in the splats' own space.
    """
    value = 0.5 + SH_C0 * base
    for factor, term, coefficient in zip(FACTORS, polynomials(*direction.T), rest):
        value = value + (factor * term)[:, None] * coefficient
    return np.maximum(value, 0.0)


class _Text:
    """A GLSL expression that grows by Python's operators."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _with(self, sign: str, other: Any, turned: bool = False) -> _Text:
        a, b = self.text, other.text if isinstance(other, _Text) else repr(float(other))
        return _Text(f"({b}{sign}{a})" if turned else f"({a}{sign}{b})")

    def __add__(self, other: Any) -> _Text:
        return self._with("+", other)

    def __sub__(self, other: Any) -> _Text:
        return self._with("-", other)

    def __mul__(self, other: Any) -> _Text:
        return self._with("*", other)

    def __rmul__(self, other: Any) -> _Text:
        return self._with("*", other, turned=True)


def glsl() -> str:
    """`vec3 vt_harmonics(int count, int splat, vec3 d)`; calls vt_rest(splat, k)."""
    terms = polynomials(_Text("d.x"), _Text("d.y"), _Text("d.z"))
    lines = ["vec3 vt_harmonics(int count, int splat, vec3 d)", "{", "  vec3 sum = vec3(0.0);"]
    for start, stop in ((0, 3), (3, 8), (8, 15)):
        lines.append(f"  if (count >= {stop}) {{")
        for k in range(start, stop):
            lines.append(f"    sum += {FACTORS[k]!r} * {terms[k].text} * vt_rest(splat, {k});")
        lines.append("  }")
    return "\n".join([*lines, "  return sum;", "}", ""])
