# SPDX-License-Identifier: Apache-2.0
"""Times view-time attention on a CPU against the same mask by other means, and counts its memory.

Never leaves a method unchecked: all must agree with ours before they are timed. Run it on an idle
machine, from the repository; it takes about ten minutes on two idle cores:

    python benchmarks/attention.py --out benchmarks/results/attention-cpu.md \\
        --into docs/attention.md

FLOPs are those of the mask (4 * pairs * D forward, 10 backward), whatever a method really
executes, so a dense method's rate looks as low as it is useful.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peers
import report
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from viewtime_kernels import flex, view_time_attention

OURS = "ours"
SLOT = "<!-- measured: python benchmarks/attention.py"
GOAL = 2.5  # times faster than dense masked, and in bf16 forward than FlexAttention
AGREE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}  # of the largest value
MEMORY_GRID = 8, 16  # views, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--times", type=int, default=16)
    parser.add_argument("--space", type=int, default=144)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--flex-blocks", default="64,128,128x64,32,16,48,144",
        help="FlexAttention's blocks to sweep (queries x keys); empty: leave it out",
    )  # fmt: skip
    parser.add_argument(
        "--memory-tokens", default="2048,4096,8192,16384,32768,65536",
        help="multiples of 128, comma-separated; empty: no memory table",
    )  # fmt: skip
    parser.add_argument(
        "--most-gib", type=float, default=2.5, help="what a mask may take in the memory table"
    )
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    parser.add_argument("--into", type=Path, help="put them into this page, docs/attention.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    text = ["# View-time attention on a CPU", "", *report.state(options.threads)]
    grid = f"V{options.views} T{options.times} S{options.space} H{options.heads} D{options.dim}"
    text.append(f"- {grid}, batch 1; medians of {options.rounds} interleaved rounds")
    print("\n".join(text), flush=True)
    sections = [
        *(partial(speed, options, getattr(torch, name)) for name in options.dtypes.split(",")),
        partial(memory, options),
    ]
    for section in sections:
        lines = ["", *section()]
        print("\n".join(lines), flush=True)
        text += lines
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write(options.out, "\n".join(text) + "\n")
    if options.into is not None:
        write(options.into, filled(options.into.read_text(encoding="utf-8"), text))


def filled(page: str, text: list[str]) -> str:
    """The page with what stands between SLOT and "<!-- end -->" replaced by the text, without its
    title and with its headings a level lower. Raises ValueError where there is no such place."""
    head, slot, rest = page.partition(SLOT)
    comment, end, tail = rest.partition("<!-- end -->")
    if not slot or not end:
        raise ValueError(f"the page has no place that begins with {SLOT!r} and ends <!-- end -->")
    lines = [f"#{line}" if line.startswith("#") else line for line in text[2:]]
    opening = comment.split("\n", 1)[0]
    return "\n".join([f"{head}{slot}{opening}", *lines, f"{end}{tail}"])


def write(path: Path, text: str) -> None:
    """The file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def draw(tokens: int, heads: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and a gradient of the output, each (1, N, H, D)."""
    generator = torch.Generator().manual_seed(0)
    size = 4, 1, tokens, heads, dim
    return list(torch.randn(size, generator=generator).to(dtype).unbind(0))


def speed(options: argparse.Namespace, dtype: torch.dtype) -> list[str]:
    """Tables of forward, and forward with backward, for one dtype."""
    views, times, space = options.views, options.times, options.space
    tokens = views * times * space
    q, k, v, grad = draw(tokens, options.heads, options.dim, dtype)
    log: list[str] = []
    methods: dict[str, peers.Method] = {
        OURS: partial(view_time_attention, views=views, times=times),
        "dense, masked": peers.dense_masked(views, times, space, q),
        "loop over frames": peers.frame_loop(views, times, space),
    }
    if options.flex_blocks:
        methods |= best_flex(options, q, k, v, log)
    with torch.no_grad():
        mine = methods[OURS](q, k, v)
        for name, method in methods.items():
            off = ((method(q, k, v) - mine).abs().max() / mine.abs().max()).item()
            if not off <= AGREE[dtype]:
                raise SystemExit(f"{name} differs from ours by {off:.2g} of the largest value")
        methods["dense, no mask (another result)"] = peers.dense
        runs = {name: partial(seconds, partial(m, q, k, v)) for name, m in methods.items()}
        forward = report.interleaved(runs, options.rounds, log.append)

    leaves = [x.detach().requires_grad_() for x in (q, k, v)]

    def both(method: peers.Method) -> object:
        return torch.autograd.grad(method(*leaves), leaves, grad)

    runs = {name: partial(seconds, partial(both, methods[name])) for name in list(methods)[:2]}
    backward = report.interleaved(runs, options.rounds, log.append)
    flops = 4 * tokens * (views + times - 1) * space * options.heads * options.dim
    name, half = str(dtype).removeprefix("torch."), dtype != torch.float32
    return [
        f"## Speed, {name}", "", *rows("forward", forward, flops, half), "",
        *rows("forward and backward", backward, 7 * flops // 2, half), *log,
    ]  # fmt: skip


def best_flex(
    options: argparse.Namespace, q: Tensor, k: Tensor, v: Tensor, log: list[str]
) -> dict[str, peers.Method]:
    """The fastest of FlexAttention's block sizes; the sweep is logged."""
    swept: dict[str, peers.Method] = {}
    for block in options.flex_blocks.split(","):
        queries, _, keys = block.partition("x")
        chosen = flex.FlexOptions((int(queries), int(keys or queries)))
        method = peers.flex_attention(options.views, options.times, chosen)
        swept[f"FlexAttention, {peers.describe(chosen)}"] = method
    with torch.no_grad():
        runs = {name: partial(seconds, partial(m, q, k, v)) for name, m in swept.items()}
        taken = report.interleaved(runs, 1, log.append)
    if not taken:
        return {}
    swept_ms = ", ".join(
        f"{name.split(', ', 1)[1]} {report.median(t) * 1e3:.0f} ms" for name, t in taken.items()
    )
    log.append(f"\nFlexAttention's sweep, one round: {swept_ms}. The fastest is in the table.")
    name = min(taken, key=lambda name: report.median(taken[name]))
    return {name: swept[name]}


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def rows(what: str, taken: dict[str, list[float]], flops: int, half: bool) -> list[str]:
    """One table; ratios to ours come first. FlexAttention has a goal in half precision alone."""
    ours = report.median(taken[OURS])
    lines = []
    for name, each in taken.items():
        middle = report.median(each)
        ratio = middle / ours
        aim = ""
        if name == "dense, masked" or name.startswith("FlexAttention") and half:
            aim = f"{GOAL}: {'met' if ratio >= GOAL else 'missed'}"
        lines.append(
            [name, f"{ratio:.2f}", aim, f"{middle * 1e3:.0f}", report.spread(each),
             f"{flops / middle / 1e9:.0f}"]
        )  # fmt: skip
    head = [what, "time / ours", "goal", "ms", "fastest to slowest", "GFLOP/s of the mask"]
    return report.table(head, lines)


def memory(options: argparse.Namespace) -> list[str]:
    """The most that is allocated at once beyond q, k, v and the gradient, by number of tokens."""
    if not options.memory_tokens:
        return []
    views, times = MEMORY_GRID
    frames = views * times
    ours: peers.Method = partial(view_time_attention, views=views, times=times)
    lines = []
    for tokens in map(int, options.memory_tokens.split(",")):
        if tokens % frames:
            raise SystemExit(f"--memory-tokens: {tokens} is no multiple of {frames}")
        space = tokens // frames
        q, k, v, grad = draw(tokens, 1, 128, torch.bfloat16)
        inputs = q.nbytes

        def with_mask(q: Tensor, k: Tensor, v: Tensor, space: int = space) -> Tensor:
            return peers.dense_masked(views, times, space, q)(q, k, v)  # the mask is its own

        cells = [f"{tokens}"]
        for method, least in ((ours, 0), (with_mask, tokens * tokens * 3)):
            if least > options.most_gib * 2**30:
                cells += [f"refused: the mask alone {least / 2**30:.1f} GiB"] * 2
                continue
            for leaves in (None, [x.detach().requires_grad_() for x in (q, k, v)]):
                peak = peak_bytes(partial(call, method, leaves or [q, k, v], grad))
                cells.append(f"{peak / 2**20:.1f} ({peak / inputs:.1f})")
        lines.append(cells)
    head = ["N", "ours, forward", "ours, with backward", "dense masked, forward",
            "dense masked, with backward"]  # fmt: skip
    return [
        "## Memory",
        "",
        "The most that is allocated at once beyond the inputs, in MiB (in brackets: in units of "
        f"q): bfloat16, V{views} T{times} H1 D128, S = N / {frames}. From torch's profiler, which "
        "sees every allocation, those inside kernels too. The dense method makes its own mask.",
        "",
        *report.table(head, lines),
    ]


def call(method: peers.Method, given: list[Tensor], grad: Tensor) -> object:
    if not given[0].requires_grad:
        with torch.no_grad():
            return method(*given)
    return torch.autograd.grad(method(*given), given, grad)


def peak_bytes(run: Callable[[], object]) -> int:
    """The highest sum of what torch has allocated and not yet freed since `run` began."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as watched:
        kept = run()
    del kept
    assert watched.profiler is not None and watched.profiler.kineto_results is not None
    events = watched.profiler.kineto_results.events()
    steps = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    now = most = 0
    for _, step in sorted(steps, key=lambda step: step[0]):
        now += step
        most = max(most, now)
    return most


if __name__ == "__main__":
    main()
