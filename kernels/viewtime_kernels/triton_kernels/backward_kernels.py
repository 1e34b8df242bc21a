# SPDX-License-Identifier: Apache-2.0
"""The backward kernels: row sums of grad * out, then dQ, then dK and dV, each over visited tiles.

Weights are made again from the log-sum-exp. dQ and dK/dV are two passes, so that no sum needs
atomics and results do not depend on the order in which programs run. No score is masked outside
the tail tiles, but for home tiles of keys that straddle frames.
"""

import triton
import triton.language as tl

from viewtime_kernels.triton_kernels.forward_kernel import load_rows, stream_rows
from viewtime_kernels.triton_kernels.tiles import full_tiles, home_tile, tail_tiles, visited_tile

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["heads", "tokens"])
def delta_kernel(
    out_ptr, grad_ptr, lse_ptr, lse2_ptr, delta_ptr, out_batch, out_token, out_head,
    grad_batch, grad_token, grad_head, sum_row, heads, tokens,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Per token: delta = the sum over DIM of grad * out, and lse2 = lse (B, H, N) / ln 2. Both
    (B, H, sum_row) float32, sum_row = N rounded up so that rows start on 16 bytes."""
    blocks = (tokens + BLOCK - 1) // BLOCK
    start = tl.program_id(0) % blocks * BLOCK
    index = tl.program_id(0) // blocks
    batch = (index // heads).to(tl.int64)
    head = index % heads
    far = head.to(tl.int64)  # strides of heads times heads can pass 2^31
    out_base = out_ptr + batch * out_batch + far * out_head
    grad_base = grad_ptr + batch * grad_batch + far * grad_head
    out = load_rows(out_base, start, tokens, out_token, DIM, BLOCK, True).to(tl.float32)
    grad = load_rows(grad_base, start, tokens, grad_token, DIM, BLOCK, True).to(tl.float32)
    rows = start + tl.arange(0, BLOCK)
    here = rows < tokens
    lse = tl.load(lse_ptr + index.to(tl.int64) * tokens + rows, mask=here)
    places = index.to(tl.int64) * sum_row + rows
    tl.store(delta_ptr + places, tl.sum(out * grad, 1), mask=here)
    tl.store(lse2_ptr + places, lse * LOG2_E, mask=here)


@triton.jit
def dq_step(acc, q, grad, lse, delta, k, v, scale, inside, TAIL: tl.constexpr):
    """dq (before the scale) of q from one tile of keys. lse in base 2; +inf: sees nothing of it."""
    weights = tl.exp2(tl.dot(q, tl.trans(k)) * scale - lse[:, None])
    if TAIL:
        weights = tl.where(inside[None, :], weights, 0.0)
    grad_scores = weights * (tl.dot(grad, tl.trans(v)) - delta[:, None])
    return tl.dot(grad_scores.to(k.dtype), k, acc)


@triton.jit(do_not_specialize=["heads", "views", "times", "space"])
def dq_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, k_desc, v_desc,
    k_tail_desc, v_tail_desc,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    grad_batch, grad_token, grad_head, sum_row, heads, views, times, space, scale,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    STRADDLE: tl.constexpr, PATTERN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dQ of one home tile of BLOCK_M queries, over tiles of BLOCK_N keys. As `forward_kernel`;
    dq: (B, N, H, DIM) contiguous."""
    index, view, first, time, touched = home_tile(tl.program_id(0), views, times, space, BLOCK_M)
    batch = (index // heads).to(tl.int64)
    head = index % heads
    far = head.to(tl.int64)  # strides of heads times heads can pass 2^31
    row = times * space
    tokens = views * row
    origin = (batch * tokens).to(tl.int32)

    rows = first + tl.arange(0, BLOCK_M)
    here = rows < row
    row_times = rows // space
    start = view * row + first
    stop = view * row + row
    q_base = q_ptr + batch * q_batch + far * q_head
    k_base = k_ptr + batch * k_batch + far * k_head
    v_base = v_ptr + batch * v_batch + far * v_head
    grad_base = grad_ptr + batch * grad_batch + far * grad_head
    q = load_rows(q_base, start, stop, q_token, DIM, BLOCK_M, True)
    grad = load_rows(grad_base, start, stop, grad_token, DIM, BLOCK_M, True)
    sums = index.to(tl.int64) * sum_row + start + tl.arange(0, BLOCK_M)
    lse = tl.load(lse_ptr + sums, mask=here, other=float("inf"))
    delta = tl.load(delta_ptr + sums, mask=here, other=0.0)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)

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
        shift = lse
        if STRADDLE:
            shift = tl.where((row_times == seen) | (seen < 0), lse, float("inf"))
        acc = dq_step(acc, q, grad, shift, delta, k, v, scale, here, False)

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
                k_tail_desc, k_base, origin, at, end, k_token, head * DIM, DIM, BLOCK_TAIL,
                True, TMA,
            )  # fmt: skip
            v = stream_rows(
                v_tail_desc, v_base, origin, at, end, v_token, head * DIM, DIM, BLOCK_TAIL,
                True, TMA,
            )  # fmt: skip
            shift = tl.where((row_times == seen) | (seen < 0), lse, float("inf"))
            inside = at + tl.arange(0, BLOCK_TAIL) < end
            acc = dq_step(acc, q, grad, shift, delta, k, v, scale, inside, True)

    out_token = heads * DIM
    out_rows = (batch * tokens + start) * out_token + head * DIM
    offsets = tl.arange(0, BLOCK_M)[:, None] * out_token + tl.arange(0, DIM)[None, :]
    dq = (acc * (scale * LN_2)).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + out_rows + offsets, dq, mask=here[:, None])


