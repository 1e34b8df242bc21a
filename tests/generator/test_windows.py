# SPDX-License-Identifier: Apache-2.0
"""Grids made a window at a time: which windows, what they hold on to, where they meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viewtime.generator import GeneratorError, generate
from viewtime.generator.codec import PixelCodec, WanCodec
from viewtime.generator.generation import latent_of_time
from viewtime.generator.load import Generator
from viewtime.generator.windows import (
    default_overlap,
    generate_in_windows,
    owners,
    plan_windows,
    seam_error,
    spans,
)


@pytest.fixture
def small(make_model):
    return Generator("small", make_model(), PixelCodec())


@dataclass(frozen=True)
class Grid:
    frames: np.ndarray
    known: np.ndarray
    depth: np.ndarray | None = None


def referenced(views, times, size=16):
    frames = np.random.default_rng(0).random((views, times, 3, size, size), dtype=np.float32)
    known = np.zeros((views, times), bool)
    known[0] = known[:, 0] = True
    return Grid(np.where(known[..., None, None, None], frames, 0), known)


@given(st.integers(1, 60), st.integers(2, 20), st.integers(1, 5))
def test_windows_cover_all_and_overlap_enough(count, window, overlap):
    if overlap >= window:
        return
    found = spans(count, window, overlap)
    assert found[0].start == 0 and found[-1].stop == count
    assert all(len(span) == min(count, window) for span in found)
    assert all(b.start <= a.stop - overlap and b.stop > a.stop for a, b in zip(found, found[1:]))


def test_windows_without_overlap_are_refused():
    with pytest.raises(GeneratorError, match="windows of 4 with an overlap of 4: .* from 1 to 3"):
        spans(9, 4, 4)


@given(st.integers(2, 100), st.sampled_from([1, 4]))
def test_the_default_overlap_leaves_something_new_and_suits_the_codec(window, step):
    overlap = default_overlap(window, step)
    assert 1 <= overlap <= max(1, window // 4) and (overlap - 1) % step == 0


def test_one_window_is_the_plain_way_and_several_anchor_on_what_was_made(small):
    grid = referenced(4, 7)
    plain = generate(small, grid, prior=None, steps=2, seed=5)
    whole = generate_in_windows(small, grid, prior=None, steps=2, seed=5, window=(4, 7))
    assert np.array_equal(plain, whole)
    progress, looks = [], []

    def look(done, total, shown):
        progress.append((done, total))
        looks.append(~np.isnan(shown).any(axis=(2, 3, 4)))

    parts = generate_in_windows(
        small, grid, prior=None, steps=2, seed=5, window=(3, 4), overlap=(1, 2), on_step=look
    )
    assert np.array_equal(parts[grid.known], grid.frames[grid.known])
    assert not (parts[~grid.known] == 0).all(axis=(1, 2, 3)).any()  # every cell was made
    assert progress == [(n, 12) for n in range(1, 13)]
    # The picture of the grid grows by a window at a time.
    assert (looks[0][:3, :4]).all() and not looks[0][1:, 4:].any() and not looks[0][3, 1:].any()
    assert all((a <= b).all() for a, b in zip(looks, looks[1:])) and looks[-1].all()
    # The first window is the same as that part of the grid alone.
    first = Grid(grid.frames[:3, :4], grid.known[:3, :4])
    assert np.array_equal(parts[:3, :4], generate(small, first, prior=None, steps=2, seed=5))


def test_windows_begin_at_the_freeze_time_and_go_both_ways(small):
    known = np.zeros((3, 12), bool)
    known[2], known[:, 9] = True, True
    plan = plan_windows(small, known, (2, 5), (1, 2))
    assert [(w.views, w.times) for w in plan] == [
        (views, times)
        for views in (range(1, 3), range(0, 2))
        for times in (range(6, 11), range(7, 12), range(3, 8), range(0, 5))
    ]
    made = known.copy()
    for window in plan:  # each has a row and a column to hold on to
        assert made[window.cells].all(axis=0).any() and made[window.cells].all(axis=1).any()
        made[window.cells] = True
    assert made.all()
    owner = owners(known, plan)
    assert (owner[known] == -1).all() and (owner[~known] >= 0).all()
    assert owner[1, 6] == 0 and owner[1, 5] == 2 and owner[0, 11] == 5


def test_guidance_and_prompts_are_the_same_in_all_windows(small, monkeypatch):
    """A window in the middle has a row and a column of what was made, the first has one alone."""
    from viewtime.generator import windows

    seen = []

    def watch(generator, part, **settings):
        seen.append((settings["guidance"], settings["texts"]))
        return np.zeros_like(part.frames)

    monkeypatch.setattr(windows, "generate", watch)
    monkeypatch.setattr(Generator, "takes_text", property(lambda self: True))
    encoded = []

    def encode(self, prompts):
        encoded.append(prompts)
        return torch.zeros(len(prompts), 0, 16)

    monkeypatch.setattr(Generator, "encode_text", encode)
    grid = referenced(3, 6)
    grid.known[:, 0] = [True, False, False]
    windows.generate_in_windows(
        small, grid, prior=None, window=(3, 3), prompt="a cat", negative_prompt="blur"
    )
    assert len(seen) == 3 and {guidance for guidance, _ in seen} == {5.0}
    assert encoded == [["a cat", "blur"]] and len({id(texts) for _, texts in seen}) == 1


def test_a_window_that_a_video_codec_cannot_take_is_refused_with_the_next_that_it_can(small):
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    vae.config.latents_mean, vae.config.latents_std = [0.0] * 4, [1.0] * 4
    with_vae = Generator("vae", small.model, WanCodec(vae))
    known = referenced(4, 17).known
    assert len(plan_windows(with_vae, known, (4, 9))) == 2
    with pytest.raises(GeneratorError, match=r"window is of 8 times, must be 1 \+ 4k.* 5 or 9"):
        plan_windows(with_vae, known, (4, 8))
    with pytest.raises(GeneratorError, match=r"overlap is of 3 times, .* 1 or 5"):
        plan_windows(with_vae, known, (4, 9), (1, 3))


def test_a_look_at_latents_has_a_picture_for_each_time():
    assert latent_of_time(9, 3) == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert latent_of_time(1, 1) == [0] and latent_of_time(3, 3) == [0, 1, 2]


def test_a_seam_is_where_windows_meet_and_nowhere_else():
    truth = np.zeros((2, 6, 3, 2, 2))
    frames = truth.copy()
    frames[:, 4:] += 0.5  # a jump between times 3 and 4
    owner = np.array([[-1, 0, 0, 0, 1, 1], [-1, 0, 0, 0, 1, 1]])
    at_seam = seam_error(frames, truth, owner)
    assert at_seam["seam"] == 0.5 and at_seam["inside"] == 0
    elsewhere = seam_error(frames, truth, np.array([[-1, 0, 0, 1, 1, 1]] * 2))
    assert elsewhere["seam"] == 0 and elsewhere["inside"] > 0
    across = seam_error(frames, truth, owner, "views")
    assert np.isnan(across["seam"]) and across["inside"] == 0  # windows do not meet there
    frames[1] += 0.25
    two = np.array([[-1, 0, 0, 0, 0, 0], [-1, 1, 1, 1, 1, 1]])
    assert seam_error(frames, truth, two, "views")["seam"] == 0.25
    given = seam_error(frames, truth, np.array([[-1] * 6, [1] * 6]), "views")
    assert np.isnan(given["seam"])  # what was given is nobody's seam
