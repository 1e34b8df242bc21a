# SPDX-License-Identifier: Apache-2.0
"""The forward kernel: one home tile of queries against the tiles of keys it visits.

It keeps scores in base 2 and in float32, writes the output and the natural log-sum-exp, and never
masks a score outside the tail tiles.
"""

import triton
import triton.language as tl

from viewtime_kernels.triton_kernels.tiles import full_tiles, home_tile, tail_tiles, visited_tile

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(base, start, end, stride, DIM: tl.constexpr, BLOCK: tl.constexpr, CUT: tl.constexpr):
    """(BLOCK, DIM) from rows start..; rows from `end` on read as zero where CUT."""
    rows = tl.arange(0, BLOCK)
    offsets = rows[:, None] * stride + tl.arange(0, DIM)[None, :]
    pointers = base + start.to(tl.int64) * stride + offsets
    if CUT:
        return tl.load(pointers, mask=(start + rows < end)[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def stream_rows(
    desc, base, origin, start, end, stride, column,
    DIM: tl.constexpr, BLOCK: tl.constexpr, CUT: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """(BLOCK, DIM) by descriptor where TMA, by pointers otherwise. origin: the batch's first row
    in the descriptor. By descriptor, rows from `end` on hold other tokens, not zero."""
    if TMA:
        return desc.load([origin + start, column])
    return load_rows(base, start, end, stride, DIM, BLOCK, CUT)


@triton.jit
def absorb(
    acc, top, total, q, k, v, scale, sees, inside, STRADDLE: tl.constexpr, TAIL: tl.constexpr
):
    """One online-softmax step: the tile k, v joins what the queries q have seen so far.

    top: the row maximum in base 2, -inf before the first tile. sees (rows), used where STRADDLE:
    who sees this tile. Others keep their state: their shift is +inf, so their weights are 0.
    inside (columns), used where TAIL: which keys exist.
    """
    scores = tl.dot(q, tl.trans(k))
    if TAIL:
        scores = tl.where(inside[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1) * scale)
    if STRADDLE:
        higher = tl.where(sees, higher, top)
        shift = tl.where(sees, higher, float("inf"))
        decay = tl.where(sees, tl.exp2(top - higher), 1.0)
    else:
        shift = higher
        decay = tl.exp2(top - higher)
    weights = tl.exp2(scores * scale - shift[:, None])
    total = total * decay + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None])
    return acc, higher, total


@triton.jit(do_not_specialize=["heads", "views", "times", "space"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, k_desc, v_desc, k_tail_desc, v_tail_desc,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    heads, views, times, space, scale,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    STRADDLE: tl.constexpr, PATTERN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """q, k, v: (B, N, H, DIM) with the strides given, the last one 1. out: (B, N, H, DIM) and
    lse: (B, H, N) float32, contiguous. scale: the softmax scale times log2(e), positive."""
    index, view, first, time, touched = home_tile(tl.program_id(0), views, times, space, BLOCK_M)
    batch = (index // heads).to(tl.int64)
    head = index % heads
    far = head.to(tl.int64)  # strides of heads times heads can pass 2^31
    row = times * space
    tokens = views * row
    origin = (batch * tokens).to(tl.int32)

    rows = first + tl.arange(0, BLOCK_M)
    row_times = rows // space
    q_base = q_ptr + batch * q_batch + far * q_head
    k_base = k_ptr + batch * k_batch + far * k_head
    v_base = v_ptr + batch * v_batch + far * v_head
    start = view * row + first
    q = load_rows(q_base, start, view * row + row, q_token, DIM, BLOCK_M, True)

    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    in_row, in_frame, count = full_tiles(touched, views, times, space, BLOCK_N, PATTERN)
    for i in range(0, count):
        at, end, seen = visited_tile(
            i, in_row, in_frame, 0, 0, view, time, views, times, space, BLOCK_N, STRADDLE, PATTERN
        )
        k = stream_rows(
            k_desc, k_base, origin, at, end, k_token, head * DIM, DIM, BLOCK_N, False, TMA
        )
        v = stream_rows(
            v_desc, v_base, origin, at, end, v_token, head * DIM, DIM, BLOCK_N, False, TMA
        )
        sees = (row_times == seen) | (seen < 0)
        acc, top, total = absorb(acc, top, total, q, k, v, scale, sees, sees, STRADDLE, False)

    if BLOCK_TAIL > 0:
        row_skip = row // BLOCK_N * BLOCK_N
        frame_skip = space // BLOCK_N * BLOCK_N
        in_row, in_frame, count = tail_tiles(
            touched, views, times, space, BLOCK_N, BLOCK_TAIL, PATTERN
        )
        for i in range(0, count):
            at, end, seen = visited_tile(
                i, in_row, in_frame, row_skip, frame_skip, view, time, views, times, space,
                BLOCK_TAIL, STRADDLE, PATTERN,
            )  # fmt: skip
            k = stream_rows(
                k_tail_desc,
                k_base,
                origin,
                at,
                end,
                k_token,
                head * DIM,
                DIM,
                BLOCK_TAIL,
                True,
                TMA,
            )
            v = stream_rows(
                v_tail_desc,
                v_base,
                origin,
                at,
                end,
                v_token,
                head * DIM,
                DIM,
                BLOCK_TAIL,
                True,
                TMA,
            )
            sees = (row_times == seen) | (seen < 0)
            inside = at + tl.arange(0, BLOCK_TAIL) < end
            acc, top, total = absorb(acc, top, total, q, k, v, scale, sees, inside, STRADDLE, True)

    here = rows < row
    out_token = heads * DIM
    out_rows = (batch * tokens + start) * out_token + head * DIM
    offsets = tl.arange(0, BLOCK_M)[:, None] * out_token + tl.arange(0, DIM)[None, :]
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_rows + offsets, out, mask=here[:, None])
    lse_row = lse_ptr + (batch * heads + head) * tokens + start + tl.arange(0, BLOCK_M)
    tl.store(lse_row, (top + tl.log2(total)) * LN_2, mask=here)
