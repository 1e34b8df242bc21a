# SPDX-License-Identifier: Apache-2.0
"""What somebody wrote down of a scene: the prompt that a generator is trained with.

It reads text only; it never makes any up.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from viewtime.data.readers.layouts import read_object, transforms_files
from viewtime_formats.errors import CaptureError

NAME = "prompt.txt"
_MOST_BYTES = 1 << 16


@lru_cache(maxsize=1 << 16)
def read_caption(scene: str) -> str:
    """What a scene shows, as `training_clip` names scenes; "" where nobody said.

    The text of prompt.txt in the scene's folder, else "prompt" in its transforms.json. For a scene
    that is a file (a video, a RealEstate10K list): prompt.txt in the folder of its name, else
    beside it. White space is made single. Raises CaptureError naming the file that is no text.
    """
    path = Path(scene)
    rooms = [path] if path.is_dir() else [path.with_suffix(""), path.parent]
    for file in (room / NAME for room in rooms):
        if file.is_file():
            return _text(file)
    for file in (file for file in transforms_files(path) if file.is_file()):
        return _prompt(file)
    return ""


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise CaptureError(
                f"{file}: is longer than {_MOST_BYTES} bytes; a prompt is a sentence"
            )
        return " ".join(file.read_text(encoding="utf-8").split())
    except (OSError, ValueError) as problem:
        raise CaptureError(f"{file}: is not text in UTF-8 ({problem})") from None


def _prompt(file: Path) -> str:
    found = read_object(file)
    prompt = found.get("prompt", "") if isinstance(found, dict) else ""
    if not isinstance(prompt, str):
        raise CaptureError(f"{file}: prompt must be text, is {type(prompt).__name__}")
    return " ".join(prompt.split())
