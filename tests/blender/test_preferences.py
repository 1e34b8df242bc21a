# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding, installing and removing the backend, and cleaning its cache, with real environments.
Nothing is downloaded: what is installed is a wheel built here, without its dependencies."""

from __future__ import annotations

import importlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import bpy
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from backend_help import runs, until, write_capture  # noqa: E402


@pytest.fixture(scope="module")
def addon(viewtime: str) -> SimpleNamespace:
    names = ("session", "link", "preferences", "backend_ops", "backend")
    names += ("backend.find", "backend.install", "backend.cache", "backend.process")
    modules = {n.split(".")[-1]: importlib.import_module(f"{viewtime}.{n}") for n in names}
    return SimpleNamespace(**modules)


@pytest.fixture(scope="module")
def tiny_wheel(tmp_path_factory) -> Path:
    """A wheel called viewtime that knows its version and nothing else: installed in a second."""
    path = tmp_path_factory.mktemp("wheel") / "viewtime-0.1.0-py3-none-any.whl"
    info = "viewtime-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("viewtime/__init__.py", "")
        wheel.writestr("viewtime/__main__.py", "print('viewtime 0.1.0')\n")
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: viewtime\nVersion: 0.1.0\nRequires-Dist: torch\n",
        )
        tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def order(addon, tiny_wheel, backend_python, tmp_path):
    return addon.install.Order(
        folder=tmp_path / "environment",
        package=str(tiny_wheel),
        offline=True,
        dependencies=False,
        python=str(backend_python),
    )


@pytest.fixture
def settings(viewtime: str, addon, tmp_path: Path) -> Iterator:
    def look():
        return bpy.context.preferences.addons[viewtime].preferences

    look().data_dir = str(tmp_path / "data")
    yield look
    addon.link.keeper.stop()
    addon.link.listen()
    for name in ("backend_python", "data_dir", "install_from"):
        look().property_unset(name)


# ---- finding -------------------------------------------------------------------------------------


def python_in(folder: Path) -> Path:
    path = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    path.parent.mkdir(parents=True)
    path.write_text("")
    return path


def test_the_backend_is_looked_for_in_order(addon, tmp_path) -> None:
    find = addon.find.find_python
    own, checkout = tmp_path / "own", tmp_path / "checkout"
    package = checkout / "blender_addon"
    package.mkdir(parents=True)
    assert find("", "", own, package) == addon.find.Found("", "not found")
    beside = python_in(checkout / ".venv")
    assert find("", "", own, package).python == "", "a folder with a .venv is not our checkout"
    (checkout / "pyproject.toml").write_text('[project]\nname = "viewtime"\n')
    assert find("", "", own, package).python == str(beside)
    installed = python_in(own)
    assert find("", "", own, package).python == str(beside), "cut off: it has no mark"
    (own / addon.find.INSTALLED).write_text("{}")
    assert find("", "", own, package).python == str(installed)
    assert find("", "/from/variable", own, package).python == "/from/variable"
    found = find("/chosen", "/from/variable", own, package)
    assert (found.python, found.source) == ("/chosen", "chosen in the preferences")


# ---- installing ----------------------------------------------------------------------------------


def test_an_installation_shows_pips_words_and_marks_itself_last(addon, order) -> None:
    installer = addon.install.Installer(order)
    installer.start()
    assert installer.wait(120) and (installer.state, installer.error) == ("done", "")
    said = "\n".join(installer.lines(200))
    assert "Successfully installed viewtime-0.1.0" in said and "viewtime 0.1.0" in said
    found = addon.find.find_python("", "", order.folder, order.folder)
    assert found.source == "installed by this extension"
    note = json.loads((order.folder / addon.find.INSTALLED).read_text())
    assert note["package"] == order.package
    addon.install.remove(order.folder)
    assert not order.folder.exists()


def test_offline_pip_may_ask_no_index_even_when_the_environment_names_one(
    addon, order, monkeypatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    with_dependencies = addon.install.Installer(
        addon.install.Order(**{**vars(order), "dependencies": True})
    )
    with_dependencies.start()
    assert with_dependencies.wait(120) and with_dependencies.state == "failed"
    assert "No matching distribution found for torch" in with_dependencies.error, (
        "its dependency is not in the wheel's folder"
    )
    assert "127.0.0.1:9" not in "\n".join(with_dependencies.lines(200))
    assert not order.folder.exists(), "nothing half-made is left"


def test_a_cancelled_installation_leaves_nothing_and_no_process(addon, order) -> None:
    installer = addon.install.Installer(order)
    installer.start()
    until(lambda: installer._process is not None)
    process = installer._process
    installer.cancel()
    assert installer.wait(30) and installer.state == "cancelled"
    assert not order.folder.exists() and not runs(process.pid)


def test_an_interpreter_that_makes_no_environment_is_told_in_words(addon, order, tmp_path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'No module named venv' >&2\nexit 1\n")
    broken.chmod(0o755)
    installer = addon.install.Installer(
        addon.install.Order(**{**vars(order), "python": str(broken)})
    )
    installer.start()
    assert installer.wait(30) and installer.state == "failed"
    assert "cannot make a virtual environment (No module named venv)" in installer.error
    assert not order.folder.exists()


def test_a_folder_that_is_not_ours_is_never_removed(addon, order) -> None:
    order.folder.mkdir()
    (order.folder / "thesis.txt").write_text("precious")
    installer = addon.install.Installer(order)
    installer.start()
    assert installer.wait(30) and installer.state == "failed"
    assert "did not make" in installer.error
    assert (order.folder / "thesis.txt").read_text() == "precious"


def test_the_remains_of_a_cut_off_installation_make_room(addon, order) -> None:
    order.folder.mkdir()
    (order.folder / addon.install.OURS).touch()
    (order.folder / "half").write_text("")
    installer = addon.install.Installer(order)
    installer.start()
    assert installer.wait(120) and installer.state == "done"
    assert not (order.folder / "half").exists()


def test_without_online_access_only_an_offline_installation_is_allowed(
    addon, settings, tiny_wheel, backend_python
) -> None:
    if not bpy.app.online_access:
        with pytest.raises(RuntimeError, match="Online access is off"):
            bpy.ops.viewtime.backend_install()
    with pytest.raises(RuntimeError, match="a wheel or a folder is needed"):
        bpy.ops.viewtime.backend_install(offline=True)
    done = bpy.ops.viewtime.backend_install(
        source=str(tiny_wheel), offline=True, dependencies=False, python=str(backend_python)
    )
    assert done == {"FINISHED"} and addon.preferences.installed()
    assert bpy.ops.viewtime.backend_uninstall() == {"FINISHED"}
    assert not addon.preferences.install_dir().exists()
    assert not bpy.ops.viewtime.backend_uninstall.poll()


def test_what_is_installed_by_default_is_this_very_version(addon) -> None:
    assert addon.backend_ops.version() == "0.1.0"


# ---- the cache -----------------------------------------------------------------------------------


def test_cleaning_touches_our_own_files_alone_and_nothing_of_a_running_job(addon, tmp_path) -> None:
    data = tmp_path / "data"
    ours = ["previews/old.npy", "logs/worker-auto.log", "backend.log", "own-1/previews/x.npy"]
    kept = ["previews/active.npy", "jobs.sqlite", "previews/mine.png", "notes/backend.log", "a.log"]
    for name in ours + kept:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"x" * 1000)
    assert addon.cache.size_of(data) == addon.cache.Size(cache=5000, total=9000)
    freed = addon.cache.clean(data, active={"active"}, running=False)
    assert freed == 4000
    left = sorted(p.relative_to(data).as_posix() for p in data.rglob("*") if p.is_file())
    assert left == sorted(kept)


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_link_in_the_cache_leads_nowhere(addon, tmp_path) -> None:
    (tmp_path / "film.npy").write_bytes(b"precious")
    (tmp_path / "data" / "previews").mkdir(parents=True)
    (tmp_path / "data" / "previews" / "a.npy").symlink_to(tmp_path / "film.npy")
    addon.cache.clean(tmp_path / "data", active=(), running=False)
    assert (tmp_path / "film.npy").exists() and (tmp_path / "data/previews/a.npy").is_symlink()


def test_the_clean_button_spares_the_picture_of_the_job_that_runs(
    addon, settings, empty_scene, backend_python, tmp_path
) -> None:
    settings().backend_python = str(backend_python)
    viewtime = empty_scene.viewtime
    viewtime.capture_folder = str(write_capture(tmp_path / "long", times=250))
    viewtime.output_folder = str(tmp_path / "out")
    bpy.ops.viewtime.generate(wait=False)
    pictures = tmp_path / "data" / "previews"
    until(lambda: addon.session.pump(0.1) and list(pictures.glob("*.npy")), 60)
    (pictures / "0123.npy").write_bytes(b"x" * 500)
    assert bpy.ops.viewtime.cache_measure() == {"FINISHED"}
    before = addon.link.known.size
    assert bpy.ops.viewtime.cache_clean() == {"FINISHED"}
    assert [path.stem for path in pictures.glob("*.npy")] == [viewtime.job_id]
    assert addon.link.known.size.cache < before.cache
    bpy.ops.viewtime.cancel()
    assert viewtime.job_state == "cancelled"
