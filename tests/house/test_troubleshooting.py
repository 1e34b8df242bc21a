# SPDX-License-Identifier: Apache-2.0
"""Every message that docs/troubleshooting.md explains still stands in the sources.
It knows nothing of when a message appears."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("blender_addon", "backend/viewtime", "backend/viewtime_formats")
MESSAGES = re.findall(
    r"^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
)


def words_of(node: ast.expr) -> str:
    """The text of a string or an f-string, with a … for every value in it; "" for others."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(words_of(part) or "…" for part in node.values)
    return ""


@functools.cache
def sentences() -> str:
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    found = {
        " ".join(words_of(node).split())
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant | ast.JoinedStr)
    }
    return "\n".join(sorted(found))


def in_sources(message: str) -> bool:
    # What is shown begins with a capital letter, and a value in it may be a whole sentence.
    parts = [re.escape(part) for part in message.split("…")]
    pattern = ".*".join(parts)
    if message[0].isalpha():
        pattern = f"[{message[0].upper()}{message[0].lower()}]{pattern[1:]}"
    return re.search(pattern, sentences()) is not None


@pytest.mark.parametrize("message", MESSAGES)
def test_each_explained_message_stands_in_the_sources(message):
    assert in_sources(message), f"no source says: {message}"


def test_the_check_can_fail():
    assert len(MESSAGES) > 80 and len(set(MESSAGES)) == len(MESSAGES)
    assert not in_sources("This … stands in no source")
