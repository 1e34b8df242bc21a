# SPDX-License-Identifier: Apache-2.0
"""The benchmark scripts run to their end where there is no GPU, and say so where they need one.
Their figures are never judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_benchmark_says_so():
    answer = run("gpu.py")
    assert answer.returncode != 0
    assert "needs a CUDA GPU" in answer.stderr and "Traceback" not in answer.stderr


def test_a_dry_run_of_the_gpu_benchmark_fills_every_section(tmp_path):
    pytest.importorskip("triton", reason="the script states Triton's version")
    answer = run("gpu.py", "--dry-run", "--out", str(tmp_path))
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    (page,) = tmp_path.glob("attention-dry-run-*.md")
    (data,) = tmp_path.glob("attention-dry-run-*.json")
    text, made = page.read_text(), json.loads(data.read_text())
    assert "no figure here means anything" in text and "failed" not in made
    assert made["correctness"]["inclusion_exclusion"] == {"passed": 3, "wrong": [], "left_out": 0}
    for space in ("576", "2304"):
        forward, backward = made["speed"][space]["forward"], made["speed"][space]["backward"]
        assert "inclusion_exclusion" in forward and "inclusion_exclusion" in backward
        assert any(name.startswith("FlexAttention") for name in forward)
    assert "| not measured |" in text  # of own kernels, which the CPU does not run


def test_the_cpu_benchmark_counts_memory_that_is_linear_in_the_tokens(tmp_path):
    page = tmp_path / "page.md"
    answer = run(
        "attention.py", "--views", "2", "--times", "3", "--space", "8", "--rounds", "1",
        "--dtypes", "float32", "--flex-blocks", "", "--memory-tokens", "1024,2048,4096",
        "--most-gib", "0.02", "--threads", "1", "--out", str(page),
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    assert page.read_text() in answer.stdout + "\n"
    rows = [line for line in page.read_text().splitlines() if line[2:6] in ("1024", "2048", "4096")]
    ours = [float(row.split("|")[3].split("(")[0]) for row in rows]
    dense = [row.split("|")[4].strip() for row in rows]
    assert ours[1] / ours[0] == pytest.approx(2, rel=0.05)
    assert ours[2] / ours[1] == pytest.approx(2, rel=0.05)
    assert float(dense[1].split()[0]) / float(dense[0].split()[0]) == pytest.approx(4, rel=0.1)
    assert dense[2].startswith("refused")
