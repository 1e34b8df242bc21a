# SPDX-License-Identifier: Apache-2.0
"""Which backend serves an input, and why: by name, or by device, dtype and shape for "auto".
Never computes attention but for the first-use check, and never picks what needs N x N memory."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, cast

import torch
from torch import Tensor

from viewtime_kernels import checks, first_use

MODULES = {
    "hopper": "viewtime_kernels.hopper",
    "triton": "viewtime_kernels.triton_kernels",
    "inclusion_exclusion": "viewtime_kernels.inclusion_exclusion",
    "flex": "viewtime_kernels.flex",
    "reference": "viewtime_kernels.reference",
}
# In this order; what is not here is never chosen by itself.
CANDIDATES = ("hopper", "triton", "inclusion_exclusion")
NOT_CANDIDATES = {
    "flex": "the peer to compare with: it is taken by name alone, for the first call compiles",
    "reference": "O(N^2) memory in float64: it is taken by name alone, for tests",
}


class Backend(Protocol):
    """What a backend's module offers. All tensors (B, N, H, D), lse (B, H, N) float32 (float64
    for float64 inputs), natural logarithm; pattern is "view_time", "view" or "time"."""

    def unsupported(
        self, q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int
    ) -> str | None: ...

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor,
        *, pattern: str, views: int, times: int, scale: float,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        *, pattern: str, views: int, times: int, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What "auto" takes for an input. name: the backend, None where nothing fits. why: the reason
    for it. others: each other backend with the reason why it was not taken."""

    name: str | None
    why: str
    others: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.name or 'no backend'}: {self.why}"]
        return "\n".join(lines + [f"not {name}: {why}" for name, why in self.others.items()])


@lru_cache(maxsize=len(MODULES))
def load(name: str) -> Backend | str:
    """A backend's module, or in words why it cannot be imported."""
    try:
        return cast(Backend, importlib.import_module(MODULES[name]))
    except ImportError as error:
        return f"it cannot be imported ({error})"


def choose(q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int) -> Choice:
    """What "auto" takes for these inputs. On CUDA this may run the first-use check."""
    others: dict[str, str] = {}
    taken: str | None = None
    for name in CANDIDATES:
        if taken is not None:
            others[name] = f"{taken} comes before it"
            continue
        refusal = _refusal(name, q, k, v, pattern=pattern, views=views, times=times)
        if refusal is None:
            taken = name
        else:
            others[name] = refusal
    others |= NOT_CANDIDATES
    kind = f"{q.dtype} on {q.device}, head dim {q.shape[-1]}"
    if taken is None:
        return Choice(None, f"nothing serves {kind}", others)
    return Choice(taken, f"the first of {', '.join(CANDIDATES)} that serves {kind}", others)


def resolve(
    name: str, q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int
) -> Backend:
    """The module that serves these inputs under this name, which may be "auto".

    Raises ValueError for an unknown name, or with the reasons where nothing serves the inputs.
    A backend that is named is never exchanged for another.
    """
    if name == "auto":
        choice = choose(q, k, v, pattern=pattern, views=views, times=times)
        if choice.name is None:
            raise ValueError(f"view-time attention: {choice}")
        return cast(Backend, load(choice.name))
    check_name(name)
    backend = load(name)
    reason = (
        backend
        if isinstance(backend, str)
        else backend.unsupported(q, k, v, pattern=pattern, views=views, times=times)
    )
    if reason is not None:
        raise ValueError(f"backend {name!r} does not serve these inputs: {reason}")
    return cast(Backend, backend)


def check_name(name: str) -> None:
    """Raises ValueError for a name that is neither "auto" nor a backend's."""
    if name != "auto" and name not in MODULES:
        raise ValueError(f"backend must be auto, {', '.join(MODULES)}; got {name!r}")


def explain_backend(
    q: Tensor, k: Tensor, v: Tensor, *, views: int, times: int, pattern: str = "view_time"
) -> Choice:
    """What `backend="auto"` takes for these inputs, and why it does not take each other backend.

    Arguments as in `view_time_attention`; pattern "view" and "time" stand for `view_attention`
    and `time_attention`. The Choice prints as one line per backend. The answer is the truth: on a
    GPU the first call runs the check that "auto" would run.

    Raises ValueError as the attention functions do, but not where no backend fits: that is
    `Choice.name` None.
    """
    checks.check_pattern(pattern)
    checks.check_inputs(q, k, v, views, times)
    q, k, v = checks.autocast(q, k, v)
    return choose(q, k, v, pattern=pattern, views=views, times=times)


def _refusal(
    name: str, q: Tensor, k: Tensor, v: Tensor, *, pattern: str, views: int, times: int
) -> str | None:
    """Why "auto" passes this backend over; None when it may take it."""
    if name != "inclusion_exclusion" and q.device.type != "cuda":
        return f'"auto" takes it on CUDA alone, and these inputs are on {q.device.type}'
    if name == "hopper":
        major, minor = torch.cuda.get_device_capability(q.device)
        if (major, minor) != (9, 0):
            return f"it is written for sm_90, and {q.device} is sm_{major}{minor}"
    backend = load(name)
    if isinstance(backend, str):
        return backend
    reason = backend.unsupported(q, k, v, pattern=pattern, views=views, times=times)
    if reason is not None or name == "inclusion_exclusion":
        return reason
    peer = load("inclusion_exclusion")
    assert not isinstance(peer, str)
    return first_use.failure(name, backend, peer, q, pattern)
