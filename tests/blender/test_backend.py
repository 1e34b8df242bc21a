# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on against the real backend: spawned, attached to, cancelled, killed, restarted.
Nothing is mocked; every test ends with no backend of its own left running."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import bpy
import pytest
import requests

sys.path.insert(0, str(Path(__file__).parent))
from backend_help import runs, until, write_capture  # noqa: E402


@pytest.fixture(scope="module")
def addon(viewtime: str) -> SimpleNamespace:
    """The installed add-on's modules."""
    names = ("session", "link", "preferences", "joblist", "backend")
    names += tuple(f"backend.{n}" for n in ("client", "process", "watch", "keeper", "desk"))
    modules = {n.split(".")[-1]: importlib.import_module(f"{viewtime}.{n}") for n in names}
    return SimpleNamespace(**modules)


@pytest.fixture
def backend(addon: SimpleNamespace, backend_python: Path, tmp_path: Path) -> Iterator:
    started = addon.process.start(backend_python, tmp_path / "data")
    yield started
    started.stop()


@pytest.fixture
def preferences(viewtime: str, backend_python: Path, tmp_path: Path) -> Iterator:
    """The add-on's preferences point at the real backend and a fresh data folder."""

    # Looked up each time: opening a file or enabling the add-on again frees what was held.
    def point_at(python: str, data_dir: str) -> None:
        settings = bpy.context.preferences.addons[viewtime].preferences
        settings.backend_python, settings.data_dir = python, data_dir

    point_at(str(backend_python), str(tmp_path / "data"))
    yield
    session = importlib.import_module(f"{viewtime}.session")
    if session.current() is not None:
        session.current().leave()
    importlib.import_module(f"{viewtime}.link").keeper.stop()
    point_at("", "")


@pytest.fixture
def scene(empty_scene: bpy.types.Scene, preferences: object, tmp_path: Path) -> bpy.types.Scene:
    """A scene whose capture is a full grid of two times with depth."""
    empty_scene.viewtime.capture_folder = str(write_capture(tmp_path / "capture", times=2))
    empty_scene.viewtime.output_folder = str(tmp_path / "out")
    return empty_scene


# ---- process -------------------------------------------------------------------------------------


def test_a_started_backend_answers_its_token_and_refuses_others(addon, backend) -> None:
    assert backend.owned and backend.alive()
    assert backend.client.health()["instance"] == backend.instance
    stranger = addon.client.Client(backend.client.port, "not the token")
    with pytest.raises(addon.backend.BackendRefused) as refusal:
        stranger.jobs()
    assert refusal.value.status == 401
    url = f"http://127.0.0.1:{backend.client.port}/health"
    assert requests.get(url, timeout=5).status_code == 401


