# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels in Triton's interpreter against float64: forward, dQ, dK and dV.

The interpreter is chosen when triton is first imported, so one child process runs all cases and
the tests here read what it found. float32 and float16: its bfloat16 products are wrong.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from suite import GRIDS, PAPER_GRIDS, Case, check_forward, check_gradients

BASE = Case(3, 3, 20, batch=2, heads=1)
TABLE = [Case(*grid, heads=1) for grid in GRIDS]
TABLE += [replace(BASE, batch=1, pattern=pattern) for pattern in ("view", "time")]
TABLE += [
    replace(BASE, layout="packed", heads=2),
    replace(BASE, layout="heads_first", heads=2),
    replace(BASE, batch=1, spread=8.0),
    replace(BASE, batch=1, own=12.0),
    replace(BASE, batch=1, own=-12.0, pattern="time"),
    replace(BASE, batch=1, scale=-0.2),
    replace(BASE, batch=1, scale=0.0),
    replace(BASE, batch=1, dtype=torch.float16),
    replace(BASE, batch=1, dtype=torch.float16, dim=128, spread=3.0),
    Case(2, 3, 33, dtype=torch.float16, heads=1, pattern="time"),
    *(Case(*grid, heads=1, dtype=torch.float16) for grid in PAPER_GRIDS[:2]),
]
# (case, tile of the forward, streamed tile, through descriptors or pointers): what the table does
# not choose at these sizes; small tiles have many tails, large ones keep S = 1350 affordable.
TILES = [
    (Case(2, 2, 40, heads=1), 32, 32, True),
    (Case(2, 2, 40, heads=1, dtype=torch.float16), 64, 32, False),
    (Case(2, 2, 37, heads=1, pattern="time"), 32, 32, True),
    (Case(2, 3, 33, heads=1, pattern="view"), 32, 32, False),
    (Case(2, 2, 32, heads=1), 32, 32, True),
    (Case(*PAPER_GRIDS[2], heads=1, dtype=torch.float16), 256, 256, True),
]


def labels() -> list[str]:
    tiles = [f"{case} {home}x{streamed} {tma}" for case, home, streamed, tma in TILES]
    return [*map(str, TABLE), *tiles]


def outcome(module, case: Case) -> str:
    """Empty where forward and gradients are exact, otherwise what was wrong."""
    try:
        check_forward(module, case)
        check_gradients(module, case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run_all() -> None:
    """In the child: print {label: outcome}."""
    from viewtime_kernels import triton_kernels
    from viewtime_kernels.triton_kernels.configs import Config
    from viewtime_kernels.triton_kernels.launch import run_backward, run_forward

    found = {str(case): outcome(triton_kernels, case) for case in TABLE}
    for label, (case, home, streamed, tma) in zip(labels()[len(TABLE) :], TILES):
        rows = Config(home, streamed, 4, 1, tma)
        columns = Config(streamed, home, 4, 1, tma)
        module = SimpleNamespace(
            forward=lambda *x, rows=rows, **y: run_forward(*x, config=rows, **y),
            backward=lambda *x, rows=rows, columns=columns, **y: run_backward(
                *x, dq_config=rows, dkv_config=columns, **y
            ),
        )
        found[label] = outcome(module, case)
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    pytest.importorskip("triton", reason="Triton exists for Linux only")
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__))],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout.strip().splitlines()[-1])


@pytest.mark.timeout(900)  # the first one waits for the child, which may share its core
@pytest.mark.parametrize("label", labels())
def test_it_is_as_exact_as_stock_attention(label, found):
    assert found[label] == ""


if __name__ == "__main__":
    run_all()
