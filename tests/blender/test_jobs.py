# SPDX-License-Identifier: GPL-3.0-or-later
"""The job list, estimates, pictures, progressive import and messages, against the real backend.
Nothing is mocked; every test ends with no backend of its own left running."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import bpy
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from backend_help import runs, until, write_capture  # noqa: E402


@pytest.fixture(scope="module")
def addon(viewtime: str) -> SimpleNamespace:
    names = ("session", "link", "preferences", "picture", "backend", "panels.generate")
    names += ("backend.keeper", "backend.process", "backend.client", "backend.desk")
    modules = {n.split(".")[-1]: importlib.import_module(f"{viewtime}.{n}") for n in names}
    return SimpleNamespace(**modules)


@pytest.fixture
def settings(viewtime: str, addon, backend_python: Path, tmp_path: Path) -> Iterator:
    """A function that gives the add-on's preferences, which point at a fresh data folder."""

    def look():
        return bpy.context.preferences.addons[viewtime].preferences

    look().backend_python, look().data_dir = str(backend_python), str(tmp_path / "data")
    yield look
    if addon.session.current() is not None:
        addon.session.current().leave()
    addon.link.keeper.stop()
    addon.link.listen()
    for name in ("backend_python", "data_dir", "address", "token", "backend_mode"):
        look().property_unset(name)


@pytest.fixture
def scene(empty_scene: bpy.types.Scene, settings, tmp_path: Path) -> bpy.types.Scene:
    empty_scene.viewtime.capture_folder = str(write_capture(tmp_path / "capture", times=2))
    empty_scene.viewtime.output_folder = str(tmp_path / "out")
    return empty_scene


def listed() -> list[tuple[str, str]]:
    return [(job.job_id, job.state) for job in bpy.context.window_manager.viewtime.jobs]


# ---- the list ------------------------------------------------------------------------------------


def test_the_jobs_of_an_earlier_blender_are_listed_followed_and_removed(scene, tmp_path) -> None:
    bpy.ops.viewtime.generate(wait=True)
    job = scene.viewtime.job_id
    bpy.ops.viewtime.backend_stop()
    assert listed() == [] or bpy.ops.viewtime.jobs_refresh.poll() is False
    # What another Blender sees that is started on this data folder, with a new file.
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    bpy.ops.viewtime.backend_start()
    assert bpy.ops.viewtime.jobs_refresh() == {"FINISHED"}
    assert listed() == [(job, "succeeded")]
    assert bpy.ops.viewtime.job_follow(job_id=job) == {"FINISHED"}
    session = importlib.import_module("bl_ext.user_default.viewtime.session")
    until(lambda: session.pump(0.2) == "succeeded")
    assert [o for o in bpy.context.scene.objects if o.viewtime.sequence_id]
    assert bpy.ops.viewtime.job_remove() == {"FINISHED"}  # the one that is chosen
    assert listed() == []
    assert (tmp_path / "out" / "splats" / "sequence.json").is_file()
    with pytest.raises(RuntimeError, match="there is no job|There is no job"):
        bpy.ops.viewtime.job_remove(job_id=job)


def test_a_cancelled_job_is_tried_again_from_the_list(addon, scene, tmp_path) -> None:
    scene.viewtime.capture_folder = str(write_capture(tmp_path / "long", times=60))
    bpy.ops.viewtime.generate(wait=False)
    until(lambda: addon.session.pump(0.1) == "running", 60)
    assert not bpy.ops.viewtime.job_follow.poll(), "one job at a time"
    bpy.ops.viewtime.cancel()
    job = scene.viewtime.job_id
    bpy.ops.viewtime.jobs_refresh()
    assert listed() == [(job, "cancelled")]
    assert bpy.ops.viewtime.job_retry(job_id=job) == {"FINISHED"}
    until(lambda: addon.session.pump(0.2) == "succeeded", 60)
    assert scene.viewtime.job_id == job


