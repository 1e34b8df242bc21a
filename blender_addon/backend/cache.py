# SPDX-License-Identifier: GPL-3.0-or-later
"""What the backend's data folder holds that can be made again, how large it is, and its removal.
It only ever touches files whose names are our own, and nothing of a job that runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

# Pictures of jobs and logs; never the job database, a lock, or anything that is not listed here.
PATTERNS = ("previews/*.npy", "logs/worker-*.log", "backend.log")
OWN = ("", "own-*/")  # the shared folder and those of Blenders with a backend of their own


@dataclass(frozen=True)
class Size:
    """Bytes that cleaning would free, and bytes of everything in the folder."""

    cache: int
    total: int


def size_of(data_dir: Path) -> Size:
    """Walks the folder: not for the main thread."""
    return Size(_sum(cached_files(data_dir)), _sum(data_dir.rglob("*")))


def cached_files(data_dir: Path) -> Iterator[Path]:
    """Our own files that can be removed."""
    for folder in OWN:
        for pattern in PATTERNS:
            for path in data_dir.glob(folder + pattern):
                if path.is_file() and not path.is_symlink():
                    yield path


def clean(data_dir: Path, *, active: Collection[str], running: bool) -> int:
    """Remove the files and return the bytes freed.

    active: ids of jobs that wait or run, whose pictures stay. running: whether a backend runs,
    which still writes its logs.
    """
    freed = 0
    for path in list(cached_files(data_dir)):
        if path.stem in active or (running and path.suffix == ".log"):
            continue
        try:
            size = path.stat().st_size
            path.unlink()
        except OSError:
            continue  # gone already, or open on Windows: the next time
        freed += size
    return freed


def _sum(paths: Iterator[Path]) -> int:
    total = 0
    for path in paths:
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
        except OSError:
            continue
    return total
