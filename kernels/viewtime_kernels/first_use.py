# SPDX-License-Identifier: Apache-2.0
"""Before "auto" trusts a GPU kernel it runs it once on a small input against stock kernels.

A compiler or driver of another version can turn a right kernel into a wrong one. Never runs for a
backend that was named, and never again for the same process, device, dtype, head dim and pattern.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from viewtime_kernels.backends import Backend

# 400 keys in a row or column: full tiles and a tail one, for any tile of up to 256.
VIEWS, TIMES, SPACE, HEADS = 2, 2, 200, 2
# The norm of the difference over the norm, a few times what two exact kernels differ by.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
OTHER_TOLERANCE = 4e-3  # float32 kernels may multiply in TF32

# None once passed, otherwise the reason; keyed by all that makes another kernel.
_outcomes: dict[tuple[str, torch.device, torch.dtype, int, str], str | None] = {}


def failure(name: str, backend: Backend, peer: Backend, q: Tensor, pattern: str) -> str | None:
    """Why this backend is not trusted with tensors like q; None when it passed.

    The first failure is also a warning, with the numbers. While a CUDA graph is captured nothing
    can be checked, and a backend that was not checked before is passed over.
    """
    dim = q.shape[-1]
    key = name, q.device, q.dtype, dim, pattern
    if key not in _outcomes:
        if q.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return "it was not yet checked, and cannot be while a CUDA graph is captured"
        _outcomes[key] = reason = _compare(backend, peer, q, pattern)
        if reason is not None:
            warnings.warn(
                f"view-time attention: backend {name!r} failed its first-use check and is not "
                f"used for {q.dtype}, head dim {dim}, pattern {pattern} on {q.device}: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
    return _outcomes[key]


def _compare(backend: Backend, peer: Backend, like: Tensor, pattern: str) -> str | None:
    dim = like.shape[-1]
    generator = torch.Generator().manual_seed(0)
    size = (4, 1, VIEWS * TIMES * SPACE, HEADS, dim)
    q, k, v, grad = torch.randn(size, generator=generator).to(like.device, like.dtype).unbind(0)
    problem: dict[str, Any] = dict(pattern=pattern, views=VIEWS, times=TIMES, scale=dim**-0.5)
    with torch.no_grad():
        true, true_lse = peer.forward(q, k, v, **problem)
        truth = [true, *peer.backward(grad, q, k, v, true, true_lse, **problem), true_lse]
        try:
            out, lse = backend.forward(q, k, v, **problem)
            made = [out, *backend.backward(grad, q, k, v, true, true_lse, **problem), lse]
        # A kernel that does not build raises whatever its compiler does; all of it means "no".
        except Exception as error:
            return f"it raised {type(error).__name__}: {error}"
    worst = TOLERANCE.get(like.dtype, OTHER_TOLERANCE)
    wrong = []
    for part, mine, exact in zip(("out", "dq", "dk", "dv", "lse"), made, truth):
        off = ((mine.double() - exact.double()).norm() / exact.double().norm()).item()
        if not off <= worst:  # NaN too
            wrong.append(f"{part} is off by {off:.2g}")
    return f"{', '.join(wrong)} of its norm, allowed {worst:.2g}" if wrong else None