def test_the_list_is_not_saved_in_the_file(scene, tmp_path) -> None:
    bpy.ops.viewtime.generate(wait=True)
    bpy.ops.viewtime.jobs_refresh()
    assert listed()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a.blend"))
    bpy.ops.viewtime.job_remove()
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "a.blend"), load_ui=True)
    assert listed() == []


# ---- before and while it runs --------------------------------------------------------------------


def test_an_estimate_is_asked_in_the_thread_and_kept(addon, scene) -> None:
    capture = scene.viewtime.capture_folder
    assert addon.session.estimate(capture, {"route": "captured"}) is None, "no backend runs"
    bpy.ops.viewtime.backend_start()
    assert addon.session.estimate(capture, {"route": "captured"}) is None, "it never waits"
    found = until(
        lambda: (
            addon.link.listen(0.1),
            addon.session.estimate(capture, {"route": "captured"}),
        )[1]
    )
    assert found["basis"] == "formula" and found["work"]["views"] == 3
    words = addon.generate.estimate_in_words(found)
    assert "3 x 2 frames of 32 x 32 px, a first guess" in words and " GB " in words
    addon.link.listen(0.3)
    assert addon.link.desk.idle()
    assert addon.session.estimate(capture, {"route": "captured"}) is found
    assert not addon.link.desk.busy("estimate"), "a kept answer asks nothing"


def test_a_refused_estimate_is_a_sentence(addon, scene) -> None:
    bpy.ops.viewtime.backend_start()
    ask = (scene.viewtime.capture_folder, {"device": "tpu"})
    words = until(lambda: (addon.link.listen(0.1), addon.session.estimate(*ask))[1])
    assert words.startswith("Device is 'tpu'")


def test_a_running_job_shows_its_first_steps_and_a_cancel_takes_them_back(
    addon, scene, tmp_path
) -> None:
    scene.viewtime.capture_folder = str(write_capture(tmp_path / "long", times=2000))
    bpy.ops.viewtime.generate(wait=False)
    playing = until(
        lambda: (
            addon.session.pump(0.1),
            [o for o in scene.objects if o.viewtime.sequence_id],
        )[1],
        60,
    )
    assert scene.viewtime.job_state == "running" and len(playing[0].data.points) > 100
    assert scene.viewtime.job_eta > 0 and scene.viewtime.job_message.startswith("Reconstruct")
    clouds = len(bpy.data.pointclouds)
    bpy.ops.viewtime.cancel()
    assert scene.viewtime.job_state == "cancelled"
    assert not [o for o in scene.objects if o.viewtime.sequence_id]
    assert len(bpy.data.pointclouds) == clouds - 1
    assert not (tmp_path / "out").exists()


def test_a_job_that_was_shown_while_it_ran_ends_as_one_object(scene) -> None:
    bpy.ops.viewtime.generate(wait=True)
    (ob,) = [o for o in scene.objects if o.viewtime.sequence_id]
    assert bpy.ops.viewtime.job_follow(job_id=scene.viewtime.job_id) == {"FINISHED"}
    assert [o for o in scene.objects if o.viewtime.sequence_id] == [ob]


def test_undo_takes_the_scene_back_but_not_the_job(addon, scene) -> None:
    """Background Blender has no undo: its handlers are called on a scene put back by hand."""
    bpy.ops.viewtime.generate(wait=True)
    job = scene.viewtime.job_id
    scene.viewtime.job_state, scene.viewtime.job_progress = "running", 0.2
    scene.viewtime.job_id, scene.viewtime.job_message = "", "Reconstruct 1 of 2"
    assert addon.session._undone in bpy.app.handlers.redo_post
    for handler in bpy.app.handlers.undo_post:
        handler(scene)
    shown = scene.viewtime
    assert (shown.job_state, shown.job_message, shown.job_id) == ("succeeded", "Done", job)
    assert shown.job_progress == 1.0


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (10, 300), (64, 64)])
def test_a_picture_is_cut_into_square_tiles_without_loss(addon, shape) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    tiles = addon.picture.tiles(picture)
    assert 1 <= len(tiles) <= 4 and {tile.shape for tile in tiles} == {(*tiles[0].shape[:1] * 2, 4)}
    whole = np.concatenate(tiles, axis=1)
    rows, columns = np.nonzero(whole[..., 3])
    seen = whole[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1, :3]
    assert np.array_equal(np.round(seen * 255), picture)


