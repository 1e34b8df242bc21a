#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds dist/viewtime-VERSION.zip, the extension that users install in Blender.
Needs Python's standard library and hatchling; never puts compiled code or torch into the zip."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADDON = ROOT / "blender_addon"
FORMATS = ROOT / "packaging" / "formats"
# ZIP cannot say anything earlier; a constant makes two builds of one commit the same bytes.
ZIP_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
LEFT_OUT_FOLDERS = {"__pycache__"}
LEFT_OUT_SUFFIXES = {".pyc", ".pyo", ".part"}
COMPILED_SUFFIXES = {".so", ".pyd", ".dll", ".dylib", ".a", ".o"}


class BuildError(Exception):
    """The extension cannot be built; the message says what is wrong and what would be right."""


def read_toml(path: Path) -> dict:
    with path.open("rb") as file:
        return tomllib.load(file)


def check_versions() -> tuple[str, list[str]]:
    """The version that all three manifests agree on, and the wheels the extension names."""
    manifest = read_toml(ROOT / "blender_manifest.toml")
    version = manifest["version"]
    for path in (ROOT / "pyproject.toml", FORMATS / "pyproject.toml"):
        other = read_toml(path)["project"]["version"]
        if other != version:
            raise BuildError(
                f"{path.relative_to(ROOT)} has version {other}, "
                f"blender_manifest.toml has {version}; make them the same"
            )
    return version, manifest.get("wheels", [])


def build_wheel(folder: Path) -> Path:
    """Build the viewtime_formats wheel into folder and return its path."""
    # A fixed date for the members of the wheel, the same one on every machine.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    answer = subprocess.run(command, cwd=FORMATS, env=environment, capture_output=True, text=True)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(
            f"the wheel of viewtime_formats was not built by {sys.executable}: {reason} "
            "(hatchling comes with the backend's environment: python3 dev.py setup)"
        )
    wheels = sorted(folder.glob("viewtime_formats-*.whl"))
    if len(wheels) != 1:
        raise BuildError(f"expected one wheel in {folder}, found {[w.name for w in wheels]}")
    return wheels[0]


def addon_files() -> list[tuple[str, bytes]]:
    """(name in the zip, content) of everything in blender_addon that belongs to users."""
    members = []
    for path in sorted(ADDON.rglob("*")):
        if not path.is_file() or LEFT_OUT_FOLDERS & set(path.parts):
            continue
        if path.suffix in LEFT_OUT_SUFFIXES:
            continue
        if path.suffix in COMPILED_SUFFIXES:
            raise BuildError(f"{path.relative_to(ROOT)} is compiled code; the extension has none")
        members.append((path.relative_to(ADDON).as_posix(), path.read_bytes()))
    return members


def build(out: Path) -> Path:
    """Write the extension into folder out (atomically) and return the path of the zip.

    Raises BuildError when versions differ, the wheel is not the one that the manifest names, or
    compiled code is found.
    """
    version, named_wheels = check_versions()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        if named_wheels != [f"./wheels/{wheel.name}"]:
            raise BuildError(
                f"blender_manifest.toml names the wheels {named_wheels}, "
                f'the build made ["./wheels/{wheel.name}"]'
            )
        members = [
            ("blender_manifest.toml", (ROOT / "blender_manifest.toml").read_bytes()),
            ("LICENSE", (ROOT / "LICENSES" / "GPL-3.0-or-later.txt").read_bytes()),
            # The wheel's own licence, since its text is not inside the wheel.
            ("LICENSES/Apache-2.0.txt", (ROOT / "LICENSES" / "Apache-2.0.txt").read_bytes()),
            (f"wheels/{wheel.name}", wheel.read_bytes()),
            *addon_files(),
        ]
    target = out / f"viewtime-{version}.zip"
    part = target.with_name(target.name + ".part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                info = zipfile.ZipInfo(name, ZIP_TIMESTAMP)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                # Windows would write 0 (DOS) here and other bytes with it.
                info.create_system = 3
                archive.writestr(info, content)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the zip")
    arguments = parser.parse_args(argv)
    try:
        target = build(arguments.out)
    except (BuildError, OSError) as error:
        print(f"build_extension.py: {error}", file=sys.stderr)
        return 2
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
