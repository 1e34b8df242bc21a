# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives every test real Blender with the extension installed from its zip, as users install it.
It never reads or writes the person's own Blender settings: all of them live in a temporary folder.

Run with the interpreter of Blender's environment:
    .venv-blender/bin/python -m pytest tests/blender --import-mode=importlib
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "bl_ext.user_default.viewtime"

# Blender reads this once, when bpy is first imported: it has to come before that import.
USER_RESOURCES = Path(tempfile.mkdtemp(prefix="viewtime-blender-"))
os.environ["BLENDER_USER_RESOURCES"] = str(USER_RESOURCES)

import bpy  # noqa: E402

_exit_status = 0


def pytest_sessionfinish(exitstatus: int) -> None:
    global _exit_status
    _exit_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Leave at once: Blender 4.5 as a module can wait for ever in its exit handlers (a condition
    variable is destroyed while its thread waits on it), long after the last test has passed."""
    shutil.rmtree(USER_RESOURCES, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_exit_status)


@pytest.fixture(scope="session")
def backend_python() -> Path:
    """The backend's interpreter: VIEWTIME_BACKEND_PYTHON, or the repository's .venv."""
    name = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    python = Path(os.environ.get("VIEWTIME_BACKEND_PYTHON") or ROOT / ".venv" / name)
    assert python.exists(), f"{python} does not exist; run python3 dev.py setup"
    return python


@pytest.fixture(scope="session")
def extension_zip(backend_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built extension: VIEWTIME_EXTENSION_ZIP, or one built now from the working tree."""
    if given := os.environ.get("VIEWTIME_EXTENSION_ZIP"):
        return Path(given)
    out = tmp_path_factory.mktemp("dist")
    command = [backend_python, ROOT / "tools" / "build_extension.py", "--out", out]
    answer = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return next(out.glob("viewtime-*.zip"))


@pytest.fixture(scope="session")
def viewtime(extension_zip: Path) -> str:
    """The name of the installed and enabled extension's package, bl_ext.user_default.viewtime.

    Its modules are reached by importlib.import_module(f"{viewtime}.conventions").
    """
    outcome = bpy.ops.extensions.package_install_files(
        repo="user_default", filepath=str(extension_zip), enable_on_install=False
    )
    assert outcome == {"FINISHED"}
    # Enabling within the same clock tick as the installation can miss it: Python remembers what
    # a folder holds by the folder's time.
    importlib.invalidate_caches()
    bpy.ops.preferences.addon_enable(module=PACKAGE)
    assert PACKAGE in bpy.context.preferences.addons, "the extension was not enabled"
    return PACKAGE


@pytest.fixture
def formats(viewtime: str) -> ModuleType:
    """viewtime_formats as the extension's wheel brought it."""
    return importlib.import_module("viewtime_formats")


@pytest.fixture
def empty_scene(viewtime: str) -> bpy.types.Scene:
    """bpy.context.scene of a fresh, unsaved, empty file; the extension stays enabled.

    (read_factory_settings would disable it; read_homefile keeps the preferences.)
    """
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    assert viewtime in bpy.context.preferences.addons
    return bpy.context.scene
