# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time builds of the Hopper kernel, and what they use. It never runs a kernel.

`python -m viewtime_kernels.hopper.builds` prints them as a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from viewtime_kernels.hopper.configs import TABLE, Config
from viewtime_kernels.hopper.kernel import hopper_forward_kernel
from viewtime_kernels.triton_kernels.builds import CODES, compile_for, usage


def build(
    config: Config, dim: int, *, dtype: str = "bf16", pattern: str = "view_time",
    straddle: bool = True,
    row_rest: int = 0, frame_rest: int = 0,
) -> Any:  # fmt: skip
    """Compile one configuration for sm_90."""
    layout = gl.NVMMASharedLayout.get_default_for(
        [config.block_n, dim], gl.bfloat16 if dtype == "bf16" else gl.float16
    )
    signature = {
        "q_desc": f"tensordesc<{dtype}[64, {dim}],{layout!r}>",
        "k_desc": f"tensordesc<{dtype}[{config.block_n}, {dim}],{layout!r}>",
        "v_desc": f"tensordesc<{dtype}[{config.block_n}, {dim}],{layout!r}>",
        "out_ptr": f"*{dtype}", "lse_ptr": "*fp32", "heads": "i32", "views": "i32",
        "times": "i32", "space": "i32", "scale": "fp32",
    }  # fmt: skip
    constants = config.constants() | {
        "DIM": dim, "STRADDLE": straddle, "PATTERN": CODES[pattern],
        "ROW_REST": row_rest, "FRAME_REST": frame_rest,
    }  # fmt: skip
    return compile_for(
        hopper_forward_kernel, signature, constants, 90, ("out_ptr", "lse_ptr"),
        config.options(), GluonASTSource,
    )  # fmt: skip


def group_registers(compiled: Any) -> tuple[int, ...]:
    """Registers per thread that the warp groups ask for (setmaxnreg), largest first."""
    counts = re.findall(r"setmaxnreg\.\w+\.sync\.aligned\.u32\s+(\d+)", compiled.asm["ptx"])
    return tuple(sorted({int(count) for count in counts}, reverse=True))


def table() -> Iterator[str]:
    """A Markdown table, a row per configuration and variant."""
    yield (
        "| D | consumers x rows | keys | stages | overlap | variant | registers at entry | groups "
        "| stack | shared KiB | spills | HGMMA |"
    )
    yield "|" + "---|" * 12
    for dim, configs in TABLE.items():
        for config in configs:
            for name, straddle, tail in (("even", False, 0), ("straddle + rest", True, 44)):
                made = build(config, dim, straddle=straddle, row_rest=tail, frame_rest=tail)
                used = usage(made)
                cells: list[Any] = [
                    dim, f"{config.consumers} x 64", config.block_n, config.stages,
                    "yes" if config.overlap else "no", name, used.registers,
                    " / ".join(map(str, group_registers(made))), used.stack,
                    round(used.shared / 1024, 1), used.spills, used.hgmma,
                ]  # fmt: skip
                yield "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
