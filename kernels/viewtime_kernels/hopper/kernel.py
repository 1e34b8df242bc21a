# SPDX-License-Identifier: Apache-2.0
"""Warp-specialised forward kernel for sm_90 in Gluon. COMPILED, NEVER RUN: no GPU was at hand.

One program is one home tile of CONSUMERS x 64 queries. One warp (the producer) moves tiles of keys
and values from global to shared memory by TMA; CONSUMERS warp groups of 128 threads each hold 64
queries, multiply by wgmma and keep their softmax in registers. It never masks outside tail tiles.

Synchronisation, all by mbarriers in shared memory:
  q_full          one phase: all queries have arrived. Arrivals: 1 (the producer's `expect`) plus
                  the bytes of the TMA copies.
  k_full, v_full  one barrier per stage and tensor, arrivals as q_full; one phase per lap.
  k_empty,        one barrier per stage and tensor; CONSUMERS arrivals complete a phase: each
  v_empty         consumer group arrives once per tile, when it has read the tile.
Keys and values have barriers of their own, so that a stage of keys is refilled while its values
are still in use. Parities: see `schedule.ring_slot`.

Why no write can overtake a read (write after read): the producer fills stage s for lap n > 0 only
after phase n - 1 of `empty` of s. A consumer group arrives there only after `warpgroup_mma_wait`
has stated that its last wgmma on the tile is complete, and wgmma reads shared memory through the
same asynchronous proxy through which TMA writes, so no proxy fence is needed between the two;
one thread arrives for the group; the compiler puts a barrier of the group in front of it
(seen in the machine code), so that all four warps have passed their wait by then.
Why no read can overtake a write (read after write): a consumer waits for phase n of `full`, which
completes with the last byte of the TMA copy; the copy's writes are visible to whoever observes it.
Why it cannot deadlock: producer and consumers visit the same `count` tiles in the same order, keys
before values; a tile's `full` depends on `empty` of the tile STAGES before it and on nothing later.
Why the barriers exist for all: they are initialised before the partitions fork, and the fork is a
barrier of the whole program. After the last tile nobody waits any more: consumers have observed
every `full`, so that no copy is in flight when shared memory is given back.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from viewtime_kernels.hopper.schedule import ring_slot, ring_tiles
from viewtime_kernels.triton_kernels.tiles import home_tile, visited_tile

ROWS = gl.constexpr(64)  # of a consumer group: one wgmma is 64 rows high
LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def produce(
    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty,
    origin, column, view, first, time, touched, views, times, space,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
    STRADDLE: gl.constexpr, PATTERN: gl.constexpr,
):  # fmt: skip
    """The producer warp: queries once, then keys and values of each tile, as stages fall empty."""
    # Queries past the row's end are other tokens or zeros; their results are not stored.
    mbarrier.expect(q_full.index(0), CONSUMERS * q_desc.block_type.nbytes)
    start = origin + view * times * space + first
    for who in gl.static_range(CONSUMERS):
        tma.async_copy_global_to_shared(
            q_desc, [start + who * ROWS, column], q_full.index(0), q_smem.index(who)
        )
    in_row, in_frame, count = ring_tiles(touched, views, times, space, BLOCK_N, PATTERN)
    for i in range(count):
        at, _end, _seen = visited_tile(
            i, in_row, in_frame, 0, 0, view, time, views, times, space, BLOCK_N, STRADDLE, PATTERN
        )
        slot, parity = ring_slot(i, STAGES)
        mbarrier.wait(k_empty.index(slot), parity ^ 1)
        mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(
            k_desc, [origin + at, column], k_full.index(slot), k_smem.index(slot)
        )
        mbarrier.wait(v_empty.index(slot), parity ^ 1)
        mbarrier.expect(v_full.index(slot), v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(
            v_desc, [origin + at, column], v_full.index(slot), v_smem.index(slot)
        )


@gluon.jit
def scores_of(q, k_smem, k_full, slot, parity, BLOCK_N: gl.constexpr, layout: gl.constexpr):
    """Start q k^T once the keys are there. The result must go through `warpgroup_mma_wait`."""
    mbarrier.wait(k_full.index(slot), parity)
    zeros = gl.zeros([ROWS, BLOCK_N], gl.float32, layout)
    keys = k_smem.index(slot).permute((1, 0))
    return warpgroup_mma(q, keys, zeros, use_acc=False, is_async=True)


@gluon.jit
def soften(
    scores, top, total, scale, row_times, at, end, seen,
    BLOCK_N: gl.constexpr, STRADDLE: gl.constexpr, ROW_REST: gl.constexpr,
    FRAME_REST: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """One online-softmax step: (weights, decay of what came before, new top, new total). top is
    the row maximum in base 2. Rows of another time keep their state: their shift is +inf."""
    # The rests are compile-time constants, so that comparing takes no registers: at most one
    # column in eight is compared at all, the others are known to lie inside or outside.
    columns = gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))
    if ROW_REST > 0:
        if (at + BLOCK_N > end) & (seen < 0):
            scores = gl.where((columns < ROW_REST)[None, :], scores, float("-inf"))
    if FRAME_REST > 0:
        if (at + BLOCK_N > end) & (seen >= 0):
            scores = gl.where((columns < FRAME_REST)[None, :], scores, float("-inf"))
    higher = gl.maximum(top, gl.max(scores, 1) * scale)
    if STRADDLE:
        sees = (row_times == seen) | (seen < 0)
        higher = gl.where(sees, higher, top)
        shift = gl.where(sees, higher, float("inf"))
        decay = gl.where(sees, gl.exp2(top - higher), 1.0)
    else:
        shift = higher
        decay = gl.exp2(top - higher)
    weights = gl.exp2(scores * scale - shift[:, None])
    return weights, decay, higher, total * decay + gl.sum(weights, 1)


@gluon.jit
def consume(
    q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty, out_ptr, lse_ptr,
    index, heads, view, first, time, touched, views, times, space, scale,
    WHO: gl.constexpr, DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    OVERLAP: gl.constexpr, STRADDLE: gl.constexpr, ROW_REST: gl.constexpr,
    FRAME_REST: gl.constexpr, PATTERN: gl.constexpr,
):  # fmt: skip
    """A consumer group: 64 queries against every tile.

    OVERLAP False: scores, softmax, values, one after the other; the tensor cores are kept busy by
    the other groups. OVERLAP True: the scores of tile i + 1 are started before the values of tile
    i, so that the softmax of one runs beside the product of the other; it takes more registers.
    """
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    half: gl.constexpr = q_smem.dtype

    row = times * space
    mine = first + WHO * ROWS
    row_times = (mine + gl.arange(0, ROWS, s_rows)) // space
    top = gl.full([ROWS], float("-inf"), gl.float32, s_rows)
    total = gl.zeros([ROWS], gl.float32, s_rows)
    acc = gl.zeros([ROWS, DIM], gl.float32, o_layout)
    in_row, in_frame, count = ring_tiles(touched, views, times, space, BLOCK_N, PATTERN)

    q = q_smem.index(WHO)
    mbarrier.wait(q_full.index(0), 0)
    if OVERLAP:
        at, end, seen = visited_tile(
            0, in_row, in_frame, 0, 0, view, time, views, times, space, BLOCK_N, STRADDLE, PATTERN
        )
        scores = scores_of(q, k_smem, k_full, 0, 0, BLOCK_N, s_layout)
        scores = warpgroup_mma_wait(0, deps=(scores,))
        mbarrier.arrive(k_empty.index(0), count=1)
        # decay is not used: the accumulator is still zero
        weights, decay, top, total = soften(
            scores,
            top,
            total,
            scale,
            row_times,
            at,
            end,
            seen,
            BLOCK_N,
            STRADDLE,
            ROW_REST,
            FRAME_REST,
            s_layout,
        )
        p = gl.convert_layout(weights.to(half), p_layout)
        for i in range(1, count):
            at, end, seen = visited_tile(
                i, in_row, in_frame, 0, 0, view, time, views, times, space,
                BLOCK_N, STRADDLE, PATTERN,
            )  # fmt: skip
            slot, parity = ring_slot(i, STAGES)
            before, before_parity = ring_slot(i - 1, STAGES)
            scores = scores_of(q, k_smem, k_full, slot, parity, BLOCK_N, s_layout)
            mbarrier.wait(v_full.index(before), before_parity)
            moving = warpgroup_mma(p, v_smem.index(before), acc, is_async=True)
            # wgmma groups complete in order: one left in flight means that the scores are there.
            scores = warpgroup_mma_wait(1, deps=(scores,))
            mbarrier.arrive(k_empty.index(slot), count=1)
            weights, decay, top, total = soften(
                scores, top, total, scale, row_times, at, end, seen,
                BLOCK_N, STRADDLE, ROW_REST, FRAME_REST, s_layout,
            )  # fmt: skip
            acc = warpgroup_mma_wait(0, deps=(moving,))
            mbarrier.arrive(v_empty.index(before), count=1)
            acc = acc * gl.convert_layout(decay, o_rows)[:, None]
            p = gl.convert_layout(weights.to(half), p_layout)
        slot, parity = ring_slot(count - 1, STAGES)
        mbarrier.wait(v_full.index(slot), parity)
        moving = warpgroup_mma(p, v_smem.index(slot), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(moving,))
    else:
        for i in range(count):
            at, end, seen = visited_tile(
                i, in_row, in_frame, 0, 0, view, time, views, times, space,
                BLOCK_N, STRADDLE, PATTERN,
            )  # fmt: skip
            slot, parity = ring_slot(i, STAGES)
            scores = scores_of(q, k_smem, k_full, slot, parity, BLOCK_N, s_layout)
            scores = warpgroup_mma_wait(0, deps=(scores,))
            mbarrier.arrive(k_empty.index(slot), count=1)
            weights, decay, top, total = soften(
                scores, top, total, scale, row_times, at, end, seen,
                BLOCK_N, STRADDLE, ROW_REST, FRAME_REST, s_layout,
            )  # fmt: skip
            p = gl.convert_layout(weights.to(half), p_layout)
            acc = acc * gl.convert_layout(decay, o_rows)[:, None]
            mbarrier.wait(v_full.index(slot), parity)
            moving = warpgroup_mma(p, v_smem.index(slot), acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=(moving,))
            mbarrier.arrive(v_empty.index(slot), count=1)

    # Straight from the accumulator's layout: 1 of some hundred parts of the program's time.
    tokens = views * row
    lines = view * row + mine
    o_line = gl.arange(0, ROWS, o_rows)
    o_column = gl.arange(0, DIM, gl.SliceLayout(0, o_layout))
    base = (index // heads).to(gl.int64) * tokens + lines
    place = base * heads * DIM + (index % heads) * DIM
    offsets = o_line[:, None] * (heads * DIM) + o_column[None, :]
    out = acc / gl.convert_layout(total, o_rows)[:, None]
    gl.store(out_ptr + place + offsets, out.to(half), mask=(mine + o_line < row)[:, None])
    line = gl.arange(0, ROWS, s_rows)
    lse = (top + gl.log2(total)) * LN_2
    gl.store(lse_ptr + index.to(gl.int64) * tokens + lines + line, lse, mask=mine + line < row)


@gluon.jit(do_not_specialize=["heads", "views", "times", "space"])
def hopper_forward_kernel(
    q_desc, k_desc, v_desc, out_ptr, lse_ptr, heads, views, times, space, scale,
    DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
    REGISTERS: gl.constexpr, OVERLAP: gl.constexpr, STRADDLE: gl.constexpr,
    ROW_REST: gl.constexpr, FRAME_REST: gl.constexpr, PATTERN: gl.constexpr,
):  # fmt: skip
    """q_desc, k_desc, v_desc: the tensors as (B * N, H * DIM), tiles of 64, BLOCK_N and BLOCK_N
    rows. out (B, N, H, DIM) and lse (B, H, N) float32, contiguous. scale: softmax scale times
    log2(e), positive. STRADDLE: home tiles may touch several times. ROW_REST, FRAME_REST: how
    many tokens the last tile of a row and of a frame holds, 0 where it is full."""
    index, view, first, time, touched = home_tile(
        gl.program_id(0), views, times, space, CONSUMERS * ROWS
    )
    origin = index // heads * (views * times * space)
    column = index % heads * DIM

    bars: gl.constexpr = mbarrier.MBarrierLayout()
    q_smem = gl.allocate_shared_memory(q_desc.dtype, [CONSUMERS, ROWS, DIM], q_desc.layout)
    k_smem = gl.allocate_shared_memory(k_desc.dtype, [STAGES, BLOCK_N, DIM], k_desc.layout)
    v_smem = gl.allocate_shared_memory(v_desc.dtype, [STAGES, BLOCK_N, DIM], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1, 1], bars)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bars)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bars)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bars)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bars)
    mbarrier.init(q_full.index(0), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=CONSUMERS)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(v_empty.index(stage), count=CONSUMERS)

    # The first partition is the default one and gets the registers that the others leave. The
    # arguments stand in the calls: a tuple with a name would no longer be made of constants.
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (consume, (
                    q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty, out_ptr,
                    lse_ptr, index, heads, view, first, time, touched, views, times, space, scale,
                    0, DIM, BLOCK_N, STAGES, OVERLAP, STRADDLE, ROW_REST, FRAME_REST, PATTERN,
                )),
                (consume, (
                    q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty, out_ptr,
                    lse_ptr, index, heads, view, first, time, touched, views, times, space, scale,
                    1, DIM, BLOCK_N, STAGES, OVERLAP, STRADDLE, ROW_REST, FRAME_REST, PATTERN,
                )),
                (produce, (
                    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                    q_full, k_full, k_empty, v_full, v_empty,
                    origin, column, view, first, time, touched, views, times, space,
                    BLOCK_N, STAGES, CONSUMERS, STRADDLE, PATTERN,
                )),
            ],
            [4, 1],
            [REGISTERS, 24],
        )  # fmt: skip
    else:
        gl.static_assert(CONSUMERS == 3)
        gl.warp_specialize(
            [
                (consume, (
                    q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty, out_ptr,
                    lse_ptr, index, heads, view, first, time, touched, views, times, space, scale,
                    0, DIM, BLOCK_N, STAGES, OVERLAP, STRADDLE, ROW_REST, FRAME_REST, PATTERN,
                )),
                (consume, (
                    q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty, out_ptr,
                    lse_ptr, index, heads, view, first, time, touched, views, times, space, scale,
                    1, DIM, BLOCK_N, STAGES, OVERLAP, STRADDLE, ROW_REST, FRAME_REST, PATTERN,
                )),
                (consume, (
                    q_smem, k_smem, v_smem, q_full, k_full, k_empty, v_full, v_empty, out_ptr,
                    lse_ptr, index, heads, view, first, time, touched, views, times, space, scale,
                    2, DIM, BLOCK_N, STAGES, OVERLAP, STRADDLE, ROW_REST, FRAME_REST, PATTERN,
                )),
                (produce, (
                    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                    q_full, k_full, k_empty, v_full, v_empty,
                    origin, column, view, first, time, touched, views, times, space,
                    BLOCK_N, STAGES, CONSUMERS, STRADDLE, PATTERN,
                )),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, 24],
        )  # fmt: skip
