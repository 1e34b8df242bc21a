# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an object's sequence lies: kept relative to its .blend, found again by its identity.
It never moves or writes a file, and never looks through more than a bounded part of the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import bpy

INDEX = "sequence.json"
# How far and how long to look around for a sequence that is no longer where it was.
_LEVELS_UP = 2
_LEVELS_DOWN = 4
_FOLDERS = 5000


def absolute_folder(ob: bpy.types.Object) -> Path:
    """The sequence's folder on this machine."""
    return Path(os.path.normpath(bpy.path.abspath(ob.viewtime.folder, library=home(ob))))


def home(ob: bpy.types.Object) -> bpy.types.Library | None:
    """The file that the object's folder is relative to; None is the open one.

    A library override has its folder from the library, unless a person has set another.
    """
    if ob.override_library is not None:
        reference = ob.override_library.reference
        return reference.library if reference.viewtime.folder == ob.viewtime.folder else None
    return ob.library


def stored_folder(folder: Path, blend: str) -> str:
    """`folder` as it is kept in the file `blend`: relative (//) when it can be.

    It cannot while the .blend is unsaved (blend is empty), or lies on another drive.
    """
    if blend:
        try:
            relative = os.path.relpath(folder, os.path.dirname(os.path.abspath(blend)))
        except ValueError:
            return str(folder)
        return "//" + relative.replace(os.sep, "/")
    return str(folder)


def sequence_folder(path: str) -> Path:
    """The folder that a person means by a path: it, its "splats", or the one of a sequence.json."""
    chosen = Path(os.path.abspath(bpy.path.abspath(path)))
    if chosen.name == INDEX:
        return chosen.parent
    if not (chosen / INDEX).is_file() and (chosen / "splats" / INDEX).is_file():
        return chosen / "splats"
    return chosen


def moved_with_library(ob: bpy.types.Object) -> Path | None:
    """Where the folder of an object is that came from another .blend and was made local.

    Its path is still relative to that file; only a folder with the object's sequence counts.
    """
    folder = ob.viewtime.folder
    if not folder.startswith("//") or ob.library is not None:
        return None
    for library in bpy.data.libraries:
        candidate = Path(os.path.normpath(bpy.path.abspath(folder, library=library)))
        if ob.viewtime.sequence_id and identity(candidate) == ob.viewtime.sequence_id:
            return candidate
    return None


def identity(folder: Path) -> str:
    """The id that the sequence.json of a folder states; empty when it cannot be told."""
    try:
        known = json.loads((folder / INDEX).read_bytes())
        return str(known.get("id", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def find_sequence(sequence_id: str, places: Iterable[Path]) -> Path | None:
    """The nearest folder with the sequence, in and around `places`; None when there is none.

    Looks two levels above each place and four below that, through at most 5,000 folders in all.
    """
    if not sequence_id:
        return None
    return next(
        (f for f in islice(_around(places), _FOLDERS) if identity(f) == sequence_id),
        None,
    )


def _around(places: Iterable[Path]) -> Iterator[Path]:
    """Folders near first: each place and below, then the same from its parents."""
    seen: set[Path] = set()
    roots = []
    for place in places:
        there = next((p for p in (place, *place.parents) if p.is_dir()), None)
        if there is not None:
            roots.append([there, *islice(there.parents, _LEVELS_UP)])
    for level in range(_LEVELS_UP + 1):
        for root in roots:
            # Never the whole disk: a root without a parent is left alone.
            if level < len(root) and root[level].parent != root[level]:
                yield from _below(root[level], seen)


def _below(root: Path, seen: set[Path]) -> Iterator[Path]:
    """Breadth first, so that what is near comes before what is deep."""
    layer = [root]
    for _ in range(_LEVELS_DOWN + 1):
        following = []
        for folder in layer:
            if folder in seen:
                continue
            seen.add(folder)
            yield folder
            try:
                with os.scandir(folder) as entries:
                    following += sorted(
                        Path(entry.path)
                        for entry in entries
                        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
                    )
            except OSError:
                continue
        layer = following
