# SPDX-License-Identifier: Apache-2.0
"""The tool that builds the extension: the same bytes every time, and refusals in words.
What the zip does inside Blender is tested in tests/blender."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(root: Path) -> ModuleType:
    """tools/build_extension.py, working on the tree at root."""
    spec = importlib.util.spec_from_file_location(
        "build_extension", root / "tools" / "build_extension.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the extension is built from."""
    for name in ("blender_addon", "backend/viewtime_formats", "packaging", "tools", "LICENSES"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("blender_manifest.toml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_two_builds_in_two_places_are_the_same_bytes(tree: Path) -> None:
    here = load(ROOT).build(tree / "here").read_bytes()
    assert load(tree).build(tree / "there").read_bytes() == here


def test_versions_that_differ_are_refused(tree: Path) -> None:
    project = tree / "packaging" / "formats" / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "0.1.0"', 'version = "0.2.0"'))
    tool = load(tree)
    with pytest.raises(tool.BuildError, match="has version 0.2.0, blender_manifest.toml has 0.1.0"):
        tool.build(tree / "dist")


def test_a_wheel_that_the_manifest_does_not_name_is_refused(tree: Path) -> None:
    manifest = tree / "blender_manifest.toml"
    manifest.write_text(manifest.read_text().replace("_formats-0.1.0-", "_formats-0.0.9-"))
    tool = load(tree)
    with pytest.raises(tool.BuildError, match="0.0.9"):
        tool.build(tree / "dist")
    assert not list((tree / "dist").glob("*"))


def test_compiled_code_never_gets_in(tree: Path) -> None:
    (tree / "blender_addon" / "fast.so").write_bytes(b"\x7fELF")
    tool = load(tree)
    with pytest.raises(tool.BuildError, match="fast.so is compiled code"):
        tool.build(tree / "dist")
