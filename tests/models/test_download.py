# SPDX-License-Identifier: Apache-2.0
"""Downloads, by the real huggingface_hub in a process of its own, from a small hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from viewtime.models import ModelError
from viewtime.models.open_weights import CARDS, card, card_as_text, pinned_as_text
from viewtime.models.pins import Pin

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors": b"weights" * 1000,
    "text_encoder/pytorch_model.bin": b"a pickle",
    "README.md": b"words",
}
RUN = """
import sys, json
from dataclasses import replace
from pathlib import Path
from viewtime.models import ModelError
from viewtime.models.download import download
from viewtime.models.open_weights import card
from viewtime.models.pins import Pin
seen = []
wanted = replace(card("Wan2.1-T2V-1.3B"), pin=Pin(*json.loads(sys.argv[2])))
try:
    folder = download(wanted, Path(sys.argv[1]), tries=3, pause=0.01,
                      on_file=lambda *x: seen.append(x))
    print(json.dumps([str(folder), seen]))
except ModelError as error:
    print(json.dumps(["error", str(error)]))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a download asks for. `fail` requests are answered by 503 first."""

    fail = 0
    gated = False
    asked: list[str] = []

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        type(self).asked.append(self.path)
        if type(self).gated:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()
            return
        if type(self).fail:
            type(self).fail -= 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if "/resolve/" in self.path:
            data = FILES[self.path.split(f"/resolve/{COMMIT}/")[1]]
            etag = hashlib.sha256(data).hexdigest()
        else:
            siblings = [{"rfilename": name} for name in FILES]
            data = json.dumps({"id": "x", "sha": COMMIT, "siblings": siblings}).encode()
            etag = "x"
        self.send_response(200)
        for name, value in {
            "Content-Length": len(data), "ETag": f'"{etag}"', "X-Repo-Commit": COMMIT,
            "Content-Type": "application/json",
        }.items():  # fmt: skip
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub():
    Hub.fail, Hub.gated, Hub.asked = 0, False, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(hub, folder, tmp_path, pin=()):
    answer = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), json.dumps(pin)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"),
             "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"},
    )  # fmt: skip
    return json.loads(answer.stdout.splitlines()[-1])


def test_what_is_wanted_comes_whole_and_no_pickle(hub, tmp_path):
    Hub.fail = 1
    folder, seen = run(hub, tmp_path / "wan", tmp_path)
    came = {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in Path(folder).rglob("*")
        if p.is_file() and ".cache" not in p.parts and p.name != "viewtime-download.json"
    }
    wanted = ("config.json", "transformer/diffusion_pytorch_model.safetensors")
    assert came == {name: FILES[name] for name in wanted}
    assert [tuple(x) for x in seen] == [(1, 2, wanted[0]), (2, 2, wanted[1])]
    record = json.loads((Path(folder) / "viewtime-download.json").read_text())
    assert record["commit"] == COMMIT
    assert record["sha256"][wanted[1]] == hashlib.sha256(FILES[wanted[1]]).hexdigest()


def test_a_second_download_asks_for_the_first_ones_commit_and_notices_a_changed_file(hub, tmp_path):
    folder, _ = run(hub, tmp_path / "wan", tmp_path)
    Hub.asked = []
    assert run(hub, tmp_path / "wan", tmp_path)[0] == folder
    assert any(f"/revision/{COMMIT}" in path for path in Hub.asked)
    record = Path(folder) / "viewtime-download.json"
    values = json.loads(record.read_text())
    values["sha256"]["config.json"] = "0" * 64
    record.write_text(json.dumps(values))
    error, words = run(hub, tmp_path / "wan", tmp_path)
    assert error == "error" and "config.json: not the file that was downloaded first" in words
    values["repo"] = "someone/else"
    record.write_text(json.dumps(values))
    assert "holds someone/else, not Wan-AI" in run(hub, tmp_path / "wan", tmp_path)[1]


def test_a_card_that_pins_gets_its_commit_and_its_files_or_nothing(hub, tmp_path):
    name = "transformer/diffusion_pytorch_model.safetensors"
    right = hashlib.sha256(FILES[name]).hexdigest()
    folder, _ = run(hub, tmp_path / "wan", tmp_path, pin=(COMMIT, {name: right}))
    assert any(f"/revision/{COMMIT}" in path for path in Hub.asked)
    assert (Path(folder) / name).read_bytes() == FILES[name]

    error, words = run(hub, tmp_path / "other", tmp_path, pin=(COMMIT, {name: "0" * 64}))
    assert error == "error"
    assert f"{name}: not the file that its card pins: sha256 {right}, must be 0000" in words
    assert not (tmp_path / "other" / "viewtime-download.json").exists()
    absent = run(hub, tmp_path / "third", tmp_path, pin=(COMMIT, {"vae/config.json": right}))
    assert absent[0] == "error" and "has no vae/config.json" in absent[1]
    moved = run(hub, folder, tmp_path, pin=("f" * 40, {}))
    assert moved[0] == "error" and f"holds commit {COMMIT}" in moved[1]


def test_a_hub_that_stays_down_or_refuses_is_told_in_one_sentence(hub, tmp_path):
    Hub.fail = 10**6
    error, words = run(hub, tmp_path / "wan", tmp_path)
    assert error == "error" and "Wan2.1-T2V-1.3B: asking for its files failed 3 times" in words
    Hub.fail, Hub.gated = 0, True
    error, words = run(hub, tmp_path / "wan", tmp_path)
    assert error == "error" and "accept its terms at https://" in words


def test_every_card_names_its_terms_and_what_pins_it():
    assert len({c.name for c in CARDS}) == len(CARDS) == 6
    for one in CARDS:
        text = card_as_text(one)
        assert one.licence in text and one.url in text
        assert ("non-commercial use only" in text) == (not one.commercial)
        assert re.fullmatch("[0-9a-f]{40}", one.revision) and one.revision in text
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in one.sha256.values())
        # A card says what it knows and what the first download alone will tell.
        assert all(f"{value} {name}" in text for name, value in one.sha256.items())
        assert ("pinned at first download" in text) == (not one.sha256)
    unpinned = replace(CARDS[0], pin=Pin())
    assert "commit   pinned at first download" in card_as_text(unpinned)
    assert pinned_as_text(unpinned) == "pinned at first download"
    assert pinned_as_text(card("AnySplat")) == "commit d2e8c343, 1 sha256"
    assert pinned_as_text(card("Wan2.1-T2V-14B")).endswith("sha256 from first download")
    assert card("wan-ai/wan2.1-t2v-14b-diffusers").name == "Wan2.1-T2V-14B"
    with pytest.raises(ModelError, match="'Sora' is no model to download; there are Wan2.1-T2V-1"):
        card("Sora")
