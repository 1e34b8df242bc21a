# SPDX-License-Identifier: Apache-2.0
"""The weights/ folder that a training leaves: a whole generator, with what its base lends to it.

It never changes the base, and never decides when weights are written.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from viewtime.generator.load import save_generator
from viewtime.generator.model import ViewTimeTransformer
from viewtime_formats.atomic import write_json

LENT = ("vae", "text_encoder", "tokenizer", "scheduler")
"""Folders of a checkpoint that fine-tuning leaves as they are."""


def write_weights(
    weights: Path,
    model: ViewTimeTransformer,
    step: int,
    *,
    base: Path | None = None,
    **options: Any,
) -> None:
    """Save a generator that loads by itself, trained for `step` steps, in place of what is there.

    It is made in a folder beside and then renamed, so that a kill leaves nothing torn.
    base: the folder it was made from, whose codec and text encoder it goes on using; None where
    there are none. options: see `save_generator`.
    """
    part, before = _beside(weights, "part"), _beside(weights, "before")
    if before.exists() and not weights.exists():  # killed between the two names
        before.rename(weights)
    for left in (part, before):
        shutil.rmtree(left, ignore_errors=True)
    save_generator(part, model, **options)
    write_json(part / "training.json", {"steps": step})
    for file in part.rglob("*.safetensors"):
        _sync(file)
    for name in LENT:
        if base is not None and (base / name).is_dir():
            _lend((base / name).resolve(), part / name)
    if weights.exists():
        weights.rename(before)
    part.rename(weights)
    shutil.rmtree(before, ignore_errors=True)


def weights_step(weights: Path) -> int:
    """After how many steps weights/ was written; -1 where it is not there or does not say."""
    try:
        return int(json.loads((weights / "training.json").read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _beside(weights: Path, what: str) -> Path:
    return weights.with_name(f"{weights.name}.{what}")


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, so that a power cut cannot leave an empty one."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _lend(source: Path, target: Path) -> None:
    """The files of a folder under a second name (hard links): they take no room, and stay when
    either folder is moved, or the first one deleted.

    Where that cannot be (another file system), a text encoder is linked to, as it is many
    gigabytes, and anything else copied.
    """
    try:
        shutil.copytree(source, target, copy_function=_hard_link)
        return
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
    if target.name == "text_encoder":
        try:
            target.symlink_to(source, target_is_directory=True)
            return
        except OSError:  # a system or a person without such links
            pass
    shutil.copytree(source, target)


def _hard_link(source: str, target: str) -> None:
    # A file of the hub's cache is itself a link; what it leads to is what must stay.
    os.link(os.path.realpath(source), target)
