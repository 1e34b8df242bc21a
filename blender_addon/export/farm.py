# SPDX-License-Identifier: GPL-3.0-or-later
"""Farm jobs as text: an OpenJD job template, and a Flamenco job type. Frames are cut into chunks.
It never talks to a farm and never imports bpy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from viewtime_formats import ViewtimeError

from .command import chunks, export_words, render_words

MOST_TASKS = 1024  # of one OpenJD task parameter


@dataclass(frozen=True)
class FarmJob:
    """What the farm is to do. work: "EXPORT" or "RENDER". blend, out: absolute paths; out is the
    folder of the PLY files. first, last: frames, both inclusive; chunk: frames a task."""

    name: str
    work: str
    add_on: str
    blend: str
    ob: str
    out: str
    first: int
    last: int
    chunk: int

    def tasks(self) -> list[tuple[int, int]]:
        """(first, last) of each task. Raises ViewtimeError where a farm would refuse the number."""
        if self.last < self.first:
            raise ViewtimeError(f"frames {self.first}:{self.last} end before they begin")
        found = chunks(self.first, self.last, self.chunk)
        if len(found) > MOST_TASKS:
            least = -(-(self.last - self.first + 1) // MOST_TASKS)
            raise ViewtimeError(
                f"{len(found)} tasks are more than the {MOST_TASKS} that a farm job may have; "
                f"give at least {least} frames a task"
            )
        return found


def openjd(job: FarmJob) -> str:
    """A template of the Open Job Description 2023-09, as JSON, which is YAML too.

    Blender's executable and the paths are parameters, so that a farm can map them to its own.
    """
    blender, blend = "{{Param.BlenderExecutable}}", "{{Param.BlenderFile}}"
    parameters: list[dict[str, Any]] = [
        {
            "name": "BlenderFile",
            "type": "PATH",
            "objectType": "FILE",
            "dataFlow": "IN",
            "default": job.blend,
        },
        {"name": "BlenderExecutable", "type": "STRING", "default": "blender"},
    ]
    if job.work == "EXPORT":
        parameters += [
            {
                "name": "OutputFolder",
                "type": "PATH",
                "objectType": "DIRECTORY",
                "dataFlow": "OUT",
                "default": job.out,
            },
            {"name": "Object", "type": "STRING", "default": job.ob},
        ]
        words = export_words(
            blender,
            job.add_on,
            blend,
            "{{Param.Object}}",
            "{{Param.OutputFolder}}",
            "{{Task.Param.First}}:{{Task.Param.Last}}",
        )
    else:
        words = render_words(
            blender, job.add_on, blend, "{{Task.Param.First}}", "{{Task.Param.Last}}"
        )
    tasks = job.tasks()
    space = {
        "taskParameterDefinitions": [
            {"name": "First", "type": "INT", "range": [first for first, _ in tasks]},
            {"name": "Last", "type": "INT", "range": [last for _, last in tasks]},
        ],
        # Side by side, not every first with every last.
        "combination": "(First, Last)",
    }
    template = {
        "specificationVersion": "jobtemplate-2023-09",
        "name": job.name[:128],
        "parameterDefinitions": parameters,
        "steps": [
            {
                "name": job.work.capitalize(),
                "parameterSpace": space,
                "script": {"actions": {"onRun": {"command": words[0], "args": words[1:]}}},
            }
        ],
    }
    return json.dumps(template, indent=2) + "\n"


def flamenco(job: FarmJob) -> str:
    """A job type for Flamenco, JavaScript: goes into `scripts` beside the Manager.

    Its settings come filled with this job's and can be changed when the job is submitted.
    """
    words = [
        "{blender}",
        *(
            export_words("", job.add_on, "BLEND", "OBJECT", "OUT", "FRAMES")
            if job.work == "EXPORT"
            else render_words("", job.add_on, "BLEND", "FIRST", "LAST")
        )[1:],
    ]
    return _FLAMENCO % {
        "label": json.dumps(f"Viewtime {job.work.lower()}"),
        "settings": ",\n        ".join(_setting(*each) for each in _settings(job)),
        "name": json.dumps(job.work.lower()),
        "words": json.dumps(words),
    }


def _settings(job: FarmJob) -> list[tuple[str, str, Any, str]]:
    settings: list[tuple[str, str, Any, str]] = [
        ("blendfile", "string", job.blend, "Path of the .blend"),
        ("first", "int32", job.first, "First frame"),
        ("last", "int32", job.last, "Last frame"),
        ("chunk_size", "int32", job.chunk, "Frames that one worker does at a time"),
    ]
    if job.work == "EXPORT":
        settings.append(("object", "string", job.ob, "Object that plays the splat sequence"))
        settings.append(("output", "string", job.out, "Folder of the PLY files"))
    job.tasks()
    return settings


def _setting(key: str, kind: str, value: Any, description: str) -> str:
    values = {"key": key, "type": kind, "required": True, "default": value}
    return json.dumps({**values, "description": description})


_FLAMENCO = """\
// Written by Viewtime. Goes into the folder `scripts` of Flamenco's Manager.
const JOB_TYPE = {
    label: %(label)s,
    settings: [
        %(settings)s
    ]
};

const WORDS = %(words)s;

function compileJob(job) {
    const settings = job.settings;
    for (let first = settings.first; first <= settings.last; first += settings.chunk_size) {
        const last = Math.min(first + settings.chunk_size - 1, settings.last);
        const values = {
            BLEND: settings.blendfile,
            OBJECT: settings.object,
            OUT: settings.output,
            FRAMES: first + ":" + last,
            FIRST: String(first),
            LAST: String(last)
        };
        const words = WORDS.map(word => word in values ? values[word] : word);
        const task = author.Task(%(name)s + "-" + first + "-" + last, "blender");
        task.addCommand(author.Command("exec", { exe: words[0], args: words.slice(1) }));
        job.addTask(task);
    }
}
"""
