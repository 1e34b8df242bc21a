# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the steps that come next in a thread of its own and keeps a bounded number of bytes.
The thread never touches bpy: it is given sequences and step numbers, and gives back arrays."""

from __future__ import annotations

import atexit
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import zip_longest

from viewtime_formats import SplatSequence, ViewtimeError

from .reader import CloudArrays, read_step, step_bytes

# How long the main thread waits for a step that is being read; then it reads the step itself.
_PATIENCE_SECONDS = 5.0
_JOIN_SECONDS = 5.0


@dataclass(frozen=True)
class Wanted:
    """One step of one opened sequence; equal when the file's content is."""

    sequence: SplatSequence
    step: int

    @property
    def key(self) -> tuple[str, str, int, str]:
        entry = self.sequence.entry(self.step)
        digest = "" if entry is None else entry.sha256
        return str(self.sequence.folder), self.sequence.id, self.step, digest

    @property
    def nbytes(self) -> int:
        entry = self.sequence.entry(self.step)
        coefficients = (self.sequence.sh_degree + 1) ** 2
        return 0 if entry is None else step_bytes(entry.count, coefficients)


class Prefetch:
    """A ring of read steps: those wanted next, as far as the budget goes, then the last used."""

    def __init__(self, read: Callable[..., CloudArrays] = read_step) -> None:
        self._read = read
        self._change = threading.Condition()
        self._wanted: dict[Hashable, list[Wanted]] = {}
        self._ready: OrderedDict[tuple, CloudArrays] = OrderedDict()
        self._broken: set[tuple] = set()
        self._reading: Wanted | None = None
        self._budget = 0
        self._ending = False
        self._thread: threading.Thread | None = None

    # ---- main thread -----------------------------------------------------------------------------

    def take(self, sequence: SplatSequence, step: int) -> CloudArrays:
        """The step, from the ring when it is there, else from the disk. Raises SequenceError."""
        wanted = Wanted(sequence, step)
        with self._change:
            if self._reading is not None and self._reading.key == wanted.key:
                # Waiting lets the thread run on; reading beside it would read everything twice.
                self._change.wait_for(lambda: self._reading is None, _PATIENCE_SECONDS)
            arrays = self._ready.get(wanted.key)
            if arrays is not None:
                self._ready.move_to_end(wanted.key)
                return arrays
        return self._read(sequence, step)

    def want(self, owner: Hashable, steps: list[Wanted], budget: int) -> None:
        """What `owner` will need next, nearest first; at most `budget` bytes are kept for all."""
        with self._change:
            self._budget = budget
            if budget <= 0 or not steps:
                self._wanted.pop(owner, None)
            else:
                self._wanted[owner] = steps
            self._broken &= {wanted.key for wanted in self._in_order()}
            self._make_room(0)
            if self._next() is None:
                return
            if self._thread is None:
                self._ending = False
                self._thread = threading.Thread(
                    target=self._run, name="viewtime prefetch", daemon=True
                )
                self._thread.start()
                atexit.register(self.stop)
            self._change.notify_all()

    def held(self) -> int:
        """Bytes in the ring now, those of the step being read included."""
        with self._change:
            reading = 0 if self._reading is None else self._reading.nbytes
            return reading + sum(arrays.nbytes for arrays in self._ready.values())

    def settle(self, timeout: float) -> bool:
        """Wait until everything wanted that fits is there; False when it takes longer (seconds)."""
        with self._change:
            return self._change.wait_for(
                lambda: self._reading is None and self._next() is None, timeout
            )

    def forget(self, owner: Hashable = None) -> None:
        """Want nothing any more (for `owner`), and without an owner keep nothing either."""
        with self._change:
            if owner is not None:
                self._wanted.pop(owner, None)
                return
            self._wanted.clear()
            self._ready.clear()
            self._broken.clear()

    def stop(self) -> None:
        """End the thread and wait for it; the next want() starts another."""
        with self._change:
            self._ending = True
            thread, self._thread = self._thread, None
            self._change.notify_all()
        if thread is not None:
            thread.join(_JOIN_SECONDS)
            atexit.unregister(self.stop)
        self.forget()

    # ---- its own thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._ending or self._next() is not None)
                wanted = self._next()
                if self._ending or wanted is None:
                    return
                self._make_room(wanted.nbytes)
                self._reading = wanted
            arrays = None
            try:
                arrays = self._read(wanted.sequence, wanted.step, copy=True)
            except (ViewtimeError, OSError, MemoryError, ValueError):
                # The main thread meets the same when it gets there, and shows it.
                pass
            with self._change:
                self._reading = None
                if arrays is None:
                    self._broken.add(wanted.key)
                elif not self._ending:
                    self._ready[wanted.key] = arrays
                    del arrays
                self._make_room(0)
                self._change.notify_all()

    # ---- either, with the lock -------------------------------------------------------------------

    def _in_order(self) -> list[Wanted]:
        """What all owners want: everybody's first, then everybody's second, and so on."""
        rounds = zip_longest(*self._wanted.values())
        return [wanted for turn in rounds for wanted in turn if wanted is not None]

    def _next(self) -> Wanted | None:
        """The nearest wanted step that is not there, as long as those before it leave room."""
        taken = 0
        for wanted in self._in_order():
            if wanted.key in self._broken:
                continue
            taken += wanted.nbytes
            if taken > self._budget:
                return None
            if wanted.key not in self._ready:
                return wanted
        return None

    def _make_room(self, more: int) -> None:
        """Drop steps, first those that nobody wants, until `more` bytes fit the budget."""
        order = [wanted.key for wanted in self._in_order()]
        rank = {key: place for place, key in reversed(list(enumerate(order)))}
        held = sum(arrays.nbytes for arrays in self._ready.values())
        unwanted = [key for key in self._ready if key not in rank]
        farthest = sorted((key for key in self._ready if key in rank), key=lambda k: -rank[k])
        for key in (*unwanted, *farthest):
            if held + more <= self._budget:
                return
            held -= self._ready.pop(key).nbytes
