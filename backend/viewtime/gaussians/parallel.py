# SPDX-License-Identifier: Apache-2.0
"""Compiled loops over ranges, on a few threads of our own. Never nests and never forks."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any


def thread_count() -> int:
    """Threads for compiled loops: VIEWTIME_THREADS, else the cores of the machine, at most 16."""
    asked = os.environ.get("VIEWTIME_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return min(os.cpu_count() or 1, 16)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # The compiled loops release the GIL. numba's own thread layers are not used: the one that is
    # always there aborts the process when two Python threads enter it.
    return ThreadPoolExecutor(threads, thread_name_prefix="viewtime-raster")


def in_parallel(function: Any, count: int, pieces_per_thread: int = 1) -> None:
    """Call function(start, stop) over consecutive ranges of range(count), on all threads."""
    threads = thread_count()
    if count <= 0:
        return
    if threads == 1:
        function(0, count)
        return
    pieces = min(count, threads * pieces_per_thread)
    edges = [count * p // pieces for p in range(pieces + 1)]
    for done in [_pool(threads).submit(function, *edge) for edge in zip(edges, edges[1:])]:
        done.result()
