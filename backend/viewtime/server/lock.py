# SPDX-License-Identifier: Apache-2.0
"""A lock on a file that dies with its process on every system, held through SQLite's own locking.
Never trusts a pid or a time stamp; the pid it stores is for the message only."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from viewtime_formats.errors import ViewtimeError


class LockedError(ViewtimeError):
    """Another process holds the lock."""


class ProcessLock:
    """Holds `path` from construction to `close` or the end of the process.

    An exclusive SQLite transaction is the one lock of the standard library that works alike on
    Linux, macOS and Windows and that no crash leaves behind. Raises LockedError, in the words of
    `complaint` (which may contain {pid}), when it is still held after `wait_seconds`.
    """

    def __init__(self, path: Path, complaint: str, wait_seconds: float = 0.0) -> None:
        self._path = path
        self._connection = sqlite3.connect(
            path, timeout=wait_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._connection.close()
            if "locked" not in str(error):
                raise LockedError(f"{path}: cannot be locked ({error})") from error
            raise LockedError(complaint.format(pid=self._holder())) from error
        with contextlib.suppress(OSError):
            self._note.write_text(str(os.getpid()), encoding="utf-8")

    @property
    def _note(self) -> Path:
        return self._path.with_suffix(".pid")

    def _holder(self) -> str:
        try:
            return self._note.read_text(encoding="utf-8").strip()
        except OSError:
            return "unknown"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._note.unlink()
        with contextlib.suppress(sqlite3.Error):
            self._connection.rollback()
        self._connection.close()