# ---- one thread ----------------------------------------------------------------------------------


def test_all_requests_are_made_by_one_thread_that_is_not_the_main_one(
    addon, scene, monkeypatch
) -> None:
    callers = set()
    request = addon.client.requests.Session.request

    def spy(*arguments, **keywords):
        callers.add(threading.current_thread().name)
        assert keywords["timeout"], "a request without a timeout"
        return request(*arguments, **keywords)

    monkeypatch.setattr(addon.client.requests.Session, "request", spy)
    bpy.ops.viewtime.backend_start()
    bpy.ops.viewtime.generate(wait=True)
    bpy.ops.viewtime.jobs_refresh()
    bpy.ops.viewtime.job_remove()
    assert callers == {"viewtime desk"}


def test_a_question_that_still_waits_is_replaced_by_the_newer_one(addon) -> None:
    desk, gate, ran = addon.desk.Desk(), threading.Event(), []
    desk.ask("first", gate.wait)
    until(lambda: desk.busy("first"))
    for number in range(5):
        desk.ask("again", lambda number=number: ran.append(number))
    gate.set()
    until(lambda: [a.name for a in desk.answers(0.1)][-1:] == ["again"] or ran)
    assert ran == [4]
    desk.close()


def test_a_mistake_inside_a_question_is_an_answer_and_the_thread_goes_on(addon, capsys) -> None:
    desk = addon.desk.Desk()
    desk.ask("bad", lambda: 1 / 0)
    (answer,) = desk.answers(10)
    assert "ZeroDivisionError" in str(answer.error)
    desk.ask("good", lambda: 7)
    (answer,) = desk.answers(10)
    assert answer.value == 7
    desk.close()
    capsys.readouterr()


# ---- several Blenders ----------------------------------------------------------------------------


def test_two_blenders_share_the_backend_of_the_first(addon, backend_python, tmp_path) -> None:
    first, second = addon.keeper.Keeper(), addon.keeper.Keeper()
    choice = addon.keeper.Choice(str(backend_python), tmp_path / "data")
    try:
        one, two = first.get(choice), second.get(choice)
        assert one.owned and not two.owned and one.instance == two.instance
        assert two.client.jobs() == []
        note = tmp_path / "data" / "backend.json"
        if os.name != "nt":
            assert note.stat().st_mode & 0o077 == 0, "the token is this user's alone"
        first.stop()
        assert not two.alive() and not note.exists()
        again = second.get(choice)
        assert again.owned, "the second Blender goes on with one of its own"
    finally:
        first.stop()
        second.stop()


def test_two_blenders_may_each_have_their_own(addon, backend_python, tmp_path) -> None:
    first, second = addon.keeper.Keeper(), addon.keeper.Keeper()
    choice = addon.keeper.Choice(str(backend_python), tmp_path / "data", mode="OWN")
    try:
        one, two = first.get(choice), second.get(choice)
        assert one.owned and two.owned and one.instance != two.instance
        assert one.log.parent.name == "own-1" and two.log.parent.name == "own-2"
    finally:
        first.stop()
        second.stop()


def test_budgets_of_the_preferences_reach_the_backend(addon, scene, settings) -> None:
    settings().memory_megabytes = 20
    try:
        with pytest.raises(RuntimeError, match="its limit is 20 MiB"):
            bpy.ops.viewtime.generate(wait=True)
    finally:
        settings().property_unset("memory_megabytes")


# ---- what goes wrong -----------------------------------------------------------------------------


def problem(addon, **preferences: object) -> tuple[str, str]:
    """The sentence and the button after backend_start has failed."""
    with pytest.raises(RuntimeError):
        bpy.ops.viewtime.backend_start()
    return addon.link.known.problem, addon.link.known.remedy


