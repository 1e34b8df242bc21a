# SPDX-License-Identifier: Apache-2.0
"""Judging a reconstructor: errors that are known beforehand, protocols, one command each."""

import numpy as np
import pytest
import torch

from viewtime.cli import main
from viewtime.data.synthetic import sample_grid
from viewtime.evaluation import reconstructor as evaluation
from viewtime.evaluation.reconstructor_cameras import camera_errors, cameras_in_predicted_world
from viewtime.evaluation.reconstructor_datasets import (
    choose_views,
    evaluate_folders,
    evaluate_scene,
    table,
)
from viewtime.media import write_png
from viewtime.reconstructor.align import align_cameras, align_points
from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.load import save_reconstructor
from viewtime.reconstructor.model import Prediction, Reconstructor
from viewtime.reconstructor.pose import encode_rig, matrix_from_quaternion
from viewtime_formats.errors import CaptureError
from viewtime_formats.rig import Camera, Rig, write_rig

INTRINSICS = np.array([[30.0, 0, 16], [0, 30.0, 16], [0, 0, 1]])


def random_rig(rng: np.random.Generator, count: int) -> Rig:
    cameras = []
    for v in range(count):
        turn = matrix_from_quaternion(rng.normal(size=4))
        cameras.append(Camera(f"c{v}", 32, 32, INTRINSICS, np.c_[turn, rng.normal(size=3)]))
    return Rig(tuple(cameras))


def elsewhere(rig: Rig, scale: float, turn: np.ndarray, shift: np.ndarray) -> Rig:
    """The rig in a world of which x = scale * turn @ x' + shift gives the rig's own."""
    cameras = []
    for c in rig.cameras:
        center, rotation = (c.center - shift) @ turn / scale, c.rotation @ turn
        intrinsics = INTRINSICS * [[1.5], [1.5], [1.0]]
        intrinsics[:2, 2] = 16.0
        cameras.append(Camera(c.name, 32, 32, intrinsics, np.c_[rotation, -rotation @ center]))
    return Rig(tuple(cameras))


def test_a_world_and_a_scale_of_its_own_is_no_camera_error():
    rng = np.random.default_rng(0)
    rig, turn = random_rig(rng, 5), matrix_from_quaternion(rng.normal(size=4))
    errors = camera_errors(elsewhere(rig, 3.0, turn, np.ones(3)), rig)
    assert max(errors.values()) < 1e-5


def test_camera_errors_are_those_that_were_made():
    rng = np.random.default_rng(1)
    rig = random_rig(rng, 2)
    tilt = matrix_from_quaternion([np.sin(np.radians(5)), 0, 0, np.cos(np.radians(5))])  # 10 deg
    second = rig.cameras[1]
    pose = np.c_[tilt @ second.rotation, -tilt @ second.rotation @ second.center]
    errors = camera_errors(Rig((rig.cameras[0], Camera("b", 32, 32, INTRINSICS, pose))), rig)
    assert errors["rotation"] == pytest.approx(10.0, abs=1e-6)
    assert errors["rpe_turn"] == pytest.approx(10.0, abs=1e-6)
    assert errors["direction"] < 1e-4 and errors["ate"] < 1e-9

    row = Rig(tuple(
        Camera(f"c{v}", 32, 32, INTRINSICS, np.c_[np.eye(3), [-float(v), 0, 0]]) for v in range(3)
    ))  # fmt: skip
    bent = Rig((*row.cameras[:2], Camera("c2", 32, 32, INTRINSICS, np.c_[np.eye(3), [-1, -1, 0]])))
    errors = camera_errors(bent, row)
    assert errors["direction"] == pytest.approx((90.0 + 45.0) / 3, abs=1e-6)
    scale, rotation, shift = align_points(
        np.stack([c.center for c in bent.cameras]), np.stack([c.center for c in row.cameras])
    )
    moved = scale * np.stack([c.center for c in bent.cameras]) @ rotation.T + shift
    wanted = np.sqrt(np.square(moved - np.stack([c.center for c in row.cameras])).sum(1).mean())
    assert errors["ate"] == pytest.approx(wanted / np.sqrt(2 / 3)) and errors["ate"] > 0.1


