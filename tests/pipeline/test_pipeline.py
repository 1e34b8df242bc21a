# SPDX-License-Identifier: Apache-2.0
"""The pipeline from a Capture folder to a SplatSequence, and what it leaves when it cannot.
Never touches a server."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from viewtime import pipeline, run_folder
from viewtime.pipeline import Cancelled, OptionError, RunOptions
from viewtime.run_folder import OutputError
from viewtime_formats.errors import CaptureError, ViewtimeError
from viewtime_formats.splats import SequenceWriter, read_sequence


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_full_grid_with_depth_becomes_splats_that_look_like_its_frames(full_capture, tmp_path):
    from viewtime.gaussians import render
    from viewtime.grid import grid_from_capture
    from viewtime_formats.capture import read_capture

    seen = []
    result = pipeline.run(full_capture, tmp_path / "out", on_progress=seen.append)
    assert (result.route, result.views, result.times, result.height) == ("captured", 3, 5, 32)
    sequence = read_sequence(result.splats)
    assert sequence.complete and sequence.times == 5
    assert [len(sequence.step(t, verify=True)) for t in range(5)] == result.gaussians_per_step
    grid = grid_from_capture(read_capture(full_capture))
    error = [
        np.square(
            render(sequence.step(t), camera, background=tuple(sequence.background)).color
            - grid.frames[v, t].transpose(1, 2, 0)
        ).mean()
        for v, camera in enumerate(sequence.rig.cameras)
        for t in range(5)
    ]
    assert -10 * np.log10(np.mean(error)) > 25
    assert [p.step for p in seen if p.stage == "reconstruct"] == [0, 1, 2, 3, 4, 5]
    assert all(p.eta_seconds is not None and p.eta_seconds >= 0 for p in seen if p.step)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["gaussians_per_step"] == result.gaussians_per_step
    assert set(run["seconds"]) == {"read", "generate", "reconstruct"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run.json", "splats"]


def test_references_become_a_grid_and_its_splats(reference_capture, small_models, tmp_path):
    from viewtime.grid import grid_from_capture, read_grid
    from viewtime_formats.capture import read_capture

    seen = []
    options = RunOptions(size=32, steps=2, **small_models)
    result = pipeline.run(reference_capture, tmp_path / "out", options, on_progress=seen.append)
    assert (result.route, result.views, result.times, result.width) == ("generated", 3, 5, 32)
    assert list(dict.fromkeys(p.stage for p in seen)) == [
        "read",
        "load",
        "prior",
        "generate",
        "reconstruct",
    ]
    grid, given = read_grid(result.grid), grid_from_capture(read_capture(reference_capture), 32)
    assert grid.known.sum() == 7 and (grid.known == given.known).all()
    np.testing.assert_allclose(grid.frames[grid.known], given.frames[given.known], atol=1 / 255)
    assert (grid.frames[~grid.known].std(axis=(1, 2, 3)) > 0.01).all()
    sequence = read_sequence(result.splats)
    assert sequence.complete and sequence.provenance["route"] == "generated"
    assert min(result.gaussians_per_step) > 100
    assert sorted(result.seconds) == ["generate", "load", "prior", "read", "reconstruct"]


def test_a_missing_model_is_told_before_anything_is_generated(
    reference_capture, small_models, tmp_path
):
    seen = []
    options = RunOptions(size=32, **{**small_models, "reconstructor": str(tmp_path / "nothing")})
    with pytest.raises(ViewtimeError, match="nothing"):
        pipeline.run(reference_capture, tmp_path / "out", options, on_progress=seen.append)
    assert {p.stage for p in seen} == {"read", "load"}
    assert not (tmp_path / "out").exists()


def test_no_prior_is_made_when_it_is_not_wanted(reference_capture, small_models, tmp_path):
    seen = []
    options = RunOptions(size=32, steps=1, use_prior=False, **small_models)
    pipeline.run(reference_capture, tmp_path / "out", options, on_progress=seen.append)
    assert "prior" not in {p.stage for p in seen} and "generate" in {p.stage for p in seen}


def test_a_cancel_inside_the_generator_leaves_no_folder(reference_capture, small_models, tmp_path):
    steps = []
    with pytest.raises(Cancelled):
        pipeline.run(
            reference_capture,
            tmp_path / "out",
            RunOptions(size=32, steps=50, **small_models),
            on_progress=lambda p: steps.append(p.step) if p.stage == "generate" else None,
            should_cancel=lambda: 3 in steps,
        )
    assert max(steps) < 6
    assert not (tmp_path / "out").exists()


def test_a_clip_without_a_rig_is_lifted_as_it_is(small_models, tmp_path):
    """One view, no depth, no cameras: nothing is generated, geometry is predicted."""
    from viewtime.media import write_png
    from viewtime_formats.capture import Cell, write_capture

    clip = tmp_path / "clip"
    clip.mkdir()
    rng = np.random.default_rng(0)
    for t in range(5):
        write_png(clip / f"{t}.png", rng.random((32, 32, 3), np.float32))
    cells = [Cell(0, t, f"{t}.png") for t in range(5)]
    write_capture(clip, views=1, times=5, width=32, height=32, cells=cells, fixed_view=0)
    seen = []
    options = RunOptions(size=32, **small_models)
    result = pipeline.run(clip, tmp_path / "out", options, on_progress=seen.append)
    assert "no other view will be generated" in seen[0].message
    assert "generate" not in {p.stage for p in seen}
    sequence = read_sequence(result.splats)
    assert sequence.complete and sequence.provenance["cameras"] == "default pinhole"


def test_another_size_is_worked_at_when_it_is_asked_for(full_capture, tmp_path):
    result = pipeline.run(full_capture, tmp_path / "out", RunOptions(size=16))
    assert (result.width, result.height) == (16, 16)
    assert read_sequence(result.splats).rig.cameras[0].height == 16


def test_the_same_job_twice_gives_the_same_splats_in_the_same_folder(full_capture, tmp_path):
    steps = []
    for _ in range(2):
        pipeline.run(full_capture, tmp_path / "out")
        files = contents(tmp_path / "out")
        steps.append({name: data for name, data in files.items() if "step." in name})
    assert len(steps[0]) == 5 and steps[0] == steps[1]


def test_the_sequence_can_be_read_while_it_grows(full_capture, tmp_path):
    counts = []

    def look(progress):
        if progress.stage == "reconstruct" and progress.step:
            sequence = read_sequence(tmp_path / "out" / "splats")
            counts.append((sequence.complete, sum(sequence.has_step(t) for t in range(5))))

    pipeline.run(full_capture, tmp_path / "out", on_progress=look)
    assert counts[:4] == [(False, 1), (False, 2), (False, 3), (False, 4)]


@pytest.mark.parametrize("stop_at", range(6))
def test_a_cancel_at_any_step_leaves_no_folder(full_capture, tmp_path, stop_at):
    steps = []

    def stop():
        return len(steps) > stop_at

    with pytest.raises(Cancelled):
        pipeline.run(
            full_capture, tmp_path / "a" / "b", on_progress=steps.append, should_cancel=stop
        )
    assert list(tmp_path.iterdir()) == []


def test_a_cancel_gives_the_earlier_result_back(full_capture, tmp_path):
    out = tmp_path / "out"
    pipeline.run(full_capture, out)
    before = contents(out)
    calls = []

    def stop():
        calls.append(1)
        return len(calls) > 4

    with pytest.raises(Cancelled):
        pipeline.run(full_capture, out, RunOptions(size=16), should_cancel=stop)
    assert contents(out) == before


def test_an_interrupt_from_the_keyboard_leaves_no_folder(full_capture, tmp_path):
    def interrupt(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(full_capture, tmp_path / "out", on_progress=interrupt)
    assert not (tmp_path / "out").exists()


def test_what_a_killed_run_left_is_undone_by_the_next(full_capture, tmp_path):
    out = tmp_path / "out"
    script = (
        "import os, sys\n"
        "from viewtime import pipeline\n"
        "def die(progress):\n"
        "    if progress.step == 2: os._exit(9)\n"
        "pipeline.run(sys.argv[1], sys.argv[2], on_progress=die)\n"
    )
    pipeline.run(full_capture, out)
    before = contents(out)
    subprocess.run([sys.executable, "-c", script, str(full_capture), str(out)], check=False)
    assert contents(out) != before
    run_folder.abandon(out)
    assert contents(out) == before
    run_folder.abandon(out)
    assert contents(out) == before


@pytest.mark.parametrize("die_at", range(1, 12))
def test_a_death_between_any_two_file_operations_loses_no_earlier_result(tmp_path, die_at):
    """`begin`, some writing, `finish`, with a death before each change of the file system."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "splats").mkdir()
    (out / "splats" / "step").write_text("old")
    (out / "run.json").write_text('{"format": "viewtime.run", "n": 1}')
    old = contents(out)
    new = {"splats/step": b"new", "run.json": b'{"format": "viewtime.run", "n": 2}'}
    script = (
        "import os, shutil, sys\n"
        "from pathlib import Path\n"
        "from viewtime import run_folder\n"
        "left = int(sys.argv[2])\n"
        "def dying(function):\n"
        "    def call(*args, **kwargs):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left == 0: os._exit(9)\n"
        "        return function(*args, **kwargs)\n"
        "    return call\n"
        "for name in ('replace', 'mkdir', 'unlink', 'rmdir'):\n"
        "    setattr(os, name, dying(getattr(os, name)))\n"
        "out = Path(sys.argv[1])\n"
        "run_folder.begin(out)\n"
        "(out / 'splats').mkdir()\n"
        "(out / 'splats' / 'step').write_text('new')\n"
        '(out / \'run.json\').write_text(\'{"format": "viewtime.run", "n": 2}\')\n'
        "run_folder.finish(out)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(out), str(die_at)], check=False)
    run_folder.check_folder(out)
    run_folder.begin(out)
    run_folder.abandon(out)
    assert contents(out) in ([old, new] if done.returncode else [new])


def test_a_folder_with_somebodys_files_is_refused_and_untouched(full_capture, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"already holds 'thesis.txt', which no run"):
        pipeline.run(full_capture, tmp_path)
    (tmp_path / "thesis.txt").rename(tmp_path / "splats")
    with pytest.raises(OutputError, match="holds 'splats' but no run.json of Viewtime"):
        pipeline.run(full_capture, tmp_path)
    assert contents(tmp_path) == {"splats": b"years of work"}
    with pytest.raises(OutputError, match="is a file"):
        pipeline.run(full_capture, tmp_path / "splats")


def test_the_captured_route_says_what_it_lacks(reference_capture, tmp_path):
    with pytest.raises(CaptureError, match="needs a frame for every view and time"):
        pipeline.run(reference_capture, tmp_path / "out", RunOptions(route="captured"))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(full_capture, tmp_path, monkeypatch):
    write = SequenceWriter.write_step

    def fill(self, time, gaussians):
        if time == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, time, gaussians)

    monkeypatch.setattr(SequenceWriter, "write_step", fill)
    with pytest.raises(ViewtimeError, match=r"the disk is full \(\d+ MiB free\)") as full:
        pipeline.run(full_capture, tmp_path / "out")
    assert "\n" not in str(full.value)
    assert list(tmp_path.iterdir()) == []


