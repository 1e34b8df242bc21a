# SPDX-License-Identifier: Apache-2.0
"""What callers may hand in: each refusal is one ValueError that names the values.
Never looks at what a single backend can do; never reads a tensor's contents."""

from __future__ import annotations

import torch
from torch import Tensor

PATTERNS = ("view_time", "view", "time")


def check_inputs(q: Tensor, k: Tensor, v: Tensor, views: int, times: int) -> None:
    """Refuse what is no (batch, views * times * space, heads, dim) triple of one kind.

    Raises ValueError for other ranks, shapes, dtypes or devices that differ, integers, and a grid
    that does not divide the tokens. Under autocast dtypes may differ, since it makes them one.
    """
    if q.dim() != 4:
        raise ValueError(f"q must be (batch, tokens, heads, dim), got shape {tuple(q.shape)}")
    casts = autocast_dtype(q.device.type) is not None
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)} but q has {tuple(q.shape)}")
        if x.dtype != q.dtype and not casts:
            raise ValueError(f"{name} is {x.dtype} but q is {q.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} but q is on {q.device}")
    if not q.is_floating_point():
        raise ValueError(f"q must be floating point, got {q.dtype}")
    if views < 1 or times < 1:
        raise ValueError(f"views and times must be at least 1, got {views} and {times}")
    if q.shape[1] == 0 or q.shape[1] % (views * times):
        raise ValueError(
            f"{q.shape[1]} tokens are not views x times x space: "
            f"{views} x {times} = {views * times} does not divide them"
        )
    if 0 in q.shape:
        raise ValueError(f"q must not be empty, got shape {tuple(q.shape)}")


def check_pattern(pattern: str) -> None:
    """Raises ValueError for anything but "view_time", "view" and "time"."""
    if pattern not in PATTERNS:
        raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast gives attention on this type of device; None where it is off."""
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as autocast wants them, the way it treats torch's own attention: floating tensors
    to its dtype, float64 left alone."""
    dtype = autocast_dtype(q.device.type)
    if dtype is None:
        return q, k, v
    return _cast(q, dtype), _cast(k, dtype), _cast(v, dtype)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(dtype)
