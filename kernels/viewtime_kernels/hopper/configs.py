# SPDX-License-Identifier: Apache-2.0
"""Tile sizes, stages and registers of the Hopper kernel. Nothing here is tuned at run time.

The first entry of a head dim is the one taken; the others are there to be measured against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# A program's registers, per thread of 12 or 16 warps, and what consumers ask for at least.
ENTRY = {2: 168, 3: 128}
GROUP = {2: 240, 3: 160}


@dataclass(frozen=True)
class Config:
    """consumers: 2 or 3 warp groups of 64 queries. block_n: keys per tile. stages: tiles in
    flight. overlap: see `kernel.consume`."""

    consumers: int
    block_n: int
    stages: int
    overlap: bool

    @property
    def block_m(self) -> int:
        return 64 * self.consumers

    def constants(self) -> dict[str, Any]:
        return {
            "BLOCK_N": self.block_n,
            "STAGES": self.stages,
            "CONSUMERS": self.consumers,
            "REGISTERS": GROUP[self.consumers],
            "OVERLAP": self.overlap,
        }

    def options(self) -> dict[str, int]:
        """num_warps counts the default partition alone; the others are added to it."""
        return {"num_warps": 4, "maxnreg": ENTRY[self.consumers]}


TABLE: dict[int, tuple[Config, ...]] = {
    64: (Config(3, 128, 4, True), Config(2, 128, 4, True), Config(3, 128, 4, False)),
    128: (Config(3, 128, 2, False), Config(2, 128, 2, True), Config(3, 64, 4, True)),
}
# What a build with both a row rest and a frame rest takes: with head dim 128, two masks do not fit
# into the 160 registers of three groups.
RAGGED = {64: TABLE[64][0], 128: TABLE[128][1]}


def rests(config: Config, pattern: str, times: int, space: int) -> tuple[int, int]:
    """(tokens in the last tile of a row, in the last tile of a frame), 0 where it is full or
    where the pattern has none."""
    row = 0 if pattern == "time" else times * space % config.block_n
    return row, 0 if pattern == "view" else space % config.block_n


def choose(dim: int, pattern: str, times: int, space: int) -> Config:
    """The configuration for a canonical pattern and grid."""
    config = TABLE[dim][0]
    return RAGGED[dim] if all(rests(config, pattern, times, space)) else config
