# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels compiled ahead of time, for every entry of the configuration tables: tensor-core
instructions of the right kind, no spills, shared memory below the GPU's limit. Nothing is run."""

import pytest

pytest.importorskip("triton", reason="Triton exists for Linux only")

from viewtime_kernels.hopper import builds as hopper_builds
from viewtime_kernels.hopper.configs import ENTRY, GROUP, RAGGED
from viewtime_kernels.hopper.configs import TABLE as HOPPER_TABLE
from viewtime_kernels.triton_kernels import builds
from viewtime_kernels.triton_kernels.configs import SHARED_LIMIT, TABLE, Config


@pytest.fixture(autouse=True)
def throw_away_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def check(used: builds.Usage, generation: int) -> None:
    assert used.spills == 0 and used.stack == 0, used
    assert used.shared <= SHARED_LIMIT[generation], used
    if generation == 90:
        assert used.hgmma > 0 and used.hmma == 0, used
    else:
        assert used.hmma > 0 and used.hgmma == 0, used


# With tails a kernel holds both loops; on sm_90, where registers are shortest, without them too.
ENTRIES = [(entry, True, None) for entry in TABLE]
ENTRIES += [(entry, False, 0) for entry in TABLE if entry[0] == 90]


@pytest.mark.parametrize("entry, straddle, tail", ENTRIES)
def test_every_entry_of_the_table_builds_without_spills(entry, straddle, tail):
    generation, kernel, dim = entry
    sums = kernel == "dkv" and generation == 90
    made = builds.build(
        kernel, TABLE[entry], dim, generation, straddle=straddle, tail=tail, sums_tma=sums
    )
    check(builds.usage(made), generation)


# What differs from the builds above: no descriptors for the row sums (S is no multiple of 4, or
# the pattern is "time"), the other patterns, the other dtype.
@pytest.mark.parametrize(
    "pattern, straddle, tail, sums, dtype",
    [
        ("view_time", True, None, False, "bf16"),
        ("time", True, None, False, "fp16"),
        ("time", False, 0, False, "bf16"),
        ("view", False, 0, True, "fp16"),
        ("view", True, None, True, "bf16"),
    ],
)
def test_the_fullest_kernel_builds_without_spills_in_each_variant(
    pattern, straddle, tail, sums, dtype
):
    made = builds.build(
        "dkv", TABLE[90, "dkv", 128], 128, 90, pattern=pattern, straddle=straddle, tail=tail,
        sums_tma=sums, dtype=dtype,
    )  # fmt: skip
    check(builds.usage(made), 90)


@pytest.mark.parametrize("generation", sorted(SHARED_LIMIT))
def test_the_row_sums_build(generation):
    used = builds.usage(builds.build_delta(128, generation))
    assert used.spills == 0 and used.stack == 0, used


def test_the_check_sees_a_spill():
    """It can fail: two accumulators of 128 x 128 in four warps do not fit."""
    made = builds.build("dkv", Config(64, 128, 4, 2), 128, 80, straddle=False, tail=0)
    with pytest.raises(AssertionError):
        check(builds.usage(made), 80)


# (head dim, configuration, straddle, row rest, frame rest): the first is S = 2304, the second
# S = 576, then what a ragged S takes.
HOPPER = [
    *((dim, HOPPER_TABLE[dim][0], False, 0, rest) for dim in HOPPER_TABLE for rest in (0, 64)),
    *((dim, HOPPER_TABLE[dim][0], True, 0, 16) for dim in HOPPER_TABLE),
    *((dim, RAGGED[dim], True, 96, 70) for dim in RAGGED),
]  # fmt: skip


@pytest.mark.parametrize("dim, config, straddle, row_rest, frame_rest", HOPPER)
def test_the_hopper_kernel_builds_specialised_and_without_spills(
    dim, config, straddle, row_rest, frame_rest
):
    made = hopper_builds.build(
        config, dim, straddle=straddle, row_rest=row_rest, frame_rest=frame_rest
    )
    check(hopper_builds.usage(made), 90)
    groups = hopper_builds.group_registers(made)
    wanted = GROUP[config.consumers]
    assert wanted in groups and min(groups) == 24  # the consumers' share and the producer's
    # What all groups hold at once fits into an SM, or setmaxnreg would wait for ever.
    entry = ENTRY[config.consumers]
    first = entry * (config.consumers + 1) - wanted * (config.consumers - 1) - 24
    assert first >= wanted and first in groups
    assert "cp.async.bulk.tensor" in made.asm["ptx"]
