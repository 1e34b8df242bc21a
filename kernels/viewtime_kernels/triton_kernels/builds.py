# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time builds of the kernels for GPUs that need not be there, and what the builds use.

`python -m viewtime_kernels.triton_kernels.builds` prints them as a table. It never runs a kernel.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from viewtime_kernels.triton_kernels import tiles
from viewtime_kernels.triton_kernels.backward_kernels import delta_kernel, dkv_kernel, dq_kernel
from viewtime_kernels.triton_kernels.configs import TABLE, Config, Kernel
from viewtime_kernels.triton_kernels.forward_kernel import forward_kernel

KERNELS = {"forward": forward_kernel, "dq": dq_kernel, "dkv": dkv_kernel}
CODES = {"view_time": tiles.VIEW_TIME.value, "view": tiles.VIEW.value, "time": tiles.TIME.value}


@dataclass(frozen=True)
class Usage:
    """What one build takes. registers: per thread at entry. stack: bytes of local memory per
    thread. shared: bytes per program. spills: local loads and stores in the machine code. hgmma
    and hmma: tensor-core instructions, warp-group wide (sm_90) and warp wide."""

    registers: int
    stack: int
    shared: int
    spills: int
    hgmma: int
    hmma: int


def disassembler() -> Path:
    """The cuobjdump that comes with Triton."""
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def usage(compiled: Any) -> Usage:
    """Read a compiled kernel's cubin with cuobjdump."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])

        def dump(option: str) -> str:
            command = [str(disassembler()), option, str(cubin)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        resources, code = dump("--dump-resource-usage"), dump("--dump-sass")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", resources)
    if found is None:
        raise RuntimeError(f"cuobjdump states no resource usage: {resources[:200]!r}")
    registers, stack, local = (int(part) for part in found.groups())
    return Usage(
        registers=registers,
        stack=stack + local,
        shared=compiled.metadata.shared,
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        hgmma=len(re.findall(r"\bHGMMA\b", code)),
        hmma=len(re.findall(r"\bHMMA\b", code)),
    )


def compile_for(
    function: Any, signature: dict[str, str], constants: dict[str, Any], generation: int,
    aligned: tuple[str, ...], options: dict[str, Any], source: Any = ASTSource,
) -> Any:  # fmt: skip
    """Compile a jitted function for sm_<generation> as a launch would: `aligned` names the
    arguments that are divisible by 16. Raises what the compiler raises."""
    names = function.arg_names
    types = {name: signature.get(name, "constexpr") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    made = source(function, types, values, attributes)
    return triton.compile(made, target=GPUTarget("cuda", generation, 32), options=options)


def build(
    kernel: Kernel, config: Config, dim: int, generation: int, *, dtype: str = "bf16",
    pattern: str = "view_time", straddle: bool = True, tail: int | None = None,
    sums_tma: bool = False,
) -> Any:  # fmt: skip
    """Compile one kernel. tail: rows of the tail tiles, half a tile where None, 0: none."""
    function = KERNELS[kernel]
    streamed = config.streamed(kernel)
    descriptors = [name for name in function.arg_names if name.endswith("_desc")]
    constants: dict[str, Any] = {
        "DIM": dim, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        "BLOCK_TAIL": streamed // 2 if tail is None else tail, "STRADDLE": straddle,
        "PATTERN": CODES[pattern], "TMA": config.tma,
    }  # fmt: skip
    sums = ("lse_desc", "delta_desc")
    if kernel == "dkv":
        constants["SUMS_TMA"] = sums_tma
    if not sums_tma:
        constants |= dict.fromkeys(set(sums) & set(descriptors))
    signature: dict[str, str] = {}
    for name in function.arg_names:
        if name in ("lse_ptr", "delta_ptr"):
            signature[name] = "*fp32"
        elif name.endswith("_ptr"):
            signature[name] = f"*{dtype}"
        elif name == "scale":
            signature[name] = "fp32"
        elif name in sums and sums_tma:
            signature[name] = f"tensordesc<fp32[1, {streamed}]>"
        elif name in descriptors and config.tma and name not in sums:
            rows = constants["BLOCK_TAIL"] or streamed if "tail" in name else streamed
            signature[name] = f"tensordesc<{dtype}[{rows}, {dim}]>"
        elif name not in constants and name not in descriptors:
            signature[name] = "i32"
    if not config.tma:
        constants |= dict.fromkeys(descriptors)
    aligned = tuple(
        n for n in signature if n.endswith(("_ptr", "_batch", "_token", "_head", "_row"))
    )
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return compile_for(function, signature, constants, generation, aligned, options)


def build_delta(dim: int, generation: int, *, dtype: str = "bf16", block: int = 128) -> Any:
    """Compile the row sums of the backward."""
    names = delta_kernel.arg_names
    strides = tuple(name for name in names if name.endswith(("_batch", "_token", "_head", "_row")))
    pointers = {"out_ptr": f"*{dtype}", "grad_ptr": f"*{dtype}"}
    pointers |= dict.fromkeys(("lse_ptr", "lse2_ptr", "delta_ptr"), "*fp32")
    signature = {**pointers, **dict.fromkeys((*strides, "heads", "tokens"), "i32")}
    constants = {"DIM": dim, "BLOCK": block}
    return compile_for(
        delta_kernel, signature, constants, generation, (*pointers, *strides), {"num_warps": 8}
    )


def table(generations: tuple[int, ...] = (90, 80, 89)) -> Iterator[str]:
    """A Markdown table, a row per entry of the configuration table and per variant."""
    yield (
        "| sm | kernel | D | tile (queries x keys) | warps | stages | TMA | variant | registers "
        "| stack | shared KiB | spills | HGMMA | HMMA |"
    )
    yield "|" + "---|" * 14
    for generation in generations:
        for (known, kernel, dim), config in TABLE.items():
            if known != generation:
                continue
            for name, straddle, tail in (("even", False, 0), ("straddle + tail", True, None)):
                made = build(kernel, config, dim, generation, straddle=straddle, tail=tail)
                used = usage(made)
                cells: list[Any] = [
                    generation, kernel, dim, f"{config.block_m} x {config.block_n}", config.warps,
                    config.stages, "yes" if config.tma else "no", name, used.registers,
                    used.stack, round(used.shared / 1024, 1), used.spills, used.hgmma, used.hmma,
                ]  # fmt: skip
                yield "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generations", nargs="*", type=int, default=[90, 80, 89])
    for line in table(tuple(parser.parse_args().generations)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
