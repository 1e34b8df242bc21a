# SPDX-License-Identifier: Apache-2.0
"""The public functions: attention over row and column of the grid, over rows, over columns.
They check what they are given and hand it to an operator; they never compute anything."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from viewtime_kernels import backends, checks, flex, ops


@overload
def view_time_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None,
    return_lse: Literal[False] = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def view_time_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None,
    return_lse: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def view_time_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None,
    return_lse: bool = False, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Fused view-time attention (Eq. 1 of the paper, mask = minus infinity): each token attends to
    the tokens of its own view and those of its own time, in one softmax.

    q, k, v: (B, N, H, D), N = views * times * space, tokens in (view, time, space) order, any
    strides, one dtype and device. scale multiplies the scores, D ** -0.5 by default. backend: see
    `explain_backend` for what "auto" takes; a backend that is named is used or refused, never
    exchanged for another.

    Returns out (B, N, H, D) in the dtype of the inputs; with return_lse also the log-sum-exp of
    the scaled scores (B, H, N), natural logarithm, float32 (float64 for float64 inputs). Both are
    differentiable, once; a gradient through lse costs one more forward and backward.

    Under autocast the inputs are cast as torch's own attention casts them.

    Raises ValueError where shapes, dtypes, devices or the grid do not fit, and where the backend
    does not serve the inputs.
    """
    return _attend("view_time", q, k, v, views, times, scale, return_lse, backend)


@overload
def view_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None,
    return_lse: Literal[False] = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def view_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None,
    return_lse: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def view_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None,
    return_lse: bool = False, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Each token attends to the tokens of its own view, at all times (a row of the grid).

    Arguments, results and errors as in `view_time_attention`.
    """
    return _attend("view", q, k, v, views, times, scale, return_lse, backend)


@overload
def time_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None,
    return_lse: Literal[False] = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def time_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None,
    return_lse: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def time_attention(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, scale: float | None = None,
    return_lse: bool = False, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Each token attends to the tokens of its own time, in all views (a column of the grid).

    Arguments, results and errors as in `view_time_attention`.
    """
    return _attend("time", q, k, v, views, times, scale, return_lse, backend)


def _attend(
    pattern: str, q: Tensor, k: Tensor, v: Tensor, views: int, times: int,
    scale: float | None, return_lse: bool, backend: str,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    checks.check_inputs(q, k, v, views, times)
    backends.check_name(backend)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if backend == "flex":  # compiled code with an autograd of its own, which an operator would hide
        return flex.attend(
            *checks.autocast(q, k, v), pattern=pattern, views=views, times=times, scale=scale,
            return_lse=return_lse,
        )  # fmt: skip
    out, lse = ops.attention(q, k, v, pattern, views, times, scale, backend)
    return (out, lse) if return_lse else out
