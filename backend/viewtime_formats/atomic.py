# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader sees the old one or the new one, and a failure leaves no trace.

Never leaves a ``.part`` file behind after an exception and never touches the old file before the
new one is whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ViewtimeError


def writing_failed(path: Path, error: OSError) -> ViewtimeError:
    """The ViewtimeError that tells a person why `path` could not be written and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ViewtimeError(
            f"{path}: the disk is full; free some space or choose another folder, then run again "
            "(nothing was overwritten)"
        )
    reason = error.strerror or str(error)
    return ViewtimeError(f"{path}: cannot be written ({reason}); choose a folder you may write to")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yield ``NAME.part`` beside `path`; on a clean exit it becomes `path` in one step.

    durable: also wait until the bytes are on the disk (fsync), so that a power cut cannot leave an
    empty file under the final name. Files that can be made again (frames, exports) do without.

    Raises ViewtimeError when the file system refuses (full, read only, no such folder). After any
    exception the part is gone and an old file at `path` is as it was.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        if durable:
            _sync(part)
        os.replace(part, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        if error.filename not in (None, str(part), part, os.fspath(path)):
            raise
        raise writing_failed(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as readable JSON, atomically. NaN and infinity are a ValueError, not bad JSON."""
    text = json.dumps(obj, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems cannot; the file itself is already safe
    finally:
        os.close(descriptor)
