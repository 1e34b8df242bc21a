# SPDX-License-Identifier: Apache-2.0
"""The weights/ folder that a training leaves: a whole generator, with what its base lends to it.

It never changes the base, and never decides when weights are written.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from viewtime.generator.load import save_generator
from viewtime.generator.model import ViewTimeTransformer

LENT = ("vae", "text_encoder", "tokenizer", "scheduler")
"""Folders of a checkpoint that fine-tuning leaves as they are."""


def write_weights(
    weights: Path, model: ViewTimeTransformer, *, base: Path | None = None, **options: Any
) -> None:
    """Save a generator that loads by itself. base: the folder it was made from, whose codec and
    text encoder it goes on using; None where there are none. options: see `save_generator`."""
    save_generator(weights, model, **options)
    for name in LENT:
        if base is not None and (base / name).is_dir() and not (weights / name).is_dir():
            _lend((base / name).resolve(), weights / name)


def _lend(source: Path, target: Path) -> None:
    """The files of a folder under a second name (hard links): they take no room, and stay when
    either folder is moved, or the first one deleted.

    Where that cannot be (another file system), a text encoder is linked to, as it is many
    gigabytes, and anything else copied.
    """
    shutil.rmtree(target, ignore_errors=True)
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
