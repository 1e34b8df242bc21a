# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines and farm jobs: valid for those who read them, and complete to the last frame.
It never talks to a farm: templates are checked by OpenJD's own model, job types are compiled."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import bpy
import numpy as np
import pytest

# Reads a template, checks it as a farm would, makes the job, and lists the tasks of each step.
CHECK = """
import json, sys
from openjd.model import StepParameterSpaceIterator, create_job, decode_job_template
from openjd.model import preprocess_job_parameters
from pathlib import Path
template = decode_job_template(template=json.load(open(sys.argv[1])))
values = preprocess_job_parameters(
    job_template=template, job_parameter_values={}, job_template_dir=Path("/"),
    current_working_dir=Path("/"), allow_job_template_dir_walk_up=True)
job = create_job(job_template=template, job_parameter_values=values)
tasks = [
    {name: value.value for name, value in task.items()}
    for step in job.steps for task in StepParameterSpaceIterator(space=step.parameterSpace)
]
print(json.dumps(tasks))
"""
# What Flamenco's Manager gives a job type, as little of it as is used.
FLAMENCO = """
const author = {
    Task: (name, type) => ({ name, type, commands: [], addCommand(c) { this.commands.push(c); } }),
    Command: (name, parameters) => ({ name, parameters })
};
const job = { settings: {}, tasks: [], addTask(t) { this.tasks.push(t); } };
for (const setting of JOB_TYPE.settings) job.settings[setting.key] = setting.default;
compileJob(job);
console.log(JSON.stringify(job.tasks));
"""


@pytest.fixture(scope="module")
def farm(viewtime: str) -> ModuleType:
    return importlib.import_module(f"{viewtime}.export.farm")


@pytest.fixture
def job(farm: ModuleType):
    return farm.FarmJob(
        name="shot",
        work="EXPORT",
        add_on="bl_ext.user_default.viewtime",
        blend="/shots/a shot.blend",
        ob="my splats",
        out="/shots/ply",
        first=3,
        last=27,
        chunk=10,
    )


@pytest.fixture
def saved(empty_scene: bpy.types.Scene, tmp_path: Path) -> bpy.types.Object:
    """A saved file with a sequence of four steps on frames 1 to 7, which is active."""
    formats = importlib.import_module("viewtime_formats")
    rng = np.random.default_rng(0)
    with formats.SequenceWriter(
        tmp_path / "swing", times=4, fps=24.0, frame_start=1, frame_step=2
    ) as writer:
        for step in range(4):
            splats = formats.Gaussians(
                means=rng.normal(size=(5, 3)).astype(np.float32),
                scales=np.full((5, 3), 0.1, np.float32),
                rotations=np.tile(np.array([1, 0, 0, 0], np.float32), (5, 1)),
                opacities=np.full(5, 0.5, np.float32),
                sh=np.zeros((5, 1, 3), np.float32),
            )
            writer.write_step(step, splats)
    bpy.ops.viewtime.import_sequence(directory=str(tmp_path / "swing"))
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shot.blend"))
    return bpy.context.object


