# SPDX-License-Identifier: Apache-2.0
"""The sections of `gpu.py` for view-time attention: ceilings, correctness, speed, goals.

Never times a backend in the process that first tries it: each is checked in a process of its own,
since a kernel that hangs or writes where it must not takes its process with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gpu_predictions
import peers
import report
import suite
import torch
from gpu_common import Run, peak_bytes, seconds
from torch import Tensor

from viewtime_kernels import flex, view_time_attention

VIEWS, TIMES, HEADS, DIM = 8, 16, 32, 128
BACKENDS = ("hopper", "triton", "inclusion_exclusion")
AGREE = 2e-2  # norm of a difference over the norm, bfloat16
# Seconds since the start by which each part is over; the parts before it are over too.
CHECKED, SWEPT_576, DONE_576, DONE_2304 = 130.0, 225.0, 310.0, 440.0
SWEEP = [
    flex.FlexOptions(128),
    flex.FlexOptions(128, (("USE_TMA", True), ("ROWS_GUARANTEED_SAFE", True))),
    flex.FlexOptions(128, (("PRESCALE_QK", True), ("ROWS_GUARANTEED_SAFE", True))),
    flex.FlexOptions((128, 64)),
    flex.FlexOptions((128, 64), (("USE_TMA", True), ("ROWS_GUARANTEED_SAFE", True))),
    flex.FlexOptions(64),
    flex.FlexOptions(64, (("USE_TMA", True), ("ROWS_GUARANTEED_SAFE", True))),
    flex.FlexOptions(128, mode="max-autotune-no-cudagraphs"),
]


def ceilings(run: Run) -> list[str]:
    """What the card does at its best: a bfloat16 product and a copy."""
    side = 256 if run.dry else 8192
    a, b = torch.randn(2, side, side, device=run.device).to(torch.bfloat16).unbind(0)
    source = torch.empty(2**20 if run.dry else 2**31, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    runs = {"product": partial(torch.matmul, a, b), "copy": partial(target.copy_, source)}
    timed = {name: partial(seconds, run, each) for name, each in runs.items()}
    taken = report.interleaved(timed, 10)
    rate = 2 * side**3 / report.median(taken["product"]) / 1e12
    width = 2 * source.nbytes / report.median(taken["copy"]) / 1e12
    run.data["ceilings"] = {"bf16_tflops": rate, "copy_tbytes_per_second": width}
    return [
        "## Ceilings",
        "",
        f"A {side} x {side} x {side} product in bfloat16: {rate:.0f} TFLOP/s. A copy, bytes read "
        f"and written: {width:.2f} TB/s.",
    ]


def correctness(run: Run) -> list[str]:
    """Every backend against float64, each in a process of its own, side by side."""
    names = ("inclusion_exclusion",) if run.dry else BACKENDS
    script = Path(__file__).with_name("gpu.py")
    room = run.left(CHECKED)
    started = {}
    for name in names:
        command = [sys.executable, str(script), "--check", name, "--seconds", f"{room * 0.8:.0f}"]
        command += ["--dry-run"] if run.dry else []
        started[name] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    rows, words = [], []
    run.data["correctness"] = {}
    for name, process in started.items():
        try:
            out, errors = process.communicate(timeout=max(run.left(CHECKED), 1.0))
            made = json.loads(out.splitlines()[-1]) if process.returncode == 0 else None
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            made, errors = None, f"it did not end within {room:.0f} s and was stopped"
        if made is None:
            last = (errors.strip().splitlines() or ["no message"])[-1][:300]
            made = {"passed": 0, "left_out": 0, "wrong": [f"the process failed: {last}"]}
        run.data["correctness"][name] = made
        verdict = made.get("refused") or ("WRONG" if made["wrong"] else "right")
        rows.append([name, verdict, str(made["passed"]), str(len(made["wrong"])),
                     str(made["left_out"])])  # fmt: skip
        words += [f"- {name}: {line}" for line in made["wrong"][:8]]
    head = ["backend", "verdict", "cases passed", "wrong", "not reached in time"]
    return [
        "## Correctness",
        "",
        "Output, log-sum-exp and gradients against masked attention in float64, at most twice as "
        "far off as torch's own masked attention in the same dtype; and at the full size against "
        "rows + columns - own.",
        "", *report.table(head, rows), *([""] + words if words else []),
    ]  # fmt: skip


def check(name: str, run: Run, limit: float) -> dict[str, Any]:
    """What `correctness` needs to know of one backend: which cases passed, which were wrong."""
    made: dict[str, Any] = {"passed": 0, "wrong": [], "left_out": 0}
    began = time.monotonic()
    half, dim = torch.bfloat16, 64 if run.dry else DIM
    cases = suite.sweep((half,), (dim,), paper=not run.dry)
    if run.dry:
        cases = cases[:3]
    else:
        others = suite.sweep((half,), (64,), paper=False)
        cases += others + suite.sweep((torch.float16,), (128,), paper=False)
        cases.sort(key=lambda case: case != replace(suite.Case(2, 3, 144), dtype=half, dim=dim,
                                                    heads=1))  # fmt: skip
    q, k, v, grad = inputs(run, 16 if run.dry else 576, heads=1 if run.dry else HEADS)
    try:
        mine = suite.with_gradients(attention(run, name), q, k, v, grad)
    except ValueError as error:
        return made | {"refused": report.in_words(error)}
    peer = suite.with_gradients(attention(run, "inclusion_exclusion"), q, k, v, grad)
    for part, a, b in zip(("out", "dq", "dk", "dv"), mine, peer):
        off = ((a.float() - b.float()).norm() / b.float().norm()).item()
        if not off <= AGREE:  # NaN too
            made["wrong"].append(f"full size: {part} is off by {off:.2g} of its norm")
    del mine, peer, q, k, v, grad
    for case in cases:
        if time.monotonic() - began > limit:
            made["left_out"] += 1
            continue
        try:
            suite.check_forward(name, case, run.device.type)
            suite.check_gradients(name, case, run.device.type)
            made["passed"] += 1
        except Exception as error:
            made["wrong"].append(f"{case}: {report.in_words(error)}")
    return made


def speed_576(run: Run) -> list[str]:
    return speed(run, 576, SWEPT_576, DONE_576)


def speed_2304(run: Run) -> list[str]:
    return speed(run, 2304, DONE_576, DONE_2304)


def goals(run: Run) -> list[str]:
    """The issue's goals beside what was measured; "not measured" where a figure is missing."""
    rows = []
    met: dict[str, Any] = {}
    for goal in gpu_predictions.goals(run.data.get("speed", {}), BACKENDS):
        outcome = "not measured" if goal.outcome is None else f"{goal.outcome:.2f}"
        verdict = ""
        if goal.outcome is not None:
            verdict = "met" if goal.outcome >= goal.least else "missed"
        rows.append([goal.text, f"{goal.least:g}", outcome, verdict])
        met[goal.text] = {"least": goal.least, "outcome": goal.outcome}
    run.data.setdefault("goals", {}).update(met)
    return ["## Goals of attention", "", *report.table(["goal", "at least", "outcome", ""], rows)]


