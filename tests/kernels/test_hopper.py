# SPDX-License-Identifier: Apache-2.0
"""The Hopper kernel without a GPU: its source run on numpy stand-ins, barriers and all, against
float64; and what it refuses. Whether the GPU agrees with the stand-ins, no test here can say."""

import math

import gluon_numpy
import numpy as np
import pytest
import torch
from suite import Case, compare, inputs_of, stock_of, truth_of

from viewtime_kernels import hopper

pytest.importorskip("triton", reason="Triton exists for Linux only")

# (grid, pattern, consumers, keys per tile, stages, overlap)
RUNS = [
    ((2, 2, 70), "view_time", 3, 64, 2, False),  # straddles, rests in row and frame
    ((2, 2, 70), "view_time", 2, 128, 2, True),
    ((3, 2, 64), "view_time", 3, 64, 4, True),  # more stages than laps need, no rests
    ((3, 3, 1), "view_time", 2, 64, 2, True),
    ((2, 2, 192), "view_time", 3, 128, 2, False),  # frames of whole home tiles, rest of 64
    ((2, 3, 50), "view", 3, 64, 3, True),
    ((3, 2, 50), "time", 3, 64, 2, False),
    ((3, 2, 50), "time", 2, 64, 2, True),
]


@pytest.mark.parametrize("grid, pattern, consumers, keys, stages, overlap", RUNS)
def test_its_source_is_exact_on_numpy(grid, pattern, consumers, keys, stages, overlap, monkeypatch):
    from viewtime_kernels.hopper import kernel
    from viewtime_kernels.hopper.configs import Config, rests
    from viewtime_kernels.triton_kernels.launch import CODES

    views, times, space = grid
    case = Case(*grid, pattern, torch.float16, heads=2, batch=1)
    config = Config(consumers, keys, stages, overlap)
    row_rest, frame_rest = rests(config, pattern, times, space)
    constants = config.constants() | {
        "ROW_REST": row_rest, "FRAME_REST": frame_rest, "PATTERN": CODES[pattern],
        "STRADDLE": space % config.block_m != 0,
    }  # fmt: skip
    q, k, v, _ = (x.numpy() for x in inputs_of(case))
    out, lse = gluon_numpy.run_forward(
        kernel, monkeypatch, q, k, v, views=views, times=times,
        scale=case.dim**-0.5 * math.log2(math.e), constants=constants,
    )  # fmt: skip
    (exact, *_), exact_lse = truth_of(case)
    compare("out", torch.from_numpy(np.asarray(out)), stock_of(case)[0], exact, case.dtype)
    torch.testing.assert_close(
        torch.from_numpy(np.asarray(lse)).double(), exact_lse, rtol=0, atol=2e-5
    )


def test_a_wrong_parity_does_not_pass(monkeypatch):
    """The stand-ins can fail: a producer that waits for the wrong lap overwrites what is read."""
    from viewtime_kernels.hopper import kernel
    from viewtime_kernels.hopper.configs import Config

    constants = Config(2, 64, 2, True).constants()
    constants |= {"ROW_REST": 0, "FRAME_REST": 0, "PATTERN": 1, "STRADDLE": False}
    right = kernel.ring_slot.fn
    slot_of = type("Wrong", (), {"fn": staticmethod(lambda i, n: (right(i, n)[0], 0))})
    monkeypatch.setattr(kernel, "ring_slot", slot_of)
    monkeypatch.setattr(gluon_numpy, "SECONDS", 2)
    x = np.ones((1, 512, 1, 64), np.float16) + np.arange(512, dtype=np.float16)[:, None, None] / 512
    with pytest.raises((AssertionError, TimeoutError)):
        gluon_numpy.run_forward(
            kernel, monkeypatch, x, x, x, views=1, times=1, scale=0.1, constants=constants
        )


def test_it_refuses_a_cpu_tensor_in_words():
    x = torch.zeros(1, 12, 1, 64, dtype=torch.bfloat16)
    reason = hopper.unsupported(x, x, x, pattern="view_time", views=2, times=3)
    assert reason is not None and "CUDA" in reason