def test_cameras_asked_for_come_along_into_the_predicted_world():
    rng = np.random.default_rng(2)
    rig, turn = random_rig(rng, 6), matrix_from_quaternion(rng.normal(size=4))
    there = elsewhere(rig, 0.4, turn, np.ones(3))
    captured, predicted = Rig(rig.cameras[:4]), Rig(there.cameras[:4])
    found = cameras_in_predicted_world(
        rig.cameras[4:], align_cameras(predicted, captured), predicted, captured
    )
    for camera, wanted in zip(found, there.cameras[4:]):
        np.testing.assert_allclose(camera.camera_from_world, wanted.camera_from_world, atol=1e-7)
        np.testing.assert_allclose(camera.intrinsics, wanted.intrinsics)


class Knowing(torch.nn.Module):
    """Answers with what a scene's renderer knows, for whichever of its frames it is shown."""

    def __init__(self, scene: evaluation.HeldOut) -> None:
        super().__init__()
        self.config = ReconstructorConfig.small(size=32, rays=False)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.frames = np.concatenate([scene.sources.frames, scene.targets.frames])
        self.depth = np.concatenate([scene.sources.depth, scene.targets.depth])
        self.cameras = (*scene.rig.cameras, *scene.target_rig.cameras)

    def forward(self, frames, rays=None, **_):
        shown = frames[0].transpose(0, 1).numpy()  # (V,T,3,h,w)
        which = [int(np.square(self.frames[:, 0] - s[0]).sum((1, 2, 3)).argmin()) for s in shown]
        unit = float(2.0 + len(which))  # every call has its own scale, as VGGT's have
        depth = self.depth[which][:, : shown.shape[1]] / unit
        surface = torch.from_numpy(np.isfinite(depth)).float()[None].transpose(1, 2) * 18.0 - 9.0
        depth = torch.from_numpy(np.where(np.isfinite(depth), depth, 1.0).astype(np.float32))
        rig = Rig(tuple(
            Camera(f"{n}", 32, 32, self.cameras[v].intrinsics, self.cameras[v].camera_from_world)
            for n, v in enumerate(which)
        ))  # fmt: skip
        poses = torch.from_numpy(encode_rig(rig, unit))[None, None]
        depth = depth.transpose(0, 1)[None]
        return Prediction(depth, torch.ones_like(depth), surface,
                          [poses.expand(1, shown.shape[1], -1, -1)])  # fmt: skip


def test_a_model_that_knows_everything_beats_the_plane_by_far_in_every_way():
    scene = evaluation.held_out_scene(4, "static", sources=4, times=1, size=32)
    model, truth = Knowing(scene), scene.targets.frames
    plane = evaluation.picture_score(evaluation.constant_depth(scene), truth)
    for given in (True, False):
        made, errors = evaluation.novel_views(model, scene, given=given)
        assert evaluation.picture_score(made, truth)["psnr"] > plane["psnr"] + 3.0
    assert errors["rotation"] < 0.1 and errors["ate"] < 1e-3 and errors["refused"] == 0.0
    found = evaluation.depth_errors(model, scene)
    assert found["absrel"] < 0.01 and found["absrel_metric"] < 0.05


def test_targets_are_placed_as_in_the_paper_whatever_each_calls_scale():
    scene = evaluation.held_out_scene(4, "static", sources=4, times=1, size=32)
    model = Knowing(scene)
    frames = np.concatenate([scene.sources.frames, scene.targets.frames])
    rig = Rig((*scene.rig.cameras, *scene.target_rig.cameras), "dataset")
    grid = type(scene.sources)(frames, np.ones(frames.shape[:2], bool))
    score = evaluate_scene(model, grid, rig, range(4), range(4, 7))
    assert score["ate"] < 2e-3 and score["rotation"] < 0.1
    plane = evaluation.picture_score(evaluation.constant_depth(scene), scene.targets.frames)
    assert score["psnr"] > plane["psnr"] + 3.0
    known = evaluate_scene(model, grid, rig, range(4), range(4, 7), known_cameras=True)
    assert known["psnr"] > plane["psnr"] + 3.0 and "ate" not in known
    with pytest.raises(CaptureError, match="the dataset has none"):
        evaluate_scene(model, grid, None, range(4), range(4, 7), known_cameras=True)


