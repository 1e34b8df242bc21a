# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that no linter knows: licences, what the add-on may import, start-up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("backend", "kernels", "blender_addon", "benchmarks", "examples", "tests", "tools")
ADD_ON_MAY_IMPORT = {
    "bpy", "bpy_extras", "mathutils", "gpu", "gpu_extras", "addon_utils", "bl_ui", "blf", "idprop",
    "numpy", "requests", "viewtime_formats",
}  # fmt: skip


def sources(*rooms: str) -> list[Path]:
    return sorted(file for room in rooms for file in (ROOT / room).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports, relative imports aside."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def licence_of(file: Path) -> str:
    relative = file.relative_to(ROOT).as_posix()
    gpl = relative.startswith(("blender_addon/", "tests/blender/"))
    return "GPL-3.0-or-later" if gpl else "Apache-2.0"


@pytest.mark.parametrize("room", OURS)
def test_every_source_states_its_licence_and_its_purpose(room):
    files = sources(room)
    assert files, f"{room} holds no Python source"
    for file in files:
        text = file.read_text(encoding="utf-8")
        wanted = f"# SPDX-License-Identifier: {licence_of(file)}"
        assert wanted in text.split("\n", 2)[:2], f"{file}: {wanted}"
        assert ast.get_docstring(ast.parse(text)), f"{file}: says nothing of what it is for"


def test_the_add_on_imports_what_blender_ships_and_our_formats_alone():
    for file in sources("blender_addon"):
        foreign = imported(file) - ADD_ON_MAY_IMPORT - set(sys.stdlib_module_names)
        assert not foreign, f"{file} imports {foreign}"


def test_only_one_module_translates_between_blender_and_opencv():
    for file in sources("blender_addon"):
        if file.name != "conventions.py":
            assert "sensor_fit" not in file.read_text(encoding="utf-8"), file


def test_importing_viewtime_loads_no_heavy_library():
    code = (
        "import sys, time; start = time.perf_counter(); import viewtime; "
        "seconds = time.perf_counter() - start; "
        "heavy = {'torch', 'numba', 'diffusers', 'transformers', 'fastapi'} & set(sys.modules); "
        "print(seconds, sorted(heavy))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    seconds, heavy = answer.stdout.strip().split(" ", 1)
    assert heavy == "[]"
    # Well under the half second that is promised, with room for a busy machine.
    assert float(seconds) < 0.5


def test_torchvision_stays_out():
    """Its mere presence breaks diffusers and torchmetrics on a CPU build of torch."""
    answer = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True
    )
    assert "No module named 'torchvision'" in answer.stderr


def test_sources_stay_short_enough_to_read():
    for file in sources(*OURS):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= 450, f"{file}: {lines} lines"
