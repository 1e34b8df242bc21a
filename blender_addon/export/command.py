# SPDX-License-Identifier: GPL-3.0-or-later
"""The export of a sequence as one line for a terminal, and what farm jobs share with it.
It never runs anything."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence


def export_words(
    blender: str, add_on: str, blend: str, ob: str, out: str, frames: str
) -> list[str]:
    """The words of the command line, blender first. frames: "A:B" or ""."""
    words = [blender, "--background", blend, "--addons", add_on]
    words += ["--command", "viewtime", "export", "--object", ob, "--out", out]
    return [*words, "--frames", frames] if frames else words


def render_words(blender: str, add_on: str, blend: str, first: str, last: str) -> list[str]:
    """Blender's own words to render frames first to last of a file, with the add-on playing."""
    words = [blender, "--background", blend, "--addons", add_on]
    return [*words, "--frame-start", first, "--frame-end", last, "--render-anim"]


def as_line(words: Sequence[str]) -> str:
    """Quoted for the shell of this system, to be pasted."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def chunks(first: int, last: int, size: int) -> list[tuple[int, int]]:
    """[first, last] cut into runs of at most `size` frames, both ends inclusive."""
    return [(a, min(a + size - 1, last)) for a in range(first, last + 1, size)]
