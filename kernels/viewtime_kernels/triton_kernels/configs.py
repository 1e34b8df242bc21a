# SPDX-License-Identifier: Apache-2.0
"""Tile sizes, warps and pipeline stages for each kernel, head dim and GPU generation.

One small table that nothing tunes at run time; a benchmark sweeps by passing its own `Config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kernel = Literal["forward", "dq", "dkv"]


@dataclass(frozen=True)
class Config:
    """One build of one kernel.

    block_m, block_n: queries and keys per tile, powers of two from 16. warps: 4 or 8. stages:
    tiles of the streamed pair (keys and values; in dkv queries and gradients) in flight. tma:
    stream through tensor-memory-accelerator descriptors (sm_90 and later).
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    tma: bool = False

    def streamed(self, kernel: Kernel) -> int:
        """Rows per tile of what the kernel streams."""
        return self.block_m if kernel == "dkv" else self.block_n

    def home(self, kernel: Kernel) -> int:
        """Rows per tile of what a program keeps."""
        return self.block_n if kernel == "dkv" else self.block_m


# Shared memory that one program may use, in bytes.
SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}

TABLE: dict[tuple[int, Kernel, int], Config] = {
    (90, "forward", 64): Config(128, 128, 8, 3, tma=True),
    (90, "forward", 128): Config(128, 128, 8, 2, tma=True),
    (90, "dq", 64): Config(128, 128, 8, 2, tma=True),
    (90, "dq", 128): Config(128, 64, 8, 2, tma=True),
    (90, "dkv", 64): Config(64, 128, 8, 2, tma=True),
    (90, "dkv", 128): Config(64, 128, 8, 2, tma=True),
    (80, "forward", 64): Config(128, 64, 4, 3),
    (80, "forward", 128): Config(128, 64, 8, 3),
    (80, "dq", 64): Config(128, 64, 8, 2),
    (80, "dq", 128): Config(64, 64, 4, 2),
    (80, "dkv", 64): Config(64, 128, 8, 2),
    (80, "dkv", 128): Config(64, 64, 8, 2),
    (89, "forward", 64): Config(128, 64, 4, 2),
    (89, "forward", 128): Config(128, 32, 8, 2),
    (89, "dq", 64): Config(128, 64, 8, 2),
    (89, "dq", 128): Config(64, 32, 4, 2),
    (89, "dkv", 64): Config(64, 128, 8, 2),
    (89, "dkv", 128): Config(32, 64, 4, 2),
}


def generation(major: int, minor: int) -> int:
    """The column of the table for a compute capability: 80, 89 or 90.

    sm_90 and sm_100 have room for the 90 tiles; sm_86, sm_89 and sm_12x have 99 KiB of shared
    memory and take the 89 tiles.
    """
    if (major, minor) == (8, 0):
        return 80
    return 90 if major in (9, 10, 11) else 89


def choose(kernel: Kernel, dim: int, generation: int) -> Config:
    """The table's entry. Raises KeyError for a head dim or generation that it does not know."""
    return TABLE[generation, kernel, dim]
