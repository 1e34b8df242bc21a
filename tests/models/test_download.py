# SPDX-License-Identifier: Apache-2.0
"""Downloads, by the real huggingface_hub in a process of its own, from a small hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from viewtime.models import ModelError
from viewtime.models.open_weights import CARDS, card, card_as_text

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors": b"weights" * 1000,
    "text_encoder/pytorch_model.bin": b"a pickle",
    "README.md": b"words",
}
RUN = """
import sys, json
from pathlib import Path
from viewtime.models import ModelError
from viewtime.models.download import download
from viewtime.models.open_weights import card
seen = []
try:
    folder = download(card("Wan2.1-T2V-1.3B"), Path(sys.argv[1]), tries=3, pause=0.01,
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


def run(hub, folder, tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", RUN, str(folder)], capture_output=True, text=True, check=True,
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


def test_a_hub_that_stays_down_or_refuses_is_told_in_one_sentence(hub, tmp_path):
    Hub.fail = 10**6
    error, words = run(hub, tmp_path / "wan", tmp_path)
    assert error == "error" and "Wan2.1-T2V-1.3B: asking for its files failed 3 times" in words
    Hub.fail, Hub.gated = 0, True
    error, words = run(hub, tmp_path / "wan", tmp_path)
    assert error == "error" and "accept its terms at https://" in words


def test_every_card_names_its_terms():
    assert len({c.name for c in CARDS}) == len(CARDS) == 6
    for one in CARDS:
        text = card_as_text(one)
        assert one.licence in text and one.url in text
        assert ("non-commercial use only" in text) == (not one.commercial)
    assert card("wan-ai/wan2.1-t2v-14b-diffusers").name == "Wan2.1-T2V-14B"
    with pytest.raises(ModelError, match="'Sora' is no model to download; there are Wan2.1-T2V-1"):
        card("Sora")
