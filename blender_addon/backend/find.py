# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the backend's Python is: preference, environment, our own installation, a checkout.
It looks at files alone and never runs what it finds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PYTHON_VARIABLE = "VIEWTIME_BACKEND_PYTHON"
# Written last: a folder without it is an installation that was cut off.
INSTALLED = "viewtime-installed.json"


@dataclass(frozen=True)
class Found:
    """An interpreter ("" when there is none) and where the word came from, for people."""

    python: str
    source: str


def find_python(preference: str, environment: str, own: Path, package: Path) -> Found:
    """The first of: the preference, the environment's, the one installed in `own`, the .venv
    beside a checkout that `package` (the add-on's folder) lies in.

    preference and environment are taken at their word, so that a wrong one is told and not passed
    over in silence.
    """
    if preference:
        return Found(preference, "chosen in the preferences")
    if environment:
        return Found(environment, f"from {PYTHON_VARIABLE}")
    if (own / INSTALLED).is_file() and venv_python(own).exists():
        return Found(str(venv_python(own)), "installed by this extension")
    for folder in package.resolve().parents:
        python = venv_python(folder / ".venv")
        if python.exists() and _is_checkout(folder):
            return Found(str(python), "beside the checkout")
    return Found("", "not found")


def venv_python(folder: Path) -> Path:
    """The interpreter of a virtual environment, whether it exists or not."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _is_checkout(folder: Path) -> bool:
    try:
        return 'name = "viewtime"' in (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
