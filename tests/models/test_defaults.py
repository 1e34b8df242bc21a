# SPDX-License-Identifier: Apache-2.0
"""What a generator's own files say of how it is run, and that a person's word comes before it."""

from __future__ import annotations

import json

import pytest

from viewtime.models.defaults import Defaults, generator_defaults, settled
from viewtime.options import RunOptions, options_from_dict

UNIPC = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0, "use_flow_sigmas": True}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with a VAE; writes its scheduler's file."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "scheduler").mkdir()

    def with_scheduler(values):
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
        return str(tmp_path)

    return with_scheduler


@pytest.mark.parametrize(
    ("scheduler", "solver", "shift"),
    [
        (UNIPC, "unipc", 3.0),
        (EULER, "euler", 5.0),
        ({**UNIPC, "flow_shift": "much"}, "unipc", 1.0),
        ({"_class_name": "DDIMScheduler", "shift": 9.0}, "euler", 1.0),
        ([], "euler", 1.0),
    ],
)
def test_a_stock_checkpoint_runs_as_its_scheduler_says(folder, scheduler, solver, shift):
    found = generator_defaults(folder(scheduler))
    assert found == Defaults(size=480, steps=50, solver=solver, shift=shift)


def test_height_and_steps_are_those_of_diffusers_own_pipeline():
    import inspect

    from diffusers import WanPipeline

    from viewtime.models.defaults import VAE_SIZE, VAE_STEPS

    asked = inspect.signature(WanPipeline.__call__).parameters
    assert asked["height"].default == VAE_SIZE
    assert asked["num_inference_steps"].default == VAE_STEPS


def test_a_downloaded_card_has_its_own_height(folder, tmp_path):
    repo = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    (tmp_path / "viewtime-download.json").write_text(json.dumps({"repo": repo}))
    assert generator_defaults(folder(UNIPC)).size == 704


def test_the_bundled_one_keeps_what_it_has_and_what_is_not_there_is_taken_for_it():
    bundled = Defaults(size=128, steps=4, solver="euler", shift=1.0, steps_with_prior=1, columns=8)
    assert generator_defaults("bundled") == bundled
    assert generator_defaults("/no/such") == Defaults()


def test_what_was_asked_for_comes_first(folder):
    name = folder(UNIPC)
    found = settled(RunOptions(generator=name, steps=7, solver="euler"))
    assert (found.size, found.steps, found.solver, found.shift) == (480, 7, "euler", 3.0)
    assert settled(found) == found


def test_options_that_were_written_with_numbers_are_read_as_before():
    before = {"steps": 4, "solver": "euler", "shift": 1.0, "size": None}
    assert settled(options_from_dict(before)) == settled(RunOptions())
