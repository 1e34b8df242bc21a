# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scene remembers of its job. Plain values; it never acts on them."""

from __future__ import annotations

from bpy.props import EnumProperty, FloatProperty, IntProperty, StringProperty

ROUTES = (
    ("AUTO", "Automatic", "Captured geometry when the capture is a full grid with depth"),
    ("CAPTURED", "Captured", "Splats from rendered pixels, depth and cameras; no learned weights"),
    ("GENERATED", "Generated", "The generator fills the missing views and times"),
)
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
    route: EnumProperty(name="Route", items=ROUTES, default="AUTO")
    steps: IntProperty(
        name="Steps", description="Sampling steps of the generator", default=4, min=1, max=1000
    )
    seed: IntProperty(name="Seed", description="Seed of the generator's noise", default=0, min=0)

    # Written by the add-on. They stay in the file, so that a reopened one finds its job again.
    job_id: StringProperty(name="Job")
    job_state: StringProperty(name="State")
    job_message: StringProperty(name="Message")
    job_progress: FloatProperty(name="Progress", min=0.0, max=1.0, subtype="FACTOR")
    job_eta: FloatProperty(name="Seconds left", description="Negative when unknown", default=-1.0)