def test_the_backend_runs_in_another_interpreter_without_blenders_paths(
    addon, backend_python, tmp_path, monkeypatch
) -> None:
    # A PYTHONPATH that breaks every interpreter that listens to it.
    (tmp_path / "json.py").write_text("raise SystemExit('PYTHONPATH reached the backend')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    backend = addon.process.start(backend_python, tmp_path / "data")
    try:
        assert backend.pid != os.getpid() and backend.alive()
    finally:
        backend.stop()


def test_a_proxy_in_the_environment_is_not_asked(addon, backend, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert backend.client.twin().health()["protocol"] == addon.backend.PROTOCOL


def test_stopping_ends_the_process_and_a_second_stop_does_nothing(addon, backend) -> None:
    pid = backend.pid
    backend.stop()
    assert not runs(pid)
    backend.stop()


def test_we_attach_to_a_backend_started_by_hand_and_never_stop_it(
    addon, backend_python, tmp_path
) -> None:
    command = [str(backend_python), "-m", "viewtime", "serve", "--data", str(tmp_path)]
    by_hand = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=addon.process.clean_environment()
    )
    try:
        assert by_hand.stdout is not None
        instance = json.loads(by_hand.stdout.readline())["instance"]
        keeper = addon.keeper.Keeper()
        attached = keeper.get(addon.keeper.Choice("never used", tmp_path))
        assert not attached.owned and attached.instance == instance
        assert attached.client.jobs() == []
        keeper.stop()
        assert by_hand.poll() is None
        assert requests.get(f"http://127.0.0.1:{attached.client.port}/", timeout=5).status_code
    finally:
        by_hand.terminate()
        by_hand.wait(10)


def test_a_stale_announcement_is_not_believed(addon, backend, tmp_path) -> None:
    # The port answers and even takes the token, but it is another backend than announced.
    announced = {
        "port": backend.client.port,
        "token": backend.client.token,
        "pid": os.getpid(),
        "instance": "of yesterday",
        "protocol": addon.backend.PROTOCOL,
    }
    (tmp_path / "backend.json").write_text(json.dumps(announced))
    assert addon.process.attach(tmp_path) is None
    (tmp_path / "backend.json").write_text("{")
    with pytest.raises(addon.backend.BackendError, match="backend.json"):
        addon.process.attach(tmp_path)


def test_the_backend_ends_when_blender_is_killed(addon, viewtime, backend_python, tmp_path) -> None:
    package = Path(sys.modules[viewtime].__file__).parent
    script = (
        "import importlib.util, sys, time\n"
        "from pathlib import Path\n"
        f"spec = importlib.util.spec_from_file_location('backend', {str(package)!r}"
        " + '/backend/__init__.py')\n"
        "module = sys.modules['backend'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "from backend import process\n"
        f"started = process.start({str(backend_python)!r}, Path({str(tmp_path / 'data')!r}))\n"
        "print(started.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert runs(pid)
    parent.kill()
    parent.wait()
    until(lambda: not runs(pid), 10)


# ---- what goes wrong at the start ----------------------------------------------------------------


def test_a_missing_interpreter_is_named(addon, tmp_path) -> None:
    with pytest.raises(addon.backend.BackendError, match="no-such-python.*preferences"):
        addon.process.start(tmp_path / "no-such-python", tmp_path / "data")
    with pytest.raises(addon.backend.BackendError, match="no backend Python is set"):
        addon.process.start("", tmp_path / "data")


def test_an_interpreter_without_viewtime_is_told_apart(addon, tmp_path) -> None:
    # Blender's own interpreter: it has the add-on, never the backend.
    with pytest.raises(addon.backend.BackendError, match="has no viewtime: install it"):
        addon.process.start(sys.executable, tmp_path / "data")


def test_a_data_folder_in_use_is_refused_in_words(addon, backend, backend_python, tmp_path) -> None:
    with pytest.raises(addon.backend.BackendError, match=f"process {backend.pid}.*data folder"):
        addon.process.start(backend_python, tmp_path / "data")
    assert backend.alive(), "the refused start must leave the first backend alone"


def test_another_protocol_is_refused_and_its_process_ended(
    addon, backend_python, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(addon.process, "PROTOCOL", 99)
    with pytest.raises(addon.backend.BackendError, match="speaks protocol 2, this add-on 99") as e:
        addon.process.start(backend_python, tmp_path / "data")
    assert e.value.remedy == addon.backend.INSTALL
    monkeypatch.undo()
    # The data folder is free again, which it would not be if that process still ran.
    addon.process.start(backend_python, tmp_path / "data").stop()


# ---- jobs ----------------------------------------------------------------------------------------


def test_one_key_is_one_job(addon, backend, tmp_path) -> None:
    capture = str(write_capture(tmp_path / "capture", times=2))
    request = (capture, str(tmp_path / "out"), {"route": "captured"})
    first = backend.client.submit(*request, key="one")
    assert backend.client.submit(*request, key="one")["id"] == first["id"]
    assert len(backend.client.jobs()) == 1


def test_generate_brings_the_splats_into_the_scene(scene, tmp_path) -> None:
    assert bpy.ops.viewtime.generate(wait=True) == {"FINISHED"}
    settings = scene.viewtime
    assert (settings.job_state, settings.job_message) == ("succeeded", "Done")
    assert settings.job_progress == 1.0
    (ob,) = [o for o in scene.objects if o.viewtime.sequence_id]
    assert Path(bpy.path.abspath(ob.viewtime.folder)) == tmp_path / "out" / "splats"
    assert len(ob.data.points) > 100


def test_cancel_answers_within_a_second_and_leaves_nothing_behind(addon, scene, tmp_path) -> None:
    folder = write_capture(tmp_path / "long", times=250)
    scene.viewtime.capture_folder = str(folder)
    assert bpy.ops.viewtime.generate(wait=False) == {"FINISHED"}
    until(lambda: addon.session.pump(0.1) == "running" and scene.viewtime.job_progress > 0, 60)
    before = scene.viewtime.job_progress
    bpy.ops.viewtime.cancel()
    assert scene.viewtime.job_progress - before < 0.3  # of 250 steps
    assert scene.viewtime.job_state == "cancelled"
    assert not (tmp_path / "out").exists()
    assert not [o for o in scene.objects if o.viewtime.sequence_id]
    # The same backend takes the next job.
    scene.viewtime.capture_folder = str(tmp_path / "capture")
    assert bpy.ops.viewtime.generate(wait=True) == {"FINISHED"}


def test_cancelling_before_the_backend_is_up_submits_nothing(addon, scene) -> None:
    bpy.ops.viewtime.generate(wait=False)
    bpy.ops.viewtime.cancel()
    assert scene.viewtime.job_state == "cancelled" and addon.session.current() is None
    # The thread was on its way to start the backend; only its end shows what it did there.
    until(lambda: (addon.link.listen(0.05), addon.link.desk.idle())[1], 60)
    bpy.ops.viewtime.backend_start()
    assert addon.link.keeper.current().client.twin().jobs() == []


def test_a_backend_that_dies_mid_job_is_one_message_and_generate_goes_on(
    addon, scene, tmp_path
) -> None:
    scene.viewtime.capture_folder = str(write_capture(tmp_path / "long", times=60))
    bpy.ops.viewtime.generate(wait=False)
    until(lambda: addon.session.pump(0.1) == "running" and scene.viewtime.job_progress > 0, 60)
    job, dead = scene.viewtime.job_id, addon.link.keeper.current()
    dead.process.kill()
    until(lambda: addon.session.pump(0.2) != "running")
    assert scene.viewtime.job_state == "interrupted"
    assert addon.link.known.remedy == addon.backend.START
    until(lambda: (addon.link.listen(0.1), addon.link.desk.idle())[1])
    assert "The backend ended" in addon.link.known.problem, "nothing that came later hides it"
    assert "The backend ended" in scene.viewtime.job_message
    assert str(dead.log) in scene.viewtime.job_message
    assert addon.session.current() is None
    until(lambda: addon.session.pump(0.1) and addon.link.in_words() == "Backend: not running")
    # The job was accepted, so it goes on, once, where it is asked for again.
    assert bpy.ops.viewtime.generate(wait=True) == {"FINISHED"}
    assert scene.viewtime.job_id == job
    assert addon.link.keeper.current().pid != dead.pid


def test_a_reopened_file_finds_its_job_again(addon, scene, tmp_path) -> None:
    scene.viewtime.capture_folder = str(write_capture(tmp_path / "long", times=60))
    bpy.ops.viewtime.generate(wait=False)
    until(lambda: addon.session.pump(0.1) == "running", 60)
    job = scene.viewtime.job_id
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "shot.blend"))
    reopened = bpy.context.scene
    assert addon.session.current() is None
    assert "saved while its job ran" in reopened.viewtime.job_message
    assert bpy.ops.viewtime.generate(resume=True) == {"FINISHED"}
    assert reopened.viewtime.job_id == job
    assert [o for o in reopened.objects if o.viewtime.sequence_id]


def test_disabling_the_addon_ends_the_backend(addon, viewtime, scene) -> None:
    import addon_utils

    assert bpy.ops.viewtime.backend_start() == {"FINISHED"}
    pid = addon.link.keeper.current().pid
    addon_utils.disable(viewtime)
    try:
        assert not runs(pid)
    finally:
        addon_utils.enable(viewtime)


def test_backend_stop_ends_it(addon, scene) -> None:
    bpy.ops.viewtime.backend_start()
    pid = addon.link.keeper.current().pid
    assert bpy.ops.viewtime.backend_stop() == {"FINISHED"}
    assert not runs(pid) and addon.link.keeper.current() is None


# ---- bad input -----------------------------------------------------------------------------------


def refusal(**arguments: object) -> str:
    """What viewtime.generate says when it refuses."""
    with pytest.raises(RuntimeError) as error:
        bpy.ops.viewtime.generate(**arguments)
    return str(error.value)


def test_a_broken_capture_is_refused_before_any_backend_starts(addon, scene, tmp_path) -> None:
    (tmp_path / "capture" / "1.png").unlink()
    assert "1.png" in refusal()
    assert "1.png" in scene.viewtime.job_message and scene.viewtime.job_state == "failed"
    assert addon.link.keeper.current() is None


def test_an_error_of_the_run_arrives_in_words(scene, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.jpg").write_text("precious")
    assert "holiday.jpg" in refusal(wait=True)
    assert "holiday.jpg" in scene.viewtime.job_message
    assert (tmp_path / "out" / "holiday.jpg").read_text() == "precious"


def test_a_relative_folder_in_an_unsaved_file_is_refused(scene) -> None:
    scene.viewtime.output_folder = "//run"
    assert "Save the .blend first" in refusal()


def test_a_second_job_waits_for_the_first(addon, scene, tmp_path) -> None:
    bpy.ops.viewtime.generate(wait=False)
    assert "A job is running" in refusal(wait=False)
    bpy.ops.viewtime.cancel()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGSTOP")
def test_a_backend_that_hangs_does_not_hang_cancel(addon, scene, tmp_path) -> None:
    scene.viewtime.capture_folder = str(write_capture(tmp_path / "long", times=250))
    bpy.ops.viewtime.generate(wait=False)
    until(lambda: addon.session.pump(0.1) == "running", 60)
    process = addon.link.keeper.current().process
    os.kill(process.pid, signal.SIGSTOP)
    try:
        # It returns, while the thread that talks to the backend is stuck in a request to it.
        addon.session.current().cancel()
        assert scene.viewtime.job_state == "cancelling"
    finally:
        os.kill(process.pid, signal.SIGCONT)
    until(lambda: addon.session.pump(0.2) == "cancelled")
