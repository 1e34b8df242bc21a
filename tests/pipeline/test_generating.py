# SPDX-License-Identifier: Apache-2.0
"""The generator's options on their way through a job: windows, memory, and what a warm model keeps.
Never measures quality."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from viewtime import options as option_names
from viewtime import pipeline, warm
from viewtime.options import OptionError, RunOptions
from viewtime_formats.capture import read_capture
from viewtime_formats.errors import ViewtimeError


def filled(capture, out, options, **calls):
    """All frames of the grid that `generate` writes."""
    from viewtime.grid import read_grid

    return read_grid(pipeline.generate(capture, out, options, **calls))


@pytest.fixture
def options(small_models):
    """Without the prior: a model of random weights then makes something of its own."""
    return RunOptions(
        size=32, steps=3, use_prior=False, device="cpu", generator=small_models["generator"]
    )


def test_the_lists_of_names_are_those_of_the_generator():
    from viewtime.generator import sampler, speed

    assert option_names.SOLVERS == sampler.SOLVERS
    assert option_names.OFFLOADS == speed.OFFLOADS


def test_windows_fill_the_whole_grid_and_leave_what_is_known(reference_capture, options, tmp_path):
    from viewtime.grid import grid_from_capture

    seen = []
    in_windows = dataclasses.replace(options, window="2x3", overlap="1x1")
    grid = filled(reference_capture, tmp_path / "out", in_windows, on_progress=seen.append)
    given = grid_from_capture(read_capture(reference_capture), 32)
    assert (grid.known == given.known).all() and grid.known.sum() == 7
    np.testing.assert_allclose(grid.frames[grid.known], given.frames[given.known], atol=1 / 255)
    assert (grid.frames[~grid.known].std(axis=(1, 2, 3)) > 0.01).all()
    # 3 views in 2 windows, 5 times in 2, 3 steps each: one count over all of them.
    steps = [(p.step, p.total) for p in seen if p.stage == "generate" and p.step]
    assert steps == [(n, 12) for n in range(1, 13)]
    whole = filled(reference_capture, tmp_path / "whole", options)
    assert np.abs(whole.frames - grid.frames).max() > 0.01  # they were windows indeed
    one = dataclasses.replace(options, window="9x99")
    same = filled(reference_capture, tmp_path / "one", one)
    np.testing.assert_array_equal(same.frames, whole.frames)


def test_the_preview_grows_with_the_windows_and_a_cancel_is_heard_in_the_second(
    reference_capture, small_models, tmp_path, monkeypatch
):
    from viewtime import preview

    monkeypatch.setattr(preview, "SECONDS_BETWEEN", 0.0)
    pictures, steps = [], []
    options = RunOptions(
        size=32, steps=2, use_prior=False, device="cpu", window="3x3", overlap="1x1", **small_models
    )
    with pytest.raises(pipeline.Cancelled):
        pipeline.run(
            reference_capture, tmp_path / "out", options, on_preview=pictures.append,
            on_progress=lambda p: steps.append(p.step) if p.stage == "generate" else None,
            should_cancel=lambda: 3 in steps,
        )  # fmt: skip
    assert max(steps) == 3 and not (tmp_path / "out").exists()
    grey = [(picture == preview.UNKNOWN).all(axis=-1).mean() for picture in pictures]
    # 8 of 15 cells are unknown; the first window (around the freeze time) knows 4 of them.
    np.testing.assert_allclose(sorted(set(np.round(grey, 3)), reverse=True), [8 / 15, 4 / 15, 0],
                               atol=2e-3)  # fmt: skip
    assert grey == sorted(grey, reverse=True)


def test_too_little_memory_is_told_before_the_first_long_stage(
    reference_capture, options, tmp_path, monkeypatch
):
    from viewtime.generator import load_generator, memory

    generator = load_generator(options.generator)

    def need(views, times):
        found = memory.estimate_memory(generator, views=views, times=times, height=32, width=32)
        return found.peak - found.weights

    monkeypatch.setattr(memory, "free_memory", lambda device: need(3, 3))
    seen = []
    with_prior = dataclasses.replace(options, use_prior=True)
    with pytest.raises(ViewtimeError, match="3 views x 5 times of 32 x 32 px need") as refused:
        filled(reference_capture, tmp_path / "out", with_prior, on_progress=seen.append)
    assert "window 3x3" in str(refused.value)
    assert {p.stage for p in seen} == {"read", "load"} and not (tmp_path / "out").exists()
    in_windows = dataclasses.replace(with_prior, window="3x3")
    assert filled(reference_capture, tmp_path / "out", in_windows).frames.shape[:2] == (3, 5)


def test_a_window_without_a_meaning_is_told_before_the_first_long_stage(
    reference_capture, options, tmp_path
):
    seen = []
    bad = dataclasses.replace(options, use_prior=True, window="1x3")
    with pytest.raises(ViewtimeError, match="windows of 1 with an overlap of 1"):
        filled(reference_capture, tmp_path / "out", bad, on_progress=seen.append)
    assert {p.stage for p in seen} == {"read", "load"}


def test_solver_shift_and_prompts_reach_the_sampler(
    reference_capture, options, tmp_path, monkeypatch
):
    from viewtime.generator import generation

    seen = {}

    def watch(generator, grid, **settings):
        seen.update(settings)
        return grid.frames

    monkeypatch.setattr(generation, "generate", watch)
    chosen = dataclasses.replace(
        options, solver="unipc", shift=3.0, guidance=4.0, negative_prompt="blur"
    )
    filled(reference_capture, tmp_path / "out", chosen)
    names = ("solver", "shift", "guidance", "negative_prompt", "steps", "prior")
    assert [seen[name] for name in names] == ["unipc", 3.0, 4.0, "blur", 3, None]


# ---- what a warm model keeps ---------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_warm(monkeypatch):
    monkeypatch.setattr(warm, "_warm", {})


def test_a_warm_generator_keeps_no_cache_of_an_earlier_job(reference_capture, options, tmp_path):
    before = filled(reference_capture, tmp_path / "1", options).frames
    model = warm._warm["generator"][1]
    cached = filled(reference_capture, tmp_path / "2", dataclasses.replace(options, cache=1e5))
    assert np.abs(cached.frames - before).max() > 1e-3  # the second step and the third were skipped
    after = filled(reference_capture, tmp_path / "3", options).frames
    np.testing.assert_array_equal(after, before)
    assert warm._warm["generator"][1] is model  # and it was not loaded again for that
    assert not model.model.transformer.is_cache_enabled


def test_a_compiled_generator_is_not_given_to_a_job_that_wants_a_plain_one(options, monkeypatch):
    from viewtime.generator import speed

    def mark(generator):
        generator.model.compiled = True

    monkeypatch.setattr(speed, "compile_blocks", mark)
    first = warm.warm_generator(options.generator, "cpu", compile=True)
    assert first.model.compiled
    assert warm.warm_generator(options.generator, "cpu", compile=True, cache=0.1) is first
    plain = warm.warm_generator(options.generator, "cpu")
    assert plain is not first and not hasattr(plain.model, "compiled")
    assert not plain.model.transformer.is_cache_enabled
    assert warm.warm_generator(options.generator, "cpu") is plain


def test_an_offloaded_generator_is_not_given_to_a_job_that_wants_a_plain_one(options, monkeypatch):
    """As on a machine with a GPU: which weights wait where, and for whom."""
    from viewtime import generator as generators

    loaded, load = [], generators.load_generator

    def load_here(name, *, device, weights_on, references):
        loaded.append((device, weights_on))
        return load(name)

    monkeypatch.setattr(generators, "load_generator", load_here, raising=False)
    monkeypatch.setattr(warm, "resolved", lambda device: device)
    from viewtime.generator import speed

    monkeypatch.setattr(
        speed, "offload", lambda g, mode, device: dataclasses.replace(g, offload=mode)
    )
    away = warm.warm_generator(options.generator, "cuda:1", offload="block")
    assert away.offload == "block" and loaded == [("cuda:1", "cpu")]
    assert warm.warm_generator(options.generator, "cuda:1", offload="block") is away
    assert warm.warm_generator(options.generator, "cuda:1", offload="leaf").offload == "leaf"
    assert warm.warm_generator(options.generator, "cuda:1").offload == "none"
    assert loaded[-1] == ("cuda:1", None)


def test_offload_without_a_gpu_is_refused_in_words(options):
    with pytest.raises(OptionError, match="offload is 'block', but the generator runs on the CPU"):
        warm.warm_generator(options.generator, "cpu", offload="block")


def test_how_references_enter_is_an_option_and_a_warm_model_keeps_it_apart(
    reference_capture, wan_folder, tmp_path
):
    from viewtime.generator import GeneratorError

    options = RunOptions(size=32, steps=2, use_prior=False, device="cpu", generator=str(wan_folder))
    made = {}
    for how in (None, "kept", "added", "clean"):
        chosen = dataclasses.replace(options, references=how)
        made[how] = filled(reference_capture, tmp_path / str(how), chosen).frames
        assert warm._warm["generator"][1].model.config.references == (how or "kept")
    np.testing.assert_array_equal(made[None], made["kept"])
    assert np.abs(made["kept"] - made["added"]).max() > 1e-4
    assert np.abs(made["clean"] - made["added"]).max() > 1e-4
    seen = []
    wrong = dataclasses.replace(options, references="pasted")
    with pytest.raises(GeneratorError, match="references is 'pasted', must be one of added, clean"):
        filled(reference_capture, tmp_path / "out", wrong, on_progress=seen.append)
    assert {p.stage for p in seen} == {"read", "load"}


# ---- more times than the model knows -------------------------------------------------------------


@pytest.fixture
def capture_of(tmp_path, write_frames):
    """Writes the references of 3 views x some times, with depth and a rig."""
    from viewtime_formats.capture import Cell, write_capture

    def write(times):
        folder = tmp_path / f"of {times}"
        rig = write_frames(folder)
        cells = [
            Cell(v, t, f"frames/{v}.{t % 5}.png", f"depth/{v}.{t % 5}.exr")
            for v in range(3)
            for t in range(times)
            if v == 0 or t == 2
        ]
        write_capture(
            folder, views=3, times=times, width=32, height=32, cells=cells, fixed_view=0,
            freeze_time=2, rig=rig,
        )  # fmt: skip
        return folder

    return write


def test_more_times_than_the_bundled_model_knows_are_made_in_windows_of_its_own(
    capture_of, small_models, tmp_path
):
    """The model behind every default has positions for 16 times; captures go on to 17, 21, 29."""
    seen = []
    options = RunOptions(size=32, device="cpu", reconstructor=small_models["reconstructor"])
    result = pipeline.run(capture_of(17), tmp_path / "out", options, on_progress=seen.append)
    assert (result.views, result.times) == (3, 17) and len(result.gaussians_per_step) == 17
    said = next(p.message for p in seen if p.stage == "generate")
    assert said == "32 of 51 frames missing, 3x13 at once: the model knows no more views x times"
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert written["options"]["window"] == "3x13" and written["options"]["steps"] == 4


def test_a_window_of_more_times_than_the_model_knows_is_refused_with_one_that_fits(
    capture_of, options, tmp_path
):
    seen, longer_capture = [], capture_of(17)
    asked = dataclasses.replace(options, use_prior=True, window="2x9")
    with pytest.raises(ViewtimeError, match="window is 2x9.* for 8 times per view: .*") as refused:
        filled(longer_capture, tmp_path / "out", asked, on_progress=seen.append)
    assert str(refused.value).endswith("window 2x5 would fit")
    assert {p.stage for p in seen} == {"read", "load"}
    grid = filled(longer_capture, tmp_path / "out", dataclasses.replace(asked, window="2x5"))
    assert grid.frames.shape[:2] == (3, 17)


@pytest.mark.parametrize(
    ("positions", "t_max", "grid", "window"),
    [
        ("flat", 8, (3, 8), None),
        ("flat", 8, (3, 9), (3, 5)),
        ("flat", 8, (200, 9), (128, 5)),
        ("flat", 0, (8, 128), None),
        ("flat", 0, (8, 129), (8, 125)),
        ("sum", 8, (3, 1022), None),
        ("sum", 8, (4, 1022), (4, 1021)),
        ("learned", 8, (2000, 1024), None),
        ("learned", 8, (2000, 1025), (2000, 1021)),
    ],
)
def test_the_window_is_the_largest_that_has_positions(positions, t_max, grid, window):
    from types import SimpleNamespace

    from viewtime.generator.codec import PixelCodec
    from viewtime.generator.fit import fitting_window

    stock = SimpleNamespace(freqs_cos=np.zeros((1024, 4)))
    rope = SimpleNamespace(stock=stock, kind=positions, t_max=t_max)
    model = SimpleNamespace(transformer=SimpleNamespace(rope=rope))
    generator = SimpleNamespace(model=model, codec=PixelCodec())
    assert fitting_window(generator, *grid) == window


# ---- what a checkpoint says of itself ------------------------------------------------------------


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory):
    """A checkpoint with a VAE, as diffusers saves them, of random weights: 16 px and 1 + 4k."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    folder = tmp_path_factory.mktemp("wan")
    torch.manual_seed(0)
    AutoencoderKLWan(
        base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[2.0] * 4
    ).save_pretrained(folder / "vae")
    WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=24, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=1,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    return folder


