# SPDX-License-Identifier: Apache-2.0
"""The generator's benchmark runs to its end. Its figures are never judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "generator.py"


def test_a_dry_run_fills_every_table(tmp_path):
    page = tmp_path / "page.md"
    command = [sys.executable, str(BENCHMARK), "--dry-run", "--threads", "1", "--out", str(page)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    text = page.read_text()
    assert text in answer.stdout + "\n" and "no figure here means anything" in text
    assert "did not run" not in text and "**fused / sequential = " in text
    assert "| both references, every step | 8 |" in text and "- peak memory, and depth" in text
