# SPDX-License-Identifier: GPL-3.0-or-later
"""The built extension installs, registers and unregisters in real Blender.
The zip under test is the one that users get; nothing is imported from the working tree."""

from __future__ import annotations

import importlib
import inspect
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import addon_utils
import bpy

COMPILED = (".so", ".pyd", ".dll", ".dylib", ".a", ".o", ".pyc")


def blender_ext() -> Path:
    """Blender's own command line for extensions."""
    (found,) = Path(bpy.utils.system_resource("SCRIPTS")).glob(
        "addons_core/bl_pkg/cli/blender_ext.py"
    )
    return found


def test_blenders_own_validator_accepts_the_zip(extension_zip: Path) -> None:
    answer = subprocess.run(
        [sys.executable, str(blender_ext()), "validate", str(extension_zip)],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "error" not in answer.stdout.lower()


def test_the_zip_holds_no_compiled_code_and_no_torch(extension_zip: Path) -> None:
    with zipfile.ZipFile(extension_zip) as archive:
        names = archive.namelist()
        (wheel,) = [name for name in names if name.endswith(".whl")]
        with archive.open(wheel) as file, zipfile.ZipFile(file) as inner:
            names += inner.namelist()
            metadata = inner.read(next(n for n in inner.namelist() if n.endswith("METADATA")))
        sources = [archive.read(n) for n in archive.namelist() if n.endswith(".py")]
    assert wheel.endswith("-py3-none-any.whl")
    assert not [name for name in names if name.endswith(COMPILED)]
    assert b"torch" not in metadata
    assert not [s for s in sources if b"import torch" in s or b"from torch" in s]


def test_the_manifest_lies_at_the_root_beside_the_addon(extension_zip: Path) -> None:
    with zipfile.ZipFile(extension_zip) as archive:
        names = set(archive.namelist())
    assert {"blender_manifest.toml", "__init__.py", "LICENSE", "backend/client.py"} <= names


def test_the_formats_come_from_the_wheel_and_not_from_the_repository(viewtime: str) -> None:
    formats = importlib.import_module("viewtime_formats")
    site_packages = Path(bpy.utils.user_resource("EXTENSIONS")) / ".local"
    assert site_packages.resolve() in Path(formats.__file__).resolve().parents


def test_disabling_and_enabling_twice_leaves_a_working_addon(viewtime: str) -> None:
    for _ in range(2):
        addon_utils.disable(viewtime)
        assert not hasattr(bpy.types.Scene, "viewtime")
        assert "generate" not in dir(bpy.ops.viewtime)
        addon_utils.enable(viewtime)
        assert bpy.context.scene.viewtime.capture_size == 256
        assert "generate" in dir(bpy.ops.viewtime)


def test_the_addon_survives_a_new_file(empty_scene: bpy.types.Scene) -> None:
    assert empty_scene.viewtime.job_state == ""


def test_every_operator_of_the_contract_is_registered(viewtime: str) -> None:
    wanted = {"rig_arc", "rig_from_selection", "capture", "import_sequence", "export_ply"}
    wanted |= {"backend_start", "backend_stop", "generate", "cancel"}
    assert wanted <= set(dir(bpy.ops.viewtime))


def test_torch_never_enters_blender(viewtime: str) -> None:
    assert "torch" not in sys.modules


def test_the_zip_is_under_a_megabyte_and_holds_no_binary_but_the_wheel(
    extension_zip: Path,
) -> None:
    assert extension_zip.stat().st_size < 1_000_000
    with zipfile.ZipFile(extension_zip) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".whl"):
                with zipfile.ZipFile(io.BytesIO(content)) as wheel:
                    for inner in wheel.namelist():
                        wheel.read(inner).decode("utf-8")
            else:
                content.decode("utf-8")  # text, whatever its name says


def operators() -> list[type]:
    package = sys.modules["bl_ext.user_default.viewtime"]
    classes = [cls for part in package.PARTS for cls in getattr(part, "CLASSES", ())]
    return [cls for cls in classes if issubclass(cls, bpy.types.Operator)]


def test_every_operator_and_every_argument_explains_itself(viewtime: str) -> None:
    assert len(operators()) > 20
    silent = []
    for cls in operators():
        rna = getattr(bpy.ops.viewtime, cls.bl_idname.partition(".")[2]).get_rna_type()
        if len(rna.description) < 10 or rna.description.endswith("."):
            silent.append(cls.bl_idname)
        for argument in rna.properties:
            hidden = argument.is_hidden or argument.identifier == "rna_type"
            if not hidden and not argument.description:
                silent.append(f"{cls.bl_idname}: {argument.identifier}")
    assert silent == []


def test_every_operator_that_may_be_refused_says_why(viewtime: str) -> None:
    silent = []
    for cls in operators():
        owner = next((base for base in cls.__mro__ if "poll" in vars(base)), None)
        if owner is None or owner.__module__.startswith("bpy"):
            continue
        # The poll itself, or a helper of its module that it calls.
        if "poll_message_set" not in inspect.getsource(inspect.getmodule(owner)):
            silent.append(cls.bl_idname)
    assert silent == []


def test_every_setting_explains_itself(viewtime: str) -> None:
    groups = [bpy.types.Scene, bpy.types.Object, bpy.types.WindowManager]
    pointed = [group.bl_rna.properties["viewtime"].fixed_type for group in groups]
    pointed.append(bpy.context.preferences.addons[viewtime].preferences.bl_rna)
    silent = [
        f"{group.identifier}: {setting.identifier}"
        for group in pointed
        for setting in group.properties
        if setting.identifier not in ("rna_type", "name", "bl_idname")
        and not setting.is_hidden
        and not setting.description
    ]
    assert silent == []