def can_mount() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and (
        subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small file system")
def test_a_disk_that_really_is_full_is_one_line_and_leaves_nothing(full_capture, tmp_path):
    script = (
        'mount -t tmpfs -o size=300k none "$1" && '
        '"$2" -m viewtime run "$3" "$1/out"; code=$?; ls -A "$1"; exit $code'
    )
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            script,
            "sh",
            str(tmp_path),
            sys.executable,
            str(full_capture),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr.strip().splitlines()[-1]
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"route": "best"}, "route is 'best'; one of auto, captured, generated is needed"),
        ({"size": 8}, "size is 8; a whole number from 16 to 4096 is needed"),
        ({"steps": True}, "steps is True"),
        ({"seed": -1}, "seed is -1"),
        ({"use_prior": 1}, "use_prior is 1; true or false is needed"),
        ({"depth_noise": float("nan")}, "depth_noise is nan"),
        ({"guidance": 0.5}, "guidance is 0.5; a number from 1 to 100 is needed"),
        ({"memory_budget_gb": 0}, "memory_budget_gb is 0; a number above 0 is needed"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"solver": "heun"}, "solver is 'heun'; one of euler, unipc is needed"),
        ({"shift": 0}, "shift is 0; a number above 0 is needed, 100 at most"),
        ({"negative_prompt": None}, "negative_prompt is None; a text is needed"),
        ({"window": "8"}, "window is '8'; views x times, such as \"8x29\", are needed"),
        ({"window": [8, 29]}, "window is [8, 29]; views x times"),
        ({"overlap": "1x1"}, "overlap is '1x1', but there is no window to overlap"),
        (
            {"window": "8x29", "overlap": "1x29"},
            "overlap is '1x29'; fewer views and fewer times than the window's '8x29' are needed",
        ),
        ({"offload": "disk"}, "offload is 'disk'; one of none, block, leaf is needed"),
        ({"compile": "yes"}, "compile is 'yes'; true or false is needed"),
        ({"compile": True, "offload": "leaf"}, "take offload 'block', or leave one of the two"),
        ({"cache": 0}, "cache is 0; a number above 0 is needed"),
        ({"cache": True}, "cache is True; a number above 0 is needed"),
        ({"references": 1}, "references is 1; a word such as clean is needed"),
        ({"generator": ""}, "generator is ''; a name or path is needed"),
        (
            {"colour": 1},
            "options: 'colour' is unknown; known are cache, compile, depth_noise, device",
        ),
    ],
)
def test_an_option_without_a_meaning_is_refused_by_name(options, words):
    with pytest.raises(OptionError) as refused:
        pipeline.options_from_dict(options)
    assert words in str(refused.value)
