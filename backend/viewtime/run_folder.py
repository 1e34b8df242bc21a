# SPDX-License-Identifier: Apache-2.0
"""The folder that one run writes: claims it, keeps what stood there, puts it back on failure.
Never removes a file that no run of ours has written, and never needs the process that died."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from viewtime_formats.atomic import write_json
from viewtime_formats.errors import ViewtimeError

RUN_FILE = "run.json"
MARKER = ".viewtime-run.json"
PREVIOUS = ".viewtime-previous"
OUTPUTS = ("grid", "splats", RUN_FILE)
# Files that operating systems drop into any folder a person has looked at, and our own JSON when
# the process died while writing it; the next run writes over those.
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", MARKER + ".part", RUN_FILE + ".part")


class OutputError(ViewtimeError):
    """The output folder cannot be used; the message names it and says what would be right."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything which no run of ours wrote.

    Raises OutputError. A folder that does not exist, an empty one, the result of an earlier run
    and the remains of an interrupted one are all accepted.
    """
    if not folder.exists():
        if folder.is_symlink():
            raise OutputError(f"{folder}: is a link to a place that does not exist")
        return
    if not folder.is_dir():
        raise OutputError(f"{folder}: is a file; give the path of a folder")
    names = {entry.name for entry in folder.iterdir()} - set(LITTER)
    foreign = sorted(names - {*OUTPUTS, MARKER, PREVIOUS})
    if foreign:
        raise OutputError(
            f"{folder}: already holds {foreign[0]!r}, which no run of Viewtime wrote; "
            "choose an empty or new folder"
        )
    if names and MARKER not in names and not _is_run_file(folder / RUN_FILE):
        raise OutputError(
            f"{folder}: holds {sorted(names)[0]!r} but no {RUN_FILE} of Viewtime; "
            "choose an empty or new folder"
        )


def begin(folder: Path) -> None:
    """Claim the folder: afterwards it holds nothing but the marker and the earlier result.

    The marker is written before anything else changes, so that `abandon` can undo from any point.
    Raises OutputError when the folder is not ours, OSError when the disk refuses.
    """
    check_folder(folder)
    abandon(folder)
    created = _create(folder)
    write_json(folder / MARKER, {"created": created, "cleared": False})
    previous = folder / PREVIOUS
    if previous.exists():  # the process died between `finish`'s two steps
        shutil.rmtree(previous)
    present = [name for name in OUTPUTS if (folder / name).exists()]
    if present:
        previous.mkdir()
        for name in present:
            os.replace(folder / name, previous / name)
    write_json(folder / MARKER, {"created": created, "cleared": True})


def finish(folder: Path) -> None:
    """Declare the run complete; what stood there before is gone from here on."""
    (folder / MARKER).unlink()
    shutil.rmtree(folder / PREVIOUS, ignore_errors=True)


def abandon(folder: Path) -> None:
    """Undo an unfinished run: remove what it wrote, restore what stood there before it.

    Does nothing when there is no unfinished run, so it may be called at any time and twice.
    Folders that the run created are removed again when they are empty.
    """
    marker = folder / MARKER
    if not marker.is_file():
        return
    state = _read_json(marker)
    created = [Path(path) for path in state.get("created", [])]
    if state.get("cleared"):
        for name in OUTPUTS:
            _remove(folder / name)
        # From here on the names belong to the earlier result: a second `abandon` must not
        # delete what this one has already moved back.
        write_json(marker, {"created": state.get("created", []), "cleared": False})
    previous = folder / PREVIOUS
    if previous.is_dir():
        for entry in list(previous.iterdir()):
            if not (folder / entry.name).exists():
                os.replace(entry, folder / entry.name)
        shutil.rmtree(previous, ignore_errors=True)
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)
    marker.unlink(missing_ok=True)
    for path in created:
        try:
            path.rmdir()
        except OSError:
            break  # holds something by now; its parents do too


def disk_full(out: Path) -> str:
    """The sentence for a person whose disk has no room for the folder."""
    place = out
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**20
    return (
        f"{out}: the disk is full ({free:.0f} MiB free); free some space or choose another folder, "
        "then run again"
    )


def _create(folder: Path) -> list[str]:
    """Make the folder and its parents; the ones that did not exist, deepest first."""
    missing = []
    path = folder
    while not path.exists():
        missing.append(str(path))
        path = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _is_run_file(path: Path) -> bool:
    return _read_json(path).get("format") == "viewtime.run"


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