@triton.jit
def dkv_step(
    dk, dv, k, v, q, grad, lse, delta, scale, sees,
    STRADDLE: tl.constexpr, SUMS_TMA: tl.constexpr,
):  # fmt: skip
    """dk (before the scale) and dv of k, v from one tile of queries. lse in base 2; +inf: no such
    query. sees (keys), used where STRADDLE: which keys these queries see."""
    weights = tl.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])
    if STRADDLE:
        weights = tl.where(sees[:, None], weights, 0.0)
    dv = tl.dot(weights.to(grad.dtype), grad, dv)
    if SUMS_TMA:
        inner = tl.dot(v, tl.trans(grad)) - delta[None, :]
    else:  # the same sum with delta in the accumulator from the start, again to save registers
        start = tl.broadcast_to(-delta[None, :], [k.shape[0], q.shape[0]])
        inner = tl.dot(v, tl.trans(grad), start)
    grad_scores = weights * inner
    dk = tl.dot(grad_scores.to(q.dtype), q, dk)
    return dk, dv


@triton.jit(do_not_specialize=["heads", "views", "times", "space"])
def dkv_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, lse_desc, delta_desc, dk_ptr, dv_ptr,
    q_desc, grad_desc, q_tail_desc, grad_tail_desc,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    grad_batch, grad_token, grad_head, sum_row, heads, views, times, space, scale,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    STRADDLE: tl.constexpr, PATTERN: tl.constexpr, TMA: tl.constexpr, SUMS_TMA: tl.constexpr,
):  # fmt: skip
    """dK and dV of one home tile of BLOCK_N keys, over tiles of BLOCK_M queries. As
    `forward_kernel`; dk, dv: (B, N, H, DIM) contiguous."""
    index, view, first, time, touched = home_tile(tl.program_id(0), views, times, space, BLOCK_N)
    batch = (index // heads).to(tl.int64)
    head = index % heads
    far = head.to(tl.int64)  # strides of heads times heads can pass 2^31
    row = times * space
    tokens = views * row
    origin = (batch * tokens).to(tl.int32)

    rows = first + tl.arange(0, BLOCK_N)
    row_times = rows // space
    start = view * row + first
    stop = view * row + row
    q_base = q_ptr + batch * q_batch + far * q_head
    k_base = k_ptr + batch * k_batch + far * k_head
    v_base = v_ptr + batch * v_batch + far * v_head
    grad_base = grad_ptr + batch * grad_batch + far * grad_head
    k = load_rows(k_base, start, stop, k_token, DIM, BLOCK_N, True)
    v = load_rows(v_base, start, stop, v_token, DIM, BLOCK_N, True)
    lse_base = lse_ptr + index.to(tl.int64) * sum_row
    delta_base = delta_ptr + index.to(tl.int64) * sum_row
    dk = tl.zeros([BLOCK_N, DIM], tl.float32)
    dv = tl.zeros([BLOCK_N, DIM], tl.float32)

    in_row, in_frame, count = full_tiles(touched, views, times, space, BLOCK_M, PATTERN)
    for i in range(0, count):
        at, end, seen = visited_tile(
            i, in_row, in_frame, 0, 0, view, time, views, times, space, BLOCK_M, STRADDLE, PATTERN
        )
        q = stream_rows(
            q_desc, q_base, origin, at, end, q_token, head * DIM, DIM, BLOCK_M, False, TMA
        )
        grad = stream_rows(
            grad_desc, grad_base, origin, at, end, grad_token, head * DIM, DIM, BLOCK_M, False, TMA
        )
        places = at + tl.arange(0, BLOCK_M)
        if SUMS_TMA:  # not for speed: two more vectors of pointers do not fit into the registers
            lse = lse_desc.load([index, at]).reshape(BLOCK_M)
            delta = delta_desc.load([index, at]).reshape(BLOCK_M)
        else:
            lse = tl.load(lse_base + places)
            delta = tl.load(delta_base + places)
        sees = (row_times == seen) | (seen < 0)
        dk, dv = dkv_step(dk, dv, k, v, q, grad, lse, delta, scale, sees, STRADDLE, SUMS_TMA)

    if BLOCK_TAIL > 0:
        row_skip = row // BLOCK_M * BLOCK_M
        frame_skip = space // BLOCK_M * BLOCK_M
        in_row, in_frame, count = tail_tiles(
            touched, views, times, space, BLOCK_M, BLOCK_TAIL, PATTERN
        )
        for i in range(0, count):
            at, end, seen = visited_tile(
                i, in_row, in_frame, row_skip, frame_skip, view, time, views, times, space,
                BLOCK_TAIL, STRADDLE, PATTERN,
            )  # fmt: skip
            q = stream_rows(
                q_tail_desc, q_base, origin, at, end, q_token, head * DIM, DIM, BLOCK_TAIL,
                True, TMA,
            )  # fmt: skip
            grad = stream_rows(
                grad_tail_desc, grad_base, origin, at, end, grad_token, head * DIM, DIM, BLOCK_TAIL,
                True, TMA,
            )  # fmt: skip
            places = at + tl.arange(0, BLOCK_TAIL)
            inside = places < end
            lse = tl.load(lse_base + places, mask=inside, other=float("inf"))
            delta = tl.load(delta_base + places, mask=inside, other=0.0)
            sees = (row_times == seen) | (seen < 0)
            dk, dv = dkv_step(dk, dv, k, v, q, grad, lse, delta, scale, sees, STRADDLE, SUMS_TMA)

    here = (rows < row)[:, None]
    out_token = heads * DIM
    out_rows = (batch * tokens + start) * out_token + head * DIM
    offsets = tl.arange(0, BLOCK_N)[:, None] * out_token + tl.arange(0, DIM)[None, :]
    dk = (dk * (scale * LN_2)).to(dk_ptr.dtype.element_ty)
    tl.store(dk_ptr + out_rows + offsets, dk, mask=here)
    tl.store(dv_ptr + out_rows + offsets, dv.to(dv_ptr.dtype.element_ty), mask=here)
