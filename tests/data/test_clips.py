# SPDX-License-Identifier: Apache-2.0
"""Training clips from folders of scenes: shape, order, determinism, and what each kind shows."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from viewtime.data.readers import captioned_clip, read_caption, scenes_in, training_clip
from viewtime.training.common import TrainingError
from viewtime.training.mixture import Mixture
from viewtime_formats.errors import CaptureError

_SPEC = importlib.util.spec_from_file_location(
    "layouts_written", Path(__file__).with_name("layouts_written.py")
)
written = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(written)


def clip(folder, seed, views, times, kind):
    rng = np.random.default_rng(seed)
    return training_clip(str(folder), rng, views, times, 15, 20, kind)


def numbers(grid) -> tuple[np.ndarray, np.ndarray]:
    """Which (view, time) each cell shows, told by its colour."""
    mean = grid.mean((3, 4)) * 255
    return np.round((mean[..., 0] - 20) / 40), np.round((mean[..., 1] - 30) / 20)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Scenes of several layouts at several depths, one of them too small for most clips."""
    root = tmp_path_factory.mktemp("dataset")
    written.pictures(root / "a", 4, 6)
    written.transforms(_made(root / "deeper" / "b"), 4, 5)
    written.kubric(root / "deeper" / "c", 2, 2)
    return root


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    root = tmp_path_factory.mktemp("still")
    written.llff(root / "fern", 5, 1)
    written.estate(_made(root / "estate"), 5, 1)
    return root


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_scenes_are_found_below_a_folder(dataset, still):
    names = [Path(scene).relative_to(dataset).as_posix() for scene in scenes_in(str(dataset))]
    assert names == ["a", "deeper/b", "deeper/c"]
    assert [Path(scene).name for scene in scenes_in(str(still))] == ["estate", "fern"]


@pytest.mark.parametrize("kind", ["objects", "physics"])
def test_a_dynamic_clip_is_a_run_of_views_and_times(dataset, kind):
    starts = set()
    for seed in range(12):
        grid = clip(dataset, seed, 2, 3, kind)
        assert grid.shape == (2, 3, 3, 15, 20) and grid.dtype == np.float32
        assert np.array_equal(grid, clip(dataset, seed, 2, 3, kind))
        view, time = numbers(grid)
        assert (view == view[:, :1]).all() and (time == time[:1]).all()
        step = np.diff(time[0])
        assert (np.diff(view[:, 0]) > 0).all() and step[0] > 0 and (step == step[0]).all()
        starts.add((view[0, 0], time[0, 0], step[0]))
    assert len(starts) > 3


def test_a_static_clip_stands_still_and_one_view_follows_a_path(dataset, still):
    for seed in range(4):
        grid = clip(dataset, seed, 3, 4, "static")
        assert (grid == grid[:, :1]).all() and (np.diff(numbers(grid)[0][:, 0]) > 0).all()
        path = clip(still, seed, 1, 4, "static")
        assert path.shape[:2] == (1, 4) and (np.diff(numbers(path)[0][0]) > 0).all()


def test_a_homography_clip_shows_one_camera_from_all_views(tmp_path, dataset):
    for seed in range(4):
        view, time = numbers(clip(dataset, seed, 3, 2, "homography"))
        assert (view == view[0, 0]).all() and (time == time[:1]).all()
        assert (time[:, 0] < time[:, 1]).all()
    written.video(tmp_path / "one" / "walk.mp4", 1, 9)
    assert clip(tmp_path / "one", 0, 3, 5, "homography").shape == (3, 5, 3, 15, 20)
    assert clip(tmp_path / "one" / "walk.mp4", 0, 3, 5, "homography").shape[:2] == (3, 5)


def test_what_a_dataset_lacks_is_said(dataset, tmp_path):
    with pytest.raises(CaptureError, match="9 views x 2 times.*one has 4 x 6"):
        clip(dataset, 0, 9, 2, "objects")
    with pytest.raises(CaptureError, match="holds no scene"):
        clip(tmp_path, 0, 2, 2, "objects")
    with pytest.raises(CaptureError, match="'cats'"):
        clip(dataset, 0, 2, 2, "cats")


def test_the_mixture_draws_from_datasets(dataset, still):
    mixture = Mixture(
        shares={"objects": 1.0, "static": 1.0},
        datasets={"objects": [str(dataset)], "static": [str(still)]},
    )
    kinds = set()
    for number in range(6):
        grid = mixture.grid(number, seed=1, views=2, times=3, height=15, width=20)
        assert grid.frames.shape == (2, 3, 3, 15, 20)
        assert abs(grid.frames[:, :, 2].mean() * 255 - 200) < 3  # the blue of every picture here
        kinds.add(grid.kind)
    assert kinds == {"objects", "static"}


# ---- captions ------------------------------------------------------------------------------------


def test_a_scene_is_said_to_show_what_its_files_say(tmp_path):
    written.pictures(tmp_path / "a", 2, 3)
    (tmp_path / "a" / "prompt.txt").write_text("a red\n  cat \n")
    written.transforms(_made(tmp_path / "b"), 2, 3)
    transforms = tmp_path / "b" / "transforms.json"
    values = json.loads(transforms.read_text())
    transforms.write_text(json.dumps({**values, "prompt": "two balls"}))
    written.pictures(tmp_path / "c", 2, 3)
    assert [Path(s).name for s in scenes_in(str(tmp_path))] == ["a", "b", "c"]
    said = {Path(s).name: read_caption(s) for s in scenes_in(str(tmp_path))}
    assert said == {"a": "a red cat", "b": "two balls", "c": ""}
    mixture = Mixture(
        {"objects": 1.0}, datasets={"objects": [str(tmp_path)]},
        captions={str(tmp_path): "something"},
    )  # fmt: skip
    assert mixture.prompts() == {"", "a red cat", "two balls", "something"}
    shape = dict(seed=0, views=2, times=3, height=8, width=8)
    drawn = {mixture.grid(n, **shape).prompt for n in range(20)}
    assert drawn == {"a red cat", "two balls", "something"}


def test_a_clip_comes_with_the_caption_of_its_own_scene(tmp_path):
    for name, views in (("two", 2), ("four", 4)):
        written.pictures(tmp_path / name, views, 3)
        (tmp_path / name / "prompt.txt").write_text(name)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        assert captioned_clip(str(tmp_path), rng, 3, 2, 15, 20, "objects")[1] == "four"


def test_a_scene_that_is_a_file_has_its_caption_beside(tmp_path):
    for name in ("clip.mp4", "other.mp4"):
        (tmp_path / name).touch()
    (_made(tmp_path / "clip") / "prompt.txt").write_text("its own")
    (tmp_path / "prompt.txt").write_text("for all")
    assert read_caption(str(tmp_path / "clip.mp4")) == "its own"
    assert read_caption(str(tmp_path / "other.mp4")) == "for all"


def test_captions_that_are_none_are_refused_by_name(tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CaptureError, match="prompt.txt: is not text in UTF-8"):
        read_caption(str(tmp_path))
    (_made(tmp_path / "b") / "transforms.json").write_text('{"prompt": 3}')
    with pytest.raises(CaptureError, match="transforms.json: prompt must be text, is int"):
        read_caption(str(tmp_path / "b"))
    with pytest.raises(TrainingError, match="captions: 'elsewhere' is not one of the datasets"):
        Mixture(captions={"elsewhere": "a cat"})
