# SPDX-License-Identifier: Apache-2.0
"""The weights that come with Viewtime, found by name; each folder has a card.json about itself.

It reads cards, never weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from viewtime_formats.errors import ViewtimeError

FOLDER = Path(__file__).parent / "bundled"
CARD_FIELDS = ("name", "what", "licence", "training_data", "command", "limits", "files")


class ModelError(ViewtimeError):
    """A model that is not there, or whose card does not say what it must."""


def bundled_names() -> list[str]:
    """Names of the bundled models, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/card.json"))


def bundled_path(name: str) -> Path:
    """Folder of a bundled model. Raises ModelError, naming those there are, when it is unknown."""
    if name not in bundled_names():
        there = ", ".join(bundled_names()) or "none"
        raise ModelError(f"no bundled model named {name!r} (there are: {there})")
    return FOLDER / name


def read_card(name: str) -> dict[str, Any]:
    """The card of a bundled model. Raises ModelError when a field is missing."""
    path = bundled_path(name) / "card.json"
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    missing = [field for field in CARD_FIELDS if field not in card]
    if missing:
        raise ModelError(f"{path}: the card lacks {', '.join(missing)}")
    return card
