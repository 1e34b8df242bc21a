# SPDX-License-Identifier: Apache-2.0
"""The command line as a person meets it: a process, its output, its exit code.
Never imports the command line into the test's own process, but for the checksums of doctor."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def viewtime(*arguments: object, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "viewtime", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **kwargs,
    )


def test_help_is_there_at_once_and_needs_no_library():
    done = viewtime("--help")
    assert done.returncode == 0
    for command in ("run", "serve", "doctor", "export", "convert", "train", "models"):
        assert command in done.stdout
    # Seconds of this process's own work, from its start: the machine may be busy with others.
    script = (
        "import sys, time\n"
        "from viewtime.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(time.process_time(), *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    seconds, *loaded = done.stderr.split()
    assert float(seconds) < 0.3
    assert "viewtime.cli" in loaded
    assert not set(loaded) & {"torch", "numba", "numpy", "fastapi", "diffusers", "PIL"}


def test_neither_package_nor_pipeline_nor_server_loads_torch():
    script = (
        "import sys, time\n"
        "began = time.process_time()\n"
        "import viewtime\n"
        "print(time.process_time() - began)\n"
        "import viewtime.pipeline, viewtime.server.app, viewtime.server.worker, viewtime.doctor\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    seconds, loaded = done.stdout.splitlines()
    assert float(seconds) < 0.5
    assert not set(loaded.split()) & {"torch", "numba", "diffusers", "transformers", "imageio"}


def test_run_then_export_gives_numbered_ply_files(full_capture, tmp_path):
    from viewtime_formats.ply import read_ply
    from viewtime_formats.splats import read_sequence

    done = viewtime("run", full_capture, tmp_path / "out", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("captured: 5 times, ")
    assert "reconstruct 5/5" in done.stderr
    done = viewtime("export", tmp_path / "out" / "splats", tmp_path / "ply", "--format", "ply")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "ply").iterdir())
    assert names == [f"step.000{t}.ply" for t in range(5)]
    sequence = read_sequence(tmp_path / "out" / "splats")
    assert len(read_ply(tmp_path / "ply" / names[3])) == len(sequence.step(3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "/no/capture", "/no/out"], "/no/capture: there is no such folder"),
        (["run", "/no/capture", "/no/out", "--size", "3"], "size is 3"),
        (["run", "/no/capture", "/no/out", "--threads", "0"], "--threads is 0"),
        (["run", "/no/capture", "/no/out", "--window", "8"], "window is '8'; views x times"),
        (["generate", "/no/capture", "/no/out", "--cache", "much"], "cache is 'much'; a number"),
        (["evaluate", "generator", "--cache", "0.1,a"], "cache is '0.1,a'; numbers above 0"),
        (["evaluate", "generator", "--window", "4"], "window is '4'; views x times"),
        (["evaluate", "generator", "--overlap", "1x1"], "--overlap does nothing without --window"),
        (["evaluate", "generator", "--scenes", "0"], "--scenes is 0; 1 or more"),
        (["evaluate", "generator", "--device", "cuda:99"], "this torch finds"),
        (["evaluate", "reconstructor", "--device", "cuda:99"], "this torch finds"),
        (["evaluate", "reconstructor", "--inputs", "2"], "--inputs does nothing without --folder"),
        (["evaluate", "reconstructor", "--table", "8", "--size", "96"], "--size does nothing"),
        (["export", "/no/splats", "/no/out"], "/no/splats"),
        (["convert", "video", "/no/clip.mp4", "/no/out"], "/no/clip.mp4"),
        (["convert", "photos", "/no/photos", "/no/out"], "/no/photos"),
        (["train", "generator", "/no/config.toml"], "/no/config.toml"),
        (["serve", "--parent-lease"], "stdin ended before the line with the token"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(arguments, words):
    done = viewtime(*arguments, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("viewtime: ") and words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_cancels_and_leaves_nothing(long_capture, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "viewtime", "run", str(long_capture), str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        # A shell gives its background jobs an ignored SIGINT, which children would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("reconstruct"):
            break
    assert (tmp_path / "out").is_dir()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 130
    assert "cancelled; nothing was left behind" in rest and "Traceback" not in rest
    assert not (tmp_path / "out").exists()


def test_doctor_says_what_is_here_and_what_to_do(tmp_path):
    done = viewtime("doctor", "--json", "--data", tmp_path / "data")
    report = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    for name in ("python", "torch", "cpu", "packages", "torchvision", "free disk", "backend data"):
        assert findings[name]["found"]
    assert all(f["advice"] for f in report["findings"] if f["level"] != "ok")
    assert report["ok"] == all(f["level"] != "fail" for f in report["findings"])
    assert done.returncode == (0 if report["ok"] else 1)
    assert not (tmp_path / "data").exists()


def test_doctor_notices_weights_that_differ_from_their_card(tmp_path):
    import hashlib

    from viewtime.doctor import examine_model

    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"files": {"model.safetensors": digest}}))
    assert examine_model(tmp_path).level == "ok"
    weights.write_bytes(b"other weights")
    finding = examine_model(tmp_path)
    assert finding.level == "fail" and "sha256 differs" in finding.found and finding.advice
    weights.rename(tmp_path / "other.safetensors")
    assert examine_model(tmp_path).found == "model.safetensors is missing"
    card.write_text("{}")
    assert examine_model(tmp_path).found == "its card.json states no checksums"


@pytest.mark.parametrize("end", ["shutdown", "terminate", "interrupt"])
def test_a_server_of_ones_own_writes_a_private_note_and_takes_it_away(tmp_path, end):
    import requests

    process = subprocess.Popen(
        [sys.executable, "-m", "viewtime", "serve", "--data", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    note = Path(ready["note"])
    assert "token" not in ready and note == tmp_path / "backend.json"
    if sys.platform != "win32":
        assert note.stat().st_mode & 0o777 == 0o600
    values = json.loads(note.read_text())
    if end == "shutdown":
        answer = requests.post(
            f"http://127.0.0.1:{values['port']}/shutdown",
            headers={"Authorization": f"Bearer {values['token']}"},
            timeout=10,
        )
        assert answer.json() == {"instance": ready["instance"]}
    else:
        process.send_signal(signal.SIGTERM if end == "terminate" else signal.SIGINT)
    assert process.wait(10) == 0
    process.stdout.close()
    assert not note.exists()


def test_leave_one_out_prints_a_line_for_each_view_and_their_mean(full_capture):
    done = viewtime("evaluate", "leave-one-out", full_capture, "--depth-noise", "0")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert [line.split()[0] for line in lines] == ["view", "0", "1", "2", "mean"]
    psnrs = [float(line.split()[1]) for line in lines[1:]]
    assert psnrs[-1] == pytest.approx(sum(psnrs[:-1]) / 3, abs=0.02)


def test_the_halves_of_a_run_give_what_the_whole_gives(tmp_path, reference_capture):
    """generate, then reconstruct with the same rig: the same frames and Gaussians as run."""
    settings = ["--size", 32, "--steps", 1, "--threads", 1]
    whole = viewtime(
        "run", reference_capture, tmp_path / "whole", "--route", "generated", *settings
    )
    assert whole.returncode == 0, whole.stderr
    half = viewtime("generate", reference_capture, tmp_path / "half", *settings)
    assert half.returncode == 0, half.stderr
    assert str(tmp_path / "half" / "grid") in half.stdout
    for frame in sorted((tmp_path / "whole" / "grid").rglob("*.png")):
        twin = tmp_path / "half" / "grid" / frame.relative_to(tmp_path / "whole" / "grid")
        assert frame.read_bytes() == twin.read_bytes()
    lifted = viewtime(
        "reconstruct", tmp_path / "half" / "grid", tmp_path / "lifted", "--threads", 1,
        "--rig", reference_capture / "rig.json",
    )  # fmt: skip
    assert lifted.returncode == 0, lifted.stderr
    sequence = json.loads((tmp_path / "lifted" / "splats" / "sequence.json").read_text())
    assert sequence["times"] == 5


def test_how_references_enter_is_refused_by_the_models_own_list(tmp_path, reference_capture):
    done = viewtime("generate", reference_capture, tmp_path / "out", "--references", "pasted")
    assert done.returncode == 2
    assert "references is 'pasted', must be one of added, clean" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_rig_for_another_grid_is_refused(tmp_path, reference_capture):
    made = viewtime("generate", reference_capture, tmp_path / "out", "--size", 32, "--steps", 1)
    assert made.returncode == 0, made.stderr
    other = json.loads((reference_capture / "rig.json").read_text())
    other["cameras"] = other["cameras"][:-1]
    (tmp_path / "rig.json").write_text(json.dumps(other))
    done = viewtime("reconstruct", tmp_path / "out" / "grid", tmp_path / "splats",
                    "--rig", tmp_path / "rig.json")  # fmt: skip
    assert done.returncode == 2
    assert "cameras for a grid of" in done.stderr and not (tmp_path / "splats").exists()
