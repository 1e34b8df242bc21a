# SPDX-License-Identifier: Apache-2.0
"""The benchmark scripts run to their end where there is no GPU, and say so where they need one.
Their figures are never judged here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
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


def test_a_dry_run_of_the_gpu_benchmark_fills_every_section_of_attention(tmp_path):
    pytest.importorskip("triton", reason="the script states Triton's version")
    answer = run("gpu.py", "--dry-run", "--only", "attention", "--out", str(tmp_path))
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    made, text = report_of(tmp_path)
    assert "no figure here means anything" in text and "failed" not in made
    assert made["correctness"]["inclusion_exclusion"] == {"passed": 3, "wrong": [], "left_out": 0}
    for space in ("576", "2304"):
        forward, backward = made["speed"][space]["forward"], made["speed"][space]["backward"]
        assert "inclusion_exclusion" in forward and "inclusion_exclusion" in backward
        assert any(name.startswith("FlexAttention") for name in forward)
    assert "| not measured |" in text  # of own kernels, which the CPU does not run
    assert "# Generator: not run" in text


def test_a_second_command_lets_the_report_grow(tmp_path):
    """For machines that end each command after ten minutes."""
    pytest.importorskip("triton", reason="the script states Triton's version")
    for group in ("reconstructor", "generator"):
        answer = run("gpu.py", "--dry-run", "--only", group, "--out", str(tmp_path))
        assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
        if group == "reconstructor":
            made, text = report_of(tmp_path)
            assert "# Generator: not run" in text and made["reconstruction"]
            # Our own rasteriser stands in for gsplat: the same to the last bit.
            assert made["drawing"]["picture_max"] == 0
    grown, text = report_of(tmp_path)
    assert "failed" not in grown and "failed" not in text and "# Attention: not run" in text
    assert grown["reconstruction"] == made["reconstruction"] and "Frames to Gaussians" in text
    architectures = {"fused", "sequential", "fused, compiled blocks"}
    assert set(grown["forward"]["seconds"]) == architectures
    assert set(grown["sampling"]) == {"as it is", "compiled blocks"} and grown["training"]
    mosts = {k: v for k, v in grown["goals"].items() if "most" in v}
    assert len(mosts) == 3 and all(v["outcome"] is None for v in mosts.values())


def report_of(folder: Path) -> tuple[dict, str]:
    (page,) = folder.glob("gpu-dry-run-*.md")
    (data,) = folder.glob("gpu-dry-run-*.json")
    return json.loads(data.read_text()), page.read_text()


def test_a_case_that_fails_or_does_not_fit_is_reported_and_stops_no_other(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_common

    log: list[str] = []
    now = gpu_common.Run(torch.device("cpu"), True, time.monotonic())
    monkeypatch.setattr(gpu_common, "free_bytes", lambda _: 2.0**30)

    def fails() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert gpu_common.attempt(now, log, "a", 60, 2.0**29, fails) is None
    assert gpu_common.attempt(now, log, "b", 60, 2.0**31, lambda: 1) is None
    assert gpu_common.attempt(now, log, "c", 60, 2.0**29, lambda: 1) == 1
    now.began -= 61
    assert gpu_common.attempt(now, log, "d", 60, 0, lambda: 1) is None
    assert log == [
        "- **a failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB**",
        "- b: not run, needs about 2 GiB, 1 are free",
        "- d: not reached in time",
    ]


def test_estimates_count_the_parameters_that_the_models_have(monkeypatch):
    from diffusers import WanTransformer3DModel

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import estimates

    for size in (estimates.WAN_1_3B, estimates.WAN_14B):
        with torch.device("meta"):
            model = WanTransformer3DModel(
                num_attention_heads=size.heads, attention_head_dim=size.head_dim,
                ffn_dim=size.ffn, num_layers=size.layers,
            )  # fmt: skip
        assert size.parameters == sum(p.numel() for p in model.parameters())
        own = [p.numel() for n, p in model.named_parameters() if ".attn1." in n]
        assert size.self_attention == sum(own)


def test_estimates_count_the_work_that_torch_counts(monkeypatch):
    """A forward pass of the stock model, which has one view: every query sees every key."""
    from diffusers import WanTransformer3DModel
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import estimates

    size = estimates.Size(layers=3, heads=4, head_dim=32, ffn=512, text_dim=64)
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=size.heads, attention_head_dim=size.head_dim, ffn_dim=size.ffn,
            num_layers=size.layers, text_dim=size.text_dim,
        )  # fmt: skip
        video, text = torch.empty(1, 16, 5, 32, 64), torch.empty(1, 512, size.text_dim)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(video, torch.empty(1), text)
    counted = counter.get_total_flops()
    ours = estimates.forward_work(size, 1, 5, 16 * 32).forward
    assert 0.97 * counted < ours <= counted  # the ends of the model are left out


def test_the_estimates_in_the_documentation_are_what_the_function_gives(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import estimates

    page = (BENCHMARKS.parent / "docs" / "training.md").read_text(encoding="utf-8")
    assert "\n".join(estimates.table()) in page


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