def speed(run: Run, space: int, swept: float, done: float) -> list[str]:
    """Forward and backward of every backend and peer at one S."""
    views, times = grid(run)
    real = 16 if run.dry else space
    q, k, v, grad = inputs(run, real, heads=1 if run.dry else HEADS)
    tokens, heads, dim = q.shape[1:]
    flops = 4 * tokens * (views + times - 1) * real * heads * dim
    log: list[str] = []
    checked = run.data.get("correctness", {})
    names = [name for name in checked if not checked[name].get("refused")]
    names = [name for name in names if checked[name]["passed"]]  # others may take us with them
    log += [f"- **{name} is WRONG: see above**" for name in names if checked[name]["wrong"]]
    methods: dict[str, peers.Method] = {name: attention(run, name) for name in names}
    methods |= candidates(run, (q, k, v), swept, log)
    dense = {"dense, no mask (another result)": peers.dense}
    mask_bytes = 3 * tokens * tokens  # one bool and one bfloat16
    if run.dry or mask_bytes < 0.4 * torch.cuda.mem_get_info()[0]:
        dense["dense, masked"] = peers.dense_masked(views, times, real, q)
    else:
        log.append(f"- dense, masked: not run, its masks would take {mask_bytes / 2**30:.0f} GiB")

    with torch.no_grad():
        mine = attention(run, "inclusion_exclusion")(q, k, v).float()
        for name in list(methods):
            try:
                off = ((methods[name](q, k, v).float() - mine).norm() / mine.norm()).item()
            except Exception as error:
                log.append(f"- {name} did not run: {report.in_words(error)}")
                del methods[name]
                continue
            if not off <= AGREE:
                log.append(f"- **{name} is WRONG: off by {off:.2g} of the norm**")
        del mine
        forward = {name: partial(m, q, k, v) for name, m in (methods | dense).items()}
        lines = measure(run, space, "forward", forward, flops, swept + (done - swept) * 0.4, log)

    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    backward: dict[str, Callable[[], object]] = {}
    # Over all keys of the larger S one backward takes seven seconds.
    for name, method in (methods | (dense if space == 576 else {})).items():
        try:
            out = method(*leaves)
        except Exception as error:
            log.append(f"- {name} has no backward here: {report.in_words(error)}")
            continue
        backward[name] = partial(torch.autograd.grad, out, leaves, grad, retain_graph=True)
    more = measure(run, space, "backward", backward, flops * 5 // 2, done, log)
    return [
        f"## V{views} T{times} S{real} H{heads} D{dim}, bfloat16", "",
        "TFLOP/s are counted on the (T + V - 1) S keys that a query sees: "
        f"{flops / 1e12:.3g} TFLOP forward, 2.5 times that backward.",
        "", *lines, "", *more, *([""] + log if log else []),
    ]  # fmt: skip


def candidates(
    run: Run, qkv: tuple[Tensor, ...], until: float, log: list[str]
) -> dict[str, peers.Method]:
    """The two fastest forwards of FlexAttention, with their names: of the sweep as far as time
    allows, or those of the smaller S, which was swept first."""
    views, times = grid(run)
    known = run.data.setdefault("flex", [])
    options = [SWEEP[i] for i in known] or SWEEP
    taken: dict[int, float] = {}
    for each in options:
        needed = 45.0 if each.mode else 0.0  # autotuning compiles many
        if len(taken) > 1 and run.left(until) <= needed:
            log.append(f"- FlexAttention, {peers.describe(each)}: not reached in time")
            continue
        method = peers.flex_attention(views, times, each)
        with torch.no_grad():
            runs = {f"FlexAttention, {peers.describe(each)}": partial(
                seconds, run, partial(method, *qkv))}  # fmt: skip
            made = report.interleaved(runs, 3, log.append)
        for name, each_taken in made.items():
            taken[SWEEP.index(each)] = report.median(each_taken)
            log.append(f"- sweep: {name}: {report.median(each_taken) * 1e3:.4g} ms forward")
        if run.dry and taken:
            break
    best = sorted(taken, key=lambda i: taken[i])[:2]
    run.data["flex"] = known or best
    return {
        f"FlexAttention, {peers.describe(SWEEP[i])}": peers.flex_attention(views, times, SWEEP[i])
        for i in best
    }


def measure(
    run: Run, space: int, what: str, runs: dict[str, Callable[[], object]], flops: int,
    until: float, log: list[str],
) -> list[str]:  # fmt: skip
    """One table, ratios to FlexAttention's best first, and the figures into run.data."""
    peaks = {}
    for name in list(runs):
        try:
            peaks[name] = peak_bytes(run, runs[name])
        except Exception as error:
            log.append(f"- {name}, {what}, did not run: {report.in_words(error)}")
            del runs[name]
    timed = {name: partial(seconds, run, each) for name, each in runs.items()}
    taken = report.interleaved(timed, 2 if run.dry else 12, log.append, run.left(until))
    middle = {name: report.median(each) for name, each in taken.items()}
    flexes = [s for name, s in middle.items() if name.startswith("FlexAttention")]
    rows = []
    data = run.data.setdefault("speed", {}).setdefault(str(space), {}).setdefault(what, {})
    for name, each in sorted(middle.items(), key=lambda pair: pair[1]):
        rate = flops / each / 1e12
        predicted = gpu_predictions.predicted(space, what, name)
        ratio = f"{min(flexes) / each:.2f}" if flexes else ""
        rows.append(
            [name, ratio, f"{rate:.0f}", predicted, report.milliseconds(each),
             report.spread(taken[name]), str(len(taken[name])), f"{peaks[name] / 2**30:.2f}"]
        )  # fmt: skip
        data[name] = {"tflops": rate, "seconds": taken[name], "peak_bytes": peaks[name],
                      "predicted": predicted}  # fmt: skip
    head = [what, "times as fast as the best FlexAttention", "TFLOP/s", "predicted TFLOP/s", "ms",
            "fastest to slowest", "rounds", "GiB beyond inputs"]  # fmt: skip
    return report.table(head, rows)


def grid(run: Run) -> tuple[int, int]:
    return (2, 3) if run.dry else (VIEWS, TIMES)


def attention(run: Run, backend: str) -> peers.Method:
    views, times = grid(run)
    return partial(view_time_attention, views=views, times=times, backend=backend)


def inputs(run: Run, space: int, heads: int) -> list[Tensor]:
    """q, k, v and a gradient of the output, each (1, N, H, D) bfloat16, drawn on the device."""
    views, times = grid(run)
    generator = torch.Generator(run.device).manual_seed(0)
    size = 1, views * times * space, heads, 64 if run.dry else DIM
    return [
        torch.randn(size, generator=generator, device=run.device, dtype=torch.bfloat16)
        for _ in range(4)
    ]