def tasks_by_openjd(path: Path, backend_python: Path) -> list[dict[str, str]]:
    answer = subprocess.run(
        [backend_python, "-c", CHECK, path], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.mark.parametrize("work", ["EXPORT", "RENDER"])
def test_a_template_is_valid_openjd_and_has_every_frame_once(
    farm, job, work, backend_python, tmp_path
) -> None:
    path = tmp_path / "job.json"
    path.write_text(farm.openjd(replace(job, work=work)))
    tasks = tasks_by_openjd(path, backend_python)
    frames = [f for t in tasks for f in range(int(t["First"]), int(t["Last"]) + 1)]
    assert frames == list(range(3, 28)) and len(tasks) == 3
    arguments = json.loads(path.read_text())["steps"][0]["script"]["actions"]["onRun"]["args"]
    if work == "EXPORT":
        assert arguments[-2:] == ["--frames", "{{Task.Param.First}}:{{Task.Param.Last}}"]
        assert arguments[arguments.index("--command") + 1] == "viewtime"
    else:
        assert arguments.index("--frame-end") < arguments.index("--render-anim")
    assert arguments.index("{{Param.BlenderFile}}") < arguments.index("--addons")


@pytest.mark.parametrize("work", ["EXPORT", "RENDER"])
def test_a_flamenco_job_type_compiles_to_the_same_commands(farm, job, work, tmp_path) -> None:
    text = farm.flamenco(replace(job, work=work))
    settings = [json.loads(line.strip(" ,")) for line in text.splitlines() if '"key"' in line]
    values = {setting["key"]: setting["default"] for setting in settings}
    assert values["blendfile"] == "/shots/a shot.blend" and values["chunk_size"] == 10
    assert (values["first"], values["last"]) == (3, 27)
    assert {setting["type"] for setting in settings} <= {"string", "int32"}
    node = shutil.which("node")
    if node is None:
        return  # Without a JavaScript engine the settings are all that can be looked at.
    (tmp_path / "job.js").write_text(text + FLAMENCO)
    answer = subprocess.run([node, tmp_path / "job.js"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    tasks = json.loads(answer.stdout)
    commands = [task["commands"][0]["parameters"] for task in tasks]
    assert len(tasks) == 3 and {command["exe"] for command in commands} == {"{blender}"}
    last = commands[-1]["args"]
    assert last[:2] == ["--background", "/shots/a shot.blend"]
    if work == "EXPORT":
        assert last[-2:] == ["--frames", "23:27"]
        assert last[last.index("--object") + 1] == "my splats"
    else:
        assert last[last.index("--frame-start") + 1 :][:3] == ["23", "--frame-end", "27"]


def test_a_chunk_too_small_for_a_farm_is_refused_with_one_that_fits(farm, job) -> None:
    formats = importlib.import_module("viewtime_formats")
    long = replace(job, first=1, last=5000, chunk=1)
    with pytest.raises(formats.ViewtimeError, match="at least 5 frames a task"):
        farm.openjd(long)
    assert len(replace(long, chunk=5).tasks()) == 1000
    with pytest.raises(formats.ViewtimeError, match="end before they begin"):
        farm.openjd(replace(job, first=9, last=8))


def test_the_operator_writes_the_scenes_job(saved, backend_python, tmp_path) -> None:
    settings = bpy.context.scene.viewtime
    settings.farm_chunk, settings.export_folder = 3, "//out"
    path = tmp_path / "jobs.json"
    assert bpy.ops.viewtime.export_farm(filepath=str(path)) == {"FINISHED"}
    tasks = tasks_by_openjd(path, backend_python)
    assert tasks == [
        {"First": "1", "Last": "3"},
        {"First": "4", "Last": "6"},
        {"First": "7", "Last": "7"},
    ]
    parameters = json.loads(path.read_text())["parameterDefinitions"]
    defaults = {each["name"]: each["default"] for each in parameters}
    assert defaults["BlenderFile"] == str(tmp_path / "shot.blend")
    assert defaults["OutputFolder"] == str(tmp_path / "out") and defaults["Object"] == saved.name
    bpy.context.scene.frame_start, bpy.context.scene.frame_end = 10, 11
    bpy.ops.viewtime.export_farm(filepath=str(path), work="RENDER")
    assert tasks_by_openjd(path, backend_python) == [{"First": "10", "Last": "11"}]
    bpy.ops.viewtime.export_farm(filepath=str(tmp_path / "job.js"), kind="FLAMENCO")
    assert "compileJob" in (tmp_path / "job.js").read_text()


def test_the_command_line_does_what_the_button_does(saved, viewtime, tmp_path, capsys) -> None:
    settings = bpy.context.scene.viewtime
    settings.export_folder, settings.export_frames = "//my ply", "CURRENT"
    bpy.context.scene.frame_set(5)
    capsys.readouterr()
    assert bpy.ops.viewtime.export_command() == {"FINISHED"}
    line = capsys.readouterr().out.splitlines()[0]
    words = shlex.split(line)
    assert words[1:3] == ["--background", str(tmp_path / "shot.blend")]
    start = words.index("--command")
    assert words[start - 2 : start + 2] == ["--addons", viewtime, "--command", "viewtime"]
    # The rest of the line, given to the command as Blender gives it.
    cli = importlib.import_module(f"{viewtime}.cli")
    assert cli.main(words[start + 2 :]) == 0
    assert [path.name for path in (tmp_path / "my ply").iterdir()] == ["swing.0005.ply"]


def test_an_unsaved_file_or_one_without_splats_is_told_so(empty_scene) -> None:
    for operator in (bpy.ops.viewtime.export_command, bpy.ops.viewtime.export_ply):
        assert not operator.poll()
    assert not bpy.ops.viewtime.export_farm.poll()
