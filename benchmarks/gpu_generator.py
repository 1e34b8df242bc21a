# SPDX-License-Identifier: Apache-2.0
"""The sections of `gpu.py` for the generator: a whole sampling, one big forward pass, training.

Random weights, made on the device; it never reads a checkpoint. Needs diffusers beside torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import estimates
import report
import torch
from estimates import LIKE_11B, WAN_1_3B, WAN_14B, Size
from gpu_common import Run, attempt, fill, peak_bytes, record_goal, seconds

ROUNDS = 5
# Seconds since the group's start by which each section is over, those before it with it.
SAMPLED, FORWARD, TRAINED = 150.0, 330.0, 480.0
STEPS, TIMED = 40, 4
TEXT = 512
TINY = Size(layers=2, heads=2, head_dim=32, ffn=64, channels=4, text_dim=16)
MISSING = (
    "Not run: diffusers is not there. Its wheel is pure Python: `pip install --no-deps diffusers`, "
    "or unpack it into a folder and name that in PYTHONPATH."
)


def needs_diffusers(section: Callable[[Run], list[str]]) -> Callable[[Run], list[str]]:
    """A section that says so where diffusers is absent, in place of failing."""

    def guarded(run: Run) -> list[str]:
        title = f"## {(section.__doc__ or '').splitlines()[0]}"
        if importlib.util.find_spec("diffusers") is None:
            return [title, "", MISSING]
        return [title, "", *section(run)]

    guarded.__name__ = section.__name__
    return guarded


@needs_diffusers
def sampling(run: Run) -> list[str]:
    """1.3B, 8 x 29 frames at 288 x 512, 40 steps"""
    size, (views, times, space) = (TINY, (2, 2, 4)) if run.dry else (WAN_1_3B, (8, 8, 576))
    log: list[str] = []

    def measure() -> dict[str, tuple[float, int]]:
        from viewtime.generator.sampler import linear_schedule, sample

        model = new_model(run, size, torch.bfloat16)
        noise, conditions = inputs(run, size, views, times, space)
        call = partial(sample, model, conditions, noise)

        def time_it() -> tuple[float, int]:
            peak = peak_bytes(run, partial(call, linear_schedule(1)), in_all=True)
            taken = seconds(run, partial(call, linear_schedule(TIMED)))
            return taken * STEPS / TIMED, peak

        found = {"as it is": time_it()}
        compile_model(run, model)
        also = attempt(run, log, "compiled blocks", SAMPLED, 0.0, time_it)
        return found if also is None else {**found, "compiled blocks": also}

    needs = 2.0 * size.parameters + 4e9 * (not run.dry)
    made = attempt(run, log, "8 x 29 frames", SAMPLED, needs, measure) or {}
    flop = estimates.forward_work(size, views, times, space).forward * STEPS
    rows = []
    for name, (taken, peak) in made.items():
        rows.append(
            [name, f"{taken:.1f}", f"{flop / taken / 1e12:.0f}", f"{peak / 2**30:.1f}"]
        )  # fmt: skip
        run.data.setdefault("sampling", {})[name] = {"seconds": taken, "peak_bytes": peak}
    best = min((taken for taken, _ in made.values()), default=None)
    head = ["1.3B", "s", "TFLOP/s over the loop", "peak GiB, weights too"]
    return [
        *([*report.table(head, rows), ""] if rows else []),
        "- " + record_goal(run, "1.3B, 8 x 29 frames, 40 steps: seconds", 25, best),
        f"- {TIMED} steps were timed and multiplied to {STEPS}",
        "- both references given and no guidance, one forward pass a step (appendix B); encoding "
        "the references and the text, compiling and decoding are not in it",
        *log,
    ]  # fmt: skip


@needs_diffusers
def forward(run: Run) -> list[str]:
    """One forward pass of 32 layers, 4096 wide, 8 x 61 frames at 288 x 512"""
    size, (views, times, space) = (TINY, (2, 3, 4)) if run.dry else (LIKE_11B, (8, 16, 576))
    log: list[str] = []
    fused, apart = (
        estimates.forward_work(size, views, times, space, sequential=s) for s in (False, True)
    )

    def measure() -> tuple[dict[str, list[float]], dict[str, int]]:
        from viewtime.generator.architectures import install
        from viewtime_kernels import explain_backend

        shape = (1, fused.tokens, size.heads, size.head_dim)
        q = torch.empty(shape, dtype=torch.bfloat16, device=run.device)
        chosen = str(explain_backend(q, q, q, views=views, times=times))
        log.append("- attention: " + "; ".join(chosen.splitlines()))
        del q
        model = new_model(run, size, torch.bfloat16)
        x, conditions = inputs(run, size, views, times, space)
        t = torch.full((1,), 0.7, device=run.device)

        @torch.no_grad()
        def once(architecture: str) -> object:
            install(model.transformer, architecture, model.grid, None)  # the same weights
            return model(x, t, conditions)

        calls = {name: partial(once, name) for name in ("fused", "sequential")}
        peaks = {name: peak_bytes(run, call, in_all=True) for name, call in calls.items()}
        timed = {name: partial(seconds, run, call) for name, call in calls.items()}
        taken = report.interleaved(timed, ROUNDS, log.append, run.left(FORWARD))
        install(model.transformer, "fused", model.grid, None)
        compile_model(run, model)

        @torch.no_grad()
        def compiled() -> object:
            return model(x, t, conditions)

        def also() -> tuple[dict[str, list[float]], int]:
            peak = peak_bytes(run, compiled, in_all=True)
            again = {"fused, compiled blocks": partial(seconds, run, compiled)}
            return report.interleaved(again, ROUNDS, log.append, run.left(FORWARD)), peak

        made = attempt(run, log, "compiled blocks", FORWARD, 0.0, also)
        if made is not None:
            taken |= made[0]
            peaks |= dict.fromkeys(made[0], made[1])
        return taken, peaks

    needs = 2.0 * size.parameters + fused.tokens * (40.0 * size.width + 4 * size.ffn)
    made = attempt(run, log, "the forward pass", FORWARD, needs, measure)
    lines = [
        f"{size.parameters / 1e9:.1f} billion random weights in bfloat16 (the rest of the paper's "
        f"11 modulate layers), {fused.tokens:,} tokens, {TEXT if not run.dry else 4} of text.",
        "",
    ]
    ratio = whole = None
    if made is not None:
        taken, peaks = made
        middle = {name: report.median(each) for name, each in taken.items()}
        ratio = middle["fused"] / middle["sequential"]
        whole = min(seconds_ for name, seconds_ in middle.items() if name != "sequential")
        rows = []
        for name in middle:
            work = apart if name == "sequential" else fused
            rows.append(
                [name, f"{middle[name] / middle['sequential']:.3f}", f"{middle[name]:.3f}",
                 report.spread(taken[name]), f"{work.forward / 1e15:.2f}",
                 f"{work.forward / middle[name] / 1e12:.0f}", f"{peaks[name] / 2**30:.1f}"]
            )  # fmt: skip
        head = ["attention", "of sequential", "s", "fastest to slowest, ms", "PFLOP", "TFLOP/s",
                "peak GiB, weights too"]  # fmt: skip
        lines += [*report.table(head, rows), ""]
        run.data["forward"] = {"seconds": taken, "peak_bytes": peaks}
    text = "one forward pass of 32 layers x 4096, 73,728 tokens: "
    lines.append("- " + record_goal(run, text + "fused over sequential", 1.15, ratio))
    lines.append("- " + record_goal(run, text + "seconds", 3.6, whole))
    lines.append("- the paper on an A100 (float32): 11.7 s, 1.26 times sequential, 54.9 GB")
    return lines + log


@needs_diffusers
def training(run: Run) -> list[str]:
    """One training step, self-attention alone, 8 x 29 frames at 144 x 256"""
    sizes = {"tiny": TINY} if run.dry else {"1.3B": WAN_1_3B, "14B": WAN_14B}
    views, times, space = (2, 2, 4) if run.dry else (8, 8, 144)
    log: list[str] = []
    rows = []
    for name, size in sizes.items():
        for averaged in (True, False):
            want = estimates.training(size, views, times, space, averaged=averaged)
            what = f"{name}, {'with' if averaged else 'without'} averaged weights"
            call = partial(train_step, run, size, views, times, space, averaged)
            made = attempt(run, log, what, TRAINED, want.bytes, call)
            if made is None:
                continue
            taken, peak = made
            middle = report.median(taken)
            run.data.setdefault("training", {})[what] = {"seconds": taken, "peak_bytes": peak}
            rows.append(
                [what, f"{middle:.2f}", report.spread(taken), f"{want.seconds:.2f}",
                 f"{want.flop / middle / 1e12:.0f}", f"{peak / 1e9:.1f}", f"{want.bytes / 1e9:.1f}"]
            )  # fmt: skip
            break  # without the average only where it does not fit with it
    head = ["base", "s a grid", "fastest to slowest, ms", "estimate, s", "TFLOP/s", "peak GB",
            "estimate, GB"]  # fmt: skip
    return [
        "Forward, backward with activation checkpointing, clipping, AdamW and the average, as "
        "`viewtime train generator` takes them, of one grid of random latents: no VAE, no text "
        "encoder, no making of data. Float32 weights, bfloat16 autocast.",
        "", *(report.table(head, rows) if rows else ["Not measured."]), "", *log,
    ]  # fmt: skip


def train_step(
    run: Run, size: Size, views: int, times: int, space: int, averaged: bool
) -> tuple[list[float], int]:
    """Seconds of a few steps and their peak memory in all."""
    from viewtime.training.common import Average
    from viewtime.training.fine_tuning import choose_parameters
    from viewtime.training.flow import draw, flow_loss

    model = new_model(run, size, torch.float32).train()
    parameters = choose_parameters(model, "self_attention")
    model.transformer.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.99), fused=not run.dry)
    average = Average(model, 0.999) if averaged else None
    clean, conditions = inputs(run, size, views, times, space)
    rng = torch.Generator().manual_seed(0)

    def step() -> None:
        drawn = draw(clean, conditions, rng, 3.0)
        with torch.autocast(run.device.type, torch.bfloat16):
            velocity = model(drawn.x, drawn.t, conditions)
            loss = flow_loss(velocity, drawn, conditions)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update(model, 0)

    peak = peak_bytes(run, step, in_all=True)
    timed = {"step": partial(seconds, run, step)}
    return report.interleaved(timed, ROUNDS, budget=run.left(TRAINED))["step"], peak


def compile_model(run: Run, model: Any) -> None:
    """`compile_blocks` as a job does it; in a dry run without a compiler behind it."""
    from viewtime.generator.codec import PixelCodec
    from viewtime.generator.load import Generator
    from viewtime.generator.speed import compile_blocks

    if not run.dry:
        compile_blocks(Generator("random", model, PixelCodec()))
        return
    for block in model.transformer.blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, backend="eager")


def new_model(run: Run, size: Size, dtype: torch.dtype) -> Any:
    """A ViewTimeTransformer (fused) of random weights on the device, as a stock checkpoint is
    loaded: what Wan keeps in float32 stays so."""
    from diffusers import WanTransformer3DModel

    from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer

    with torch.device("meta"):
        transformer: Any = WanTransformer3DModel(
            patch_size=(1, size.patch, size.patch), num_attention_heads=size.heads,
            attention_head_dim=size.head_dim, in_channels=size.channels,
            out_channels=size.channels, text_dim=size.text_dim, ffn_dim=size.ffn,
            num_layers=size.layers,
        )  # fmt: skip
    kept = transformer._keep_in_fp32_modules or ()
    for name, parameter in transformer.named_parameters():
        if not any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.to(dtype)
    fill(transformer, run.device)
    rope = transformer.rope  # its tables are no weights
    made = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    transformer.rope = made.to(run.device)
    text_tokens = 4 if run.dry else TEXT
    return ViewTimeTransformer(transformer, GeneratorConfig(text_tokens=text_tokens)).eval()


def inputs(run: Run, size: Size, views: int, times: int, space: int) -> tuple[Any, Any]:
    """Latents (1, V, T, C, h, w) of `space` tokens a frame, and conditions: the first row and the
    first column given, text of the usual length."""
    from viewtime.generator.conditioning import Conditions

    generator = torch.Generator(run.device).manual_seed(1)
    height, width = {576: (18, 32), 144: (9, 16)}.get(space, (2, space // 2))
    shape = (1, views, times, size.channels, height * size.patch, width * size.patch)
    x, reference = (torch.randn(shape, generator=generator, device=run.device) for _ in range(2))
    known = torch.zeros(1, views, times, dtype=torch.bool, device=run.device)
    known[:, 0] = known[:, :, 0] = True
    text = torch.randn(1, 4 if run.dry else TEXT, size.text_dim, generator=generator,
                       device=run.device)  # fmt: skip
    return x, Conditions(reference * known[..., None, None, None], known, text)