def test_a_stock_checkpoint_runs_by_its_own_scheduler_and_height(
    capture_of, wan_folder, tmp_path, monkeypatch
):
    from viewtime.estimate import work_of
    from viewtime.generator import generation
    from viewtime.models import defaults

    shutil.copytree(wan_folder, tmp_path / "wan")
    (tmp_path / "wan" / "scheduler").mkdir()
    (tmp_path / "wan" / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0})
    )
    monkeypatch.setattr(defaults, "VAE_SIZE", 48)  # 480 lines take a GPU
    seen = {}

    def watch(generator, grid, **settings):
        seen.update(settings)
        return grid.frames

    monkeypatch.setattr(generation, "generate", watch)
    capture = capture_of(5)
    options = RunOptions(use_prior=False, device="cpu", generator=str(tmp_path / "wan"))
    grid = filled(capture, tmp_path / "out", options)
    assert grid.frames.shape[3:] == (48, 48)
    assert (seen["solver"], seen["shift"], seen["steps"]) == ("unipc", 3.0, 50)
    work = work_of(read_capture(capture), options, "generated")
    assert (work.height, work.steps, work.how) == (48, 50, "")


def test_a_width_is_rounded_to_what_the_checkpoint_takes(capture_of, wan_folder, tmp_path):
    """As with TI2V-5B's 32 pixels: a width that no option sets was asked of the person."""
    import torch
    from diffusers import WanTransformer3DModel

    from viewtime.estimate import work_of
    from viewtime.generator import load_generator
    from viewtime.models.defaults import generator_defaults

    folder = tmp_path / "coarse"
    shutil.copytree(wan_folder, folder)
    torch.manual_seed(0)
    WanTransformer3DModel(
        patch_size=(1, 2, 4), num_attention_heads=1, attention_head_dim=24, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=1,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    for path in (wan_folder, folder):
        rows, columns = load_generator(path).frame_multiple
        assert generator_defaults(str(path)).columns == columns
    assert (rows, columns) == (16, 32)
    options = RunOptions(
        size=48, steps=1, use_prior=False, device="cpu", generator=str(folder), guidance=1.0
    )
    capture = capture_of(5)
    assert filled(capture, tmp_path / "out", options).frames.shape[3:] == (48, 64)
    assert work_of(read_capture(capture), options, "generated").width == 64


# ---- grids that a model cannot take --------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "size", "words"),
    [
        (6, 32, "6 frames per view do not fit the video codec.*use 5 or 9"),
        (5, 40, "frames of 32 x 40 px do not fit the generator.*multiples of 16 x 16"),
    ],
)
def test_what_a_model_does_not_take_is_told_before_the_first_long_stage(
    capture_of, wan_folder, tmp_path, times, size, words
):
    seen = []
    options = RunOptions(size=size, steps=1, device="cpu", generator=str(wan_folder))
    with pytest.raises(ViewtimeError, match=words):
        filled(capture_of(times), tmp_path / "out", options, on_progress=seen.append)
    assert {p.stage for p in seen} == {"read", "load"}


def test_windows_of_a_length_that_fits_make_a_clip_of_one_that_does_not(
    capture_of, wan_folder, tmp_path
):
    options = RunOptions(
        size=32, steps=1, use_prior=False, device="cpu", generator=str(wan_folder), window="3x5"
    )
    assert filled(capture_of(6), tmp_path / "out", options).frames.shape[:2] == (3, 6)


def test_no_text_encoder_is_loaded_for_a_grid_that_does_not_fit(wan_folder, monkeypatch):
    from viewtime.generator import GeneratorError, generate, load_generator
    from viewtime.generator.load import Generator
    from viewtime.grid import FrameGrid

    monkeypatch.setattr(Generator, "encode_text", lambda *_: pytest.fail("the text was encoded"))
    generator = load_generator(wan_folder)
    for shape, words in (((2, 6, 3, 16, 16), "use 5 or 9"), ((2, 5, 3, 16, 24), "use 32 x 16")):
        grid = FrameGrid(np.zeros(shape, np.float32), np.zeros(shape[:2], bool))
        with pytest.raises(GeneratorError, match=words):
            generate(generator, grid, prior=None, steps=1)