def by_hand(backend_python: Path, folder: Path, addon) -> tuple[subprocess.Popen, dict]:
    command = [str(backend_python), "-m", "viewtime", "serve", "--data", str(folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=addon.process.clean_environment()
    )
    process.stdout.readline()
    return process, json.loads((folder / "backend.json").read_text())


def test_joining_by_address_and_token(addon, scene, settings, backend_python, tmp_path) -> None:
    process, note = by_hand(backend_python, tmp_path / "elsewhere", addon)
    try:
        settings().backend_mode = "ATTACH"
        settings().backend_python = "/no/such/python"
        settings().address = str(note["port"])
        settings().token = "a token of yesterday"
        words, remedy = problem(addon)
        assert "refused the token" in words and remedy == "PREFERENCES"
        settings().token = note["token"]
        assert bpy.ops.viewtime.backend_start() == {"FINISHED"}
        assert addon.link.known.problem == ""
        assert bpy.ops.viewtime.generate(wait=True) == {"FINISHED"}
        bpy.ops.viewtime.backend_stop()
        assert process.poll() is None, "what we joined is not ours to stop"
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a.blend"), compress=False)
        assert note["token"].encode() not in (tmp_path / "a.blend").read_bytes()
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "a port, or HOST:PORT, is needed"),
        ("70000", "a port, or HOST:PORT, is needed"),
        ("192.168.1.5:4711", "is not this computer"),
        ("127.0.0.1:9", "no backend answers at 127.0.0.1:9"),
    ],
)
def test_a_bad_address_is_a_sentence_and_leads_to_the_preferences(
    addon, scene, settings, address, words
) -> None:
    settings().backend_mode, settings().address = "ATTACH", address
    said, remedy = problem(addon)
    assert words in said.replace("No backend", "no backend") and remedy == "PREFERENCES"


def test_another_program_on_the_port_is_told_apart(addon, scene, settings) -> None:
    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        settings().backend_mode = "ATTACH"
        settings().address = str(server.server_address[1])
        said, remedy = problem(addon)
        assert "another program has taken the port" in said and remedy == "PREFERENCES"
    finally:
        server.shutdown()
        server.server_close()


def test_a_missing_package_of_the_backend_leads_to_the_installation(
    addon, scene, settings, backend_python, tmp_path
) -> None:
    """An environment with viewtime but without what it needs: as when pip was cut off."""
    bare = tmp_path / "bare"
    subprocess.run([backend_python, "-m", "venv", "--without-pip", bare], check=True)
    root = Path(__file__).resolve().parents[2]
    (site,) = bare.glob("lib/python3*/site-packages")
    (site / "v.pth").write_text(f"{root / 'backend'}\n{root / 'kernels'}\n")
    settings().backend_python = str(bare / "bin" / "python")
    said, remedy = problem(addon)
    assert "installation is incomplete" in said and remedy == "INSTALL"


def test_no_backend_at_all_leads_to_the_installation(addon, scene, settings, monkeypatch) -> None:
    settings().backend_python = ""
    monkeypatch.delenv("VIEWTIME_BACKEND_PYTHON", raising=False)
    said, remedy = problem(addon)
    assert "install the backend" in said and remedy == "INSTALL"
    generate = importlib.import_module(f"{addon.link.__package__}.readiness.generate")
    assert "Install the backend" in generate.missing_for_generate(scene, "", False)


def test_a_backend_that_is_killed_is_noticed_and_started_again(addon, scene) -> None:
    bpy.ops.viewtime.backend_start()
    dead = addon.link.keeper.current()
    dead.process.kill()
    dead.process.wait()
    assert addon.link.in_words() == "Backend: ended"
    with pytest.raises(RuntimeError, match="does not answer"):
        bpy.ops.viewtime.jobs_refresh()
    assert addon.link.known.remedy == "START"
    until(lambda: (addon.link.listen(0.1), addon.link.keeper.current() is None)[1])
    bpy.ops.viewtime.backend_start()
    assert addon.link.known.problem == "" and runs(addon.link.keeper.current().pid)
