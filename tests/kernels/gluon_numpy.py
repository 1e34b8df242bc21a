# SPDX-License-Identifier: Apache-2.0
"""The few Gluon operations that the Hopper kernel uses, in numpy and threads: enough to run its
source without a GPU. It checks order, parity and arithmetic; it never tells anything about speed.

One thread per partition. Copies land late and in random order, and a buffer is NaN while one is
under way; products read their operands when they are issued and again when they are waited for.
"""

import math
import random
import threading
import time

import numpy as np

SECONDS = 60  # a wait this long is a deadlock


class Num(int):
    """An integer that answers `.to`, and stays one under arithmetic."""

    def to(self, kind):
        return self

    def __floordiv__(self, other):
        return Num(int(self) // int(other))

    def __mod__(self, other):
        return Num(int(self) % int(other))

    def __mul__(self, other):
        return Num(int(self) * int(other)) if isinstance(other, int) else int(self) * other


class Array(np.ndarray):
    """A numpy array that answers `.to`."""

    def to(self, kind):
        return np.asarray(self).astype(kind).view(Array)


def array(x):
    return np.asarray(x).view(Array)


class Barrier:
    """An mbarrier: a phase ends when all arrivals are in and no bytes are owed."""

    changed = threading.Condition()

    def __init__(self, count):
        self.count = self.left = count
        self.owed, self.phase = 0, 0

    def _settle(self):
        assert self.left >= 0, "more arrivals than the barrier counts"
        if self.left == 0 and self.owed == 0:
            self.left, self.phase = self.count, self.phase + 1
        Barrier.changed.notify_all()

    def arrive(self):
        with Barrier.changed:
            self.left -= 1
            self._settle()

    def expect(self, size):
        with Barrier.changed:
            self.owed += size
            self.left -= 1
            self._settle()

    def deliver(self, size):
        with Barrier.changed:
            self.owed -= size
            self._settle()

    def wait(self, parity):
        with Barrier.changed:
            done = Barrier.changed.wait_for(lambda: self.phase & 1 != parity, SECONDS)
        if not done:
            raise TimeoutError("deadlock: a barrier's phase never ends")


class Ring:
    """Buffers or barriers, one per stage."""

    def __init__(self, parts, dtype=np.float16):
        self.parts, self.dtype = parts, dtype

    def index(self, at):
        return self.parts[int(at)]


class Buffer:
    def __init__(self, shape, data=None):
        self.data = np.full(shape, np.nan, np.float16) if data is None else data

    def permute(self, axes):
        return Buffer(None, self.data.transpose(axes))


class Descriptor:
    """The (rows, columns) matrix that a TMA descriptor describes; zero past its end."""

    def __init__(self, matrix, rows, columns):
        self.matrix, self.tile = matrix, (rows, columns)
        self.block_type = type("Block", (), {"nbytes": rows * columns * 2})

    def read(self, row, column):
        rows, columns = self.tile
        out = np.zeros(self.tile, self.matrix.dtype)
        found = self.matrix[row : row + rows, column : column + columns]
        out[: len(found)] = found
        return out


class Copies:
    """The copy engine: a thread that lands copies late and out of order."""

    def __init__(self, seed):
        self.random, self.waiting, self.stop = random.Random(seed), [], False
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.stop or self.waiting:
            with self.lock:
                some = bool(self.waiting)
                if some:
                    at = self.random.randrange(len(self.waiting))
                    buffer, tile, barrier = self.waiting.pop(at)
            if some:
                buffer.data[:] = tile
                barrier.deliver(tile.nbytes)
            time.sleep(0)

    def async_copy_global_to_shared(self, descriptor, at, barrier, buffer):
        buffer.data[:] = np.nan
        with self.lock:
            self.waiting.append((buffer, descriptor.read(*map(int, at)), barrier))


class Product:
    """A wgmma in flight. Its operands must not change until it is waited for."""

    queues = threading.local()

    def __init__(self, a, b, acc):
        self.a, self.b, self.acc, self.value = a, b, acc, None
        self.early = self._multiply()
        vars(Product.queues).setdefault("moving", []).append(self)

    def _multiply(self):
        a = self.a.data if isinstance(self.a, Buffer) else np.asarray(self.a)
        return a.astype(np.float32) @ self.b.data.astype(np.float32) + self.acc

    def finish(self):
        late = self._multiply()
        assert np.array_equal(late, self.early), "an operand changed under a product"
        assert np.isfinite(late).all(), "a product read a buffer that was not there"
        self.value = array(late)


def warpgroup_mma(a, b, acc, use_acc=True, is_async=False):
    assert is_async
    return Product(a, b, acc if use_acc else 0.0)


def warpgroup_mma_wait(left, deps):
    moving = Product.queues.moving
    while len(moving) > left:
        moving.pop(0).finish()
    (product,) = deps
    assert product.value is not None, "waited for too few products"
    return product.value


class Pointer:
    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def __add__(self, more):
        return Pointer(self.data, self.at + np.asarray(more))


def store(pointer, value, mask):
    at, mask = np.broadcast_arrays(pointer.at, mask)
    places = at[mask]
    assert np.isnan(pointer.data[places].astype(np.float32)).all(), "written twice"
    pointer.data[places] = np.broadcast_to(value, at.shape)[mask]


class Gl:
    """Stands in for `triton.experimental.gluon.language`."""

    float32, int64 = np.float32, np.int64
    maximum = staticmethod(lambda a, b: array(np.maximum(a, b)))
    where = staticmethod(lambda c, a, b: array(np.where(c, a, b).astype(np.float32)))
    exp2 = staticmethod(lambda x: array(np.exp2(x, dtype=np.float32)))
    log2 = staticmethod(lambda x: array(np.log2(x)))
    max = staticmethod(lambda x, axis: array(np.max(x, axis)))
    sum = staticmethod(lambda x, axis: array(np.sum(x, axis)))
    arange = staticmethod(lambda a, b, layout: array(np.arange(a, b)))
    zeros = staticmethod(lambda shape, kind, layout: array(np.zeros(shape, kind)))
    full = staticmethod(lambda shape, x, kind, layout: array(np.full(shape, x, kind)))
    convert_layout = staticmethod(lambda x, layout: x)
    static_range = range
    store = staticmethod(store)
    NVMMADistributedLayout = SliceLayout = DotOperandLayout = staticmethod(lambda *a: None)
    constexpr = int


class Mbarrier:
    """Stands in for the `mbarrier` module."""

    wait = staticmethod(lambda barrier, parity: barrier.wait(int(parity)))
    expect = staticmethod(lambda barrier, size: barrier.expect(int(size)))

    @staticmethod
    def arrive(barrier, count=1):
        assert count == 1
        barrier.arrive()


def run_forward(kernel, monkeypatch, q, k, v, *, views, times, scale, constants, seed=0):
    """The kernel's partitions over every program, for numpy float16 (B, N, H, D).

    Returns out (B, N, H, D) and lse (B, H, N). constants: the compile-time arguments."""
    copies = Copies(seed)
    stand_ins = {
        "gl": Gl, "mbarrier": Mbarrier, "tma": copies, "ROWS": 64, "LN_2": math.log(2),
        "warpgroup_mma": warpgroup_mma, "warpgroup_mma_wait": warpgroup_mma_wait,
    }  # fmt: skip
    for name in ("scores_of", "soften", "ring_slot", "ring_tiles", "visited_tile"):
        stand_ins[name] = getattr(kernel, name).fn
    home_tile = kernel.home_tile.fn
    for name, value in stand_ins.items():
        monkeypatch.setattr(kernel, name, value)
    batch, tokens, heads, dim = q.shape
    space = tokens // (views * times)
    groups, stages = constants["CONSUMERS"], constants["STAGES"]
    block, pattern = constants["BLOCK_N"], constants["PATTERN"]
    out = Pointer(np.full(q.size, np.nan, np.float16))
    lse = Pointer(np.full(batch * heads * tokens, np.nan, np.float32))
    flat = [x.reshape(batch * tokens, heads * dim) for x in (q, k, v)]
    descs = [Descriptor(x, rows, dim) for x, rows in zip(flat, (64, block, block))]

    def ring(count, make):
        return Ring([make() for _ in range(count)])

    for program in range(-(-times * space // (64 * groups)) * views * batch * heads):
        index, view, first, time_, touched = home_tile(program, views, times, space, 64 * groups)
        index = Num(index)
        smem = [
            ring(groups, lambda: Buffer((64, dim))),
            *(ring(stages, lambda: Buffer((block, dim))) for _ in range(2)),
        ]
        bars = [ring(1, lambda: Barrier(1))]
        for _ in range(2):
            bars += [
                ring(stages, lambda: Barrier(1)), ring(stages, lambda: Barrier(groups)),
            ]  # fmt: skip
        grid = view, first, time_, touched, views, times, space
        shared = constants["STRADDLE"], constants["ROW_REST"], constants["FRAME_REST"], pattern
        errors = []

        def guard(function, *args, errors=errors):
            try:
                vars(Product.queues)["moving"] = []
                # Rows past the end of a row see nothing and are not stored.
                with np.errstate(invalid="ignore", divide="ignore"):
                    function.fn(*args)
            except BaseException as error:  # carried to the test's thread
                errors.append(error)

        origin, column = index // heads * tokens, index % heads * dim
        jobs = [(kernel.produce, *descs, *smem, *bars, origin, column, *grid, block, stages, groups,
                 constants["STRADDLE"], pattern)]  # fmt: skip
        jobs += [
            (kernel.consume, *smem, *bars, out, lse, index, heads, *grid, scale, who, dim, block,
             stages, constants["OVERLAP"], *shared)
            for who in range(groups)
        ]  # fmt: skip
        threads = [threading.Thread(target=guard, args=job, daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * SECONDS)
        if errors:
            raise errors[0]
        full_k, full_v = bars[1], bars[3]
        assert all(bar.owed == 0 for bar in (*full_k.parts, *full_v.parts)), "a copy is in flight"
    copies.stop = True
    copies.thread.join(SECONDS)
    return out.data.reshape(q.shape), lse.data.reshape(batch, heads, tokens)
