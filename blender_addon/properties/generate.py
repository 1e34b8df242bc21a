# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scene remembers of its job. Plain values; it never acts on them."""

from __future__ import annotations

from bpy.props import EnumProperty, FloatProperty, IntProperty, StringProperty

ROUTES = (
    ("AUTO", "Automatic", "Captured geometry when the capture is a full grid with depth"),
    ("CAPTURED", "Captured", "Splats from rendered pixels, depth and cameras; no learned weights"),
    ("GENERATED", "Generated", "The generator fills the missing views and times"),
)
BUNDLED = "bundled"


def _search_generators(_self: object, _context: object, _typed: str) -> list[str]:
    return [model["id"] for model in OFFERS.get("generators", [])] or [BUNDLED]


def _search_devices(_self: object, _context: object, _typed: str) -> list[str]:
    return ["auto", *(device["id"] for device in OFFERS.get("devices", []))]


# What the backend last said about the machine; link fills it, the fields above suggest it.
OFFERS: dict = {}
# States of a job as the add-on shows them: those of the backend, and "" before the first job.
JOB_ACTIVE = ("submitting", "queued", "running", "cancelling")


class GenerateSettings:
    """The part of scene.viewtime about the job and its options."""

    output_folder: StringProperty(
        name="Folder",
        description="Folder for the generated frames and splats; it must be empty or absent",
        subtype="DIR_PATH",
        default="//viewtime/run",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    route: EnumProperty(
        name="Geometry",
        description="Where the splats' places come from",
        items=ROUTES,
        default="AUTO",
    )
    generator: StringProperty(
        name="Model",
        description="Generator of the missing frames: one that the backend offers, or the folder "
        "of one",
        default=BUNDLED,
        search=_search_generators,
        search_options={"SUGGESTION"},
    )
    steps: IntProperty(
        name="Steps",
        description="Sampling steps of the generator; 0 is the model's own number. A model may "
        "take fewer where the capture has depth",
        default=0,
        min=0,
        max=1000,
    )
    guidance: FloatProperty(
        name="Guidance",
        description="How strongly the prompt leads the generator; 0 is the model's own way, "
        "1 is without the prompt",
        default=0.0,
        min=0.0,
        soft_max=15.0,
        max=100.0,
        precision=1,
    )
    seed: IntProperty(
        name="Seed",
        description="Seed of the generator's noise: the same seed gives the same frames",
        default=0,
        min=0,
    )
    work_size: IntProperty(
        name="Height",
        description="Height in pixels to work at; 0 is the capture's own with captured geometry, "
        "and the model's with generated frames",
        default=0,
        min=0,
        max=4096,
        subtype="PIXEL",
    )
    device: StringProperty(
        name="Device",
        description="Where the job runs: auto, cpu, or a GPU of the backend such as cuda:0",
        default="auto",
        search=_search_devices,
        search_options={"SUGGESTION"},
    )

    # Written by the add-on. They stay in the file, so that a reopened one finds its job again.
    job_id: StringProperty(name="Job", description="The scene's last job, as the backend names it")
    job_state: StringProperty(name="State", description="What has become of the scene's last job")
    job_message: StringProperty(name="Message", description="The last word about the scene's job")
    job_progress: FloatProperty(
        name="Progress",
        description="Part of the job's time that has passed",
        min=0.0,
        max=1.0,
        subtype="FACTOR",
    )
    job_eta: FloatProperty(
        name="Seconds left",
        description="To the end of the job; negative when unknown",
        default=-1.0,
    )