def test_held_out_views_lie_between_those_given_and_share_no_frame():
    scene = evaluation.held_out_scene(1, "dynamic", sources=3, times=2, size=16)
    assert scene.sources.frames.shape == (3, 2, 3, 16, 16) and len(scene.target_rig) == 2
    for n, camera in enumerate(scene.target_rig.cameras):
        a, b = (scene.rig.cameras[n + i].center for i in (0, 1))
        longest = np.linalg.norm(a - b)
        assert max(np.linalg.norm(camera.center - x) for x in (a, b)) < longest
    assert not np.array_equal(scene.sources.frames[0, 0], scene.sources.frames[0, 1])
    still = evaluation.held_out_scene(1, "static", sources=3, times=2, size=16)
    assert still.sources.frames.shape[1] == 1
    with pytest.raises(ValueError, match="kind is 'slow'"):
        evaluation.held_out_scene(1, "slow", sources=3, times=2, size=16)


def test_views_are_spread_and_those_left_are_asked_for():
    given, asked = choose_views(10, 4, 100)
    assert given == [0, 3, 6, 9] and asked == [1, 2, 4, 5, 7, 8]
    given, asked = choose_views(30, 4, 5)
    assert len(asked) == 5 and not set(given) & set(asked)
    with pytest.raises(CaptureError, match="no view is left"):
        choose_views(4, 4, 5)


@pytest.fixture
def dataset(tmp_path):
    """A plain calibrated folder of five cameras with a picture each."""
    grid, rig = sample_grid(3, 5, 1, 32)
    folder = tmp_path / "data" / "scene"
    for v, camera in enumerate(rig.cameras):
        (folder / camera.name).mkdir(parents=True)
        write_png(folder / camera.name / "0000.png", grid.frames[v, 0].transpose(1, 2, 0))
    write_rig(folder / "rig.json", rig)
    return folder


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    small = ReconstructorConfig.small(
        dim=32, depth=4, heads=2, camera_heads=2, head_channels=(8, 8, 8, 8), head_features=8,
        size=32,
    )  # fmt: skip
    save_reconstructor(tmp_path / "weights", Reconstructor(small))
    return tmp_path / "weights"


def test_one_command_reads_a_dataset_and_prints_its_table(dataset, weights, capsys):
    status = main([
        "evaluate", "reconstructor", "--model", str(weights), "--folder", str(dataset.parent),
        "--inputs", "3",
    ])  # fmt: skip
    out = capsys.readouterr().out
    assert status == 0 and "| calibrated folder | 3 | mean of 1 |" in out and "psnr" in out


def test_a_dataset_with_too_few_views_is_named(dataset):
    with pytest.raises(CaptureError, match="no scene there has more views"):
        evaluate_folders(Knowing(
            evaluation.held_out_scene(0, "static", sources=2, times=1, size=16)
        ), [dataset], inputs=[5])  # fmt: skip


def test_one_command_prints_the_held_out_table(weights, capsys):
    status = main([
        "evaluate", "reconstructor", "--model", str(weights), "--scenes", "1", "--size", "32",
    ])  # fmt: skip
    out = capsys.readouterr().out
    assert status == 0 and "| dynamic | constant depth |" in out and "ATE" in out


def test_the_table_puts_the_mean_before_the_scenes():
    found = {("6, LLFF", 4): [("fern", {"psnr": 10.0, "ate": 0.5}), ("leaves", {"psnr": 20.0})]}
    lines = table(found).splitlines()
    assert lines[2] == "| 6, LLFF | 4 | mean of 2 | 15.00 | 0.500 |"
