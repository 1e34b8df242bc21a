# SPDX-License-Identifier: Apache-2.0
"""Times view-time attention against the same mask by other means; the ratio comes first.

Counted FLOPs are those of the mask (4 * pairs * D forward, 10 backward), whatever a method
really executes, so a dense method's rate looks as low as it is useful. Run from the repository:

    python benchmarks/attention.py [--shapes 8x8x64,8x9x256] [--dtype float32] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from viewtime_kernels import view_time_attention, view_time_mask

Method = Callable[[Tensor, Tensor, Tensor], Tensor]
DENSE_LIMIT = 8192  # tokens: a mask of N x N beyond this is not worth its memory


def dense_masked(views: int, times: int, space: int) -> Method:
    """One SDPA call over all tokens with a boolean mask."""
    mask = view_time_mask(views, times, space)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask
        )
        return out.transpose(1, 2)

    return attend


def frame_loop(views: int, times: int, space: int) -> Method:
    """One SDPA call per frame over the keys it sees, gathered."""
    cells = torch.arange(views * times).view(views, times)
    seen = [
        torch.cat((cells[v], cells[:v, t], cells[v + 1 :, t]))
        for v in range(views)
        for t in range(times)
    ]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, _, heads, dim = q.shape
        q, k, v = (x.reshape(batch, -1, space, heads, dim) for x in (q, k, v))
        outs = []
        for frame, keys in enumerate(seen):
            k_f, v_f = (x[:, keys].flatten(1, 2).transpose(1, 2) for x in (k, v))
            outs.append(F.scaled_dot_product_attention(q[:, frame].transpose(1, 2), k_f, v_f))
        return torch.cat(outs, dim=2).transpose(1, 2)

    return attend


def seconds_of(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of one call, after one to warm up."""
    run()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="4x4x64,8x8x64,8x9x256", help="VxTxS, comma-separated")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"commit {commit}, torch {torch.__version__}, CPU, {options.threads} threads")
    print(f"{options.dtype}, B1 H{options.heads} D{options.dim}, median of {options.repeats}")
    print("| V x T x S | method | forward, ratio to ours | with backward, ratio | ms | ms | GF/s |")
    print("|---|---|---|---|---|---|---|")
    for shape in options.shapes.split(","):
        views, times, space = (int(n) for n in shape.split("x"))
        size = (1, views * times * space, options.heads, options.dim)
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(size, generator=generator).to(getattr(torch, options.dtype))
            for _ in range(3)
        ]
        time_shape(shape, views, times, space, inputs, options.repeats)


def time_shape(
    name: str, views: int, times: int, space: int, inputs: list[Tensor], repeats: int
) -> None:
    """Print one row per method; the first method is the one that ratios refer to."""
    methods: dict[str, Method] = {
        "rows + columns - own": partial(view_time_attention, views=views, times=times),
        "loop over frames": frame_loop(views, times, space),
    }
    _, tokens, heads, dim = inputs[0].shape
    if tokens <= DENSE_LIMIT:
        methods["dense, masked"] = dense_masked(views, times, space)
    flops = 4 * tokens * (views + times - 1) * space * heads * dim
    leaves = [x.detach().requires_grad_() for x in inputs]
    first: tuple[float, float] | None = None
    for label, method in methods.items():
        forward = seconds_of(partial(method, *inputs), repeats)
        both = seconds_of(partial(forward_and_backward, method, leaves), repeats)
        first = first or (forward, both)
        print(
            f"| {name} | {label} | {forward / first[0]:.2f} | {both / first[1]:.2f} | "
            f"{forward * 1e3:.1f} | {both * 1e3:.1f} | {flops / forward / 1e9:.0f} |"
        )


def forward_and_backward(method: Method, leaves: list[Tensor]) -> None:
    torch.autograd.grad(method(*leaves).sum(), leaves)


if __name__ == "__main__":
    main()
