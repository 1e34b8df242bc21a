# SPDX-License-Identifier: Apache-2.0
"""Training in stages: what trains, what is drawn, where targets lie, and that kills do no harm."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import viewtime.training
from viewtime.gaussians.lift import surfels
from viewtime.gaussians.rendering import render
from viewtime.lpips import gradient_distance
from viewtime.media import write_png
from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.load import load_reconstructor
from viewtime.reconstructor.model import Reconstructor
from viewtime.reconstructor.pose_encoding import encode_poses
from viewtime.training.common import TrainingError, read_settings
from viewtime.training.reconstructor_novel import (
    captured_lenses,
    novel_views,
    photometric_loss,
    predict,
)
from viewtime.training.reconstructor_recipe import Recipe, Stage
from viewtime.training.reconstructor_report import plane_psnr, score
from viewtime.training.reconstructor_scenes import draw_scenes, held_out_scenes, stage_scenes
from viewtime.training.reconstructor_stages import choose_parameters, train
from viewtime_formats.rig import Camera

TINY = {
    "dim": 16, "depth": 4, "heads": 2, "camera_heads": 2, "head_channels": [8, 8, 8, 8],
    "head_features": 8, "size": 16, "temporal": "layer", "gaussian_head": "residual",
    "gaussian_log_scale": -3.0, "gaussian_opacity": 0.0,
}  # fmt: skip
GEOMETRY = {"kind": "geometry", "steps": 2, "batch": 2, "rays": 0.5}
STATIC = {"kind": "static", "steps": 3, "views": 3, "novel": 2, "warm_up": 1}
DYNAMIC = {"kind": "dynamic", "steps": 3, "views": 3, "novel": 2, "times": 2, "still": 0.5,
           "own": 1, "warm_up": 1}  # fmt: skip


def settings(folder, stages=(STATIC, DYNAMIC), **other):
    return {
        "folder": str(folder), "stages": [dict(s) for s in stages], "model": TINY, "height": 16,
        "width": 16, "precision": "no", "held_out": 1, "average": 0.9, "log_every": 1,
        "checkpoint_every": 1, "sample_every": 100, **other,
    }  # fmt: skip


def recipe_of(folder="unused", stages=(STATIC, DYNAMIC), **other) -> Recipe:
    return Recipe.from_dict(settings(folder, stages, **other))


# ---- settings ------------------------------------------------------------------------------------


def test_the_papers_config_has_the_papers_numbers():
    configs = Path(viewtime.training.__file__).parent / "configs"
    recipe = Recipe.from_dict(read_settings(configs / "reconstructor-paper.toml"))
    still, moving = recipe.stages
    assert (still.kind, still.steps, still.batch, still.peak_rate) == ("static", 20000, 14, 2e-4)
    assert (moving.kind, moving.steps, moving.batch) == ("dynamic", 15000, 1)
    assert moving.peak_rate == 2e-5
    assert (still.views, moving.views, moving.times) == (4, 4, 4)
    assert (still.trains, moving.trains) == ("head", "temporal")
    assert (recipe.height, recipe.width) == (350, 518)
    recipe.check_model(ReconstructorConfig(temporal="layer", gaussian_head="residual"))
    small = Recipe.from_dict(read_settings(configs / "reconstructor-small-gpu.toml"))
    assert sum(stage.minutes for stage in small.stages) <= 20
    small.check_model(ReconstructorConfig.small(**small.model))


@pytest.mark.parametrize("change, words", [
    ({"folders": "x"}, "unknown settings: folders"),
    ({"stages": []}, "stages is absent"),
    ({"stages": [{"kind": "static"}]}, "stage 1: steps is absent"),
    ({"stages": [{**STATIC, "speed": 1}]}, "unknown settings of stage 1: speed"),
    ({"stages": [{**STATIC, "kind": "still"}]}, "kind is 'still', must be one of geometry, static"),
    ({"stages": [{**STATIC, "times": 2}]}, "static stage: times is 2, must be 1"),
    ({"stages": [{**DYNAMIC, "times": 1}]}, "dynamic stage: times is 1, must be 2 or more"),
    ({"stages": [{**STATIC, "own": 4}]}, "own is 4, must be at most views, 3"),
    ({"stages": [{**STATIC, "rays": 1.5}]}, "static stage: rays is 1.5, must be 0 to 1"),
    ({"stages": [{**STATIC, "trains": "eyes"}]}, "trains is 'eyes', must be one of all, head"),
    ({"stages": [STATIC, GEOMETRY]}, "stages: a geometry stage comes first"),
    ({"static": ["scnes"]}, "static: 'scnes' must be one of scenes, objects, tracks"),
    ({"lpips": "nowhere.safetensors"}, "lpips: there is no file 'nowhere.safetensors'"),
    ({"precision": "fp16"}, "precision is 'fp16', must be one of no, bf16"),
    ({"width": 20}, "width is 20, must be a multiple of 8 px"),
    ({"model": {**TINY, "gaussian_head": "none"}}, "gaussian_head is 'none'"),
    ({"model": {**TINY, "rays": False}, "stages": [{**STATIC, "rays": 1.0}]}, "takes none"),
])  # fmt: skip
def test_settings_without_meaning_are_refused_by_name(tmp_path, change, words):
    with pytest.raises(TrainingError, match=words):
        train(Recipe.from_dict({**settings(tmp_path / "run"), **change}))


# ---- what is drawn -------------------------------------------------------------------------------


def test_still_scenes_of_a_dynamic_stage_stand_still_and_moving_ones_move():
    recipe = recipe_of()
    stage = dataclasses.replace(recipe.stages[1], times=3)
    for still in (True, False):
        scenes = draw_scenes(recipe, stage, [(5,), (6,)], still=still)
        assert scenes.frames.shape == (2, 3, 3, 3, 16, 16)
        assert scenes.targets.shape == (2, 3, 2, 3, 16, 16)
        seen = (scenes.frames, scenes.targets, scenes.depth)
        same = [
            all(torch.equal(x[:, 0], x[:, t]) for x in seen)
            for t in (1, 2)
        ]  # fmt: skip
        assert same == [still, still]


def test_shares_of_still_scenes_are_drawn_as_asked():
    def stands(seed: int, **stage) -> bool:
        recipe = recipe_of(stages=[{**DYNAMIC, **stage}], static=["tracks"], dynamic=["scenes"])
        frames = draw_scenes(recipe, recipe.stages[0], [(seed,)]).frames
        return torch.equal(frames[:, 0], frames[:, 1])

    assert all(stands(n, still=1.0) for n in range(4))
    assert not all(stands(n, still=0.0) for n in range(4))
    alike = np.mean([stands(n, still=-1.0) for n in range(24)])  # one list of one each: a half
    assert 0.2 < alike < 0.9


def test_a_step_sees_the_same_scenes_whenever_it_is_drawn_and_each_process_others():
    recipe = recipe_of(stages=[{**STATIC, "batch": 2}])
    one = stage_scenes(recipe, recipe.stages[0], 0, 7)
    assert torch.equal(one.frames, stage_scenes(recipe, recipe.stages[0], 0, 7).frames)
    other = stage_scenes(recipe, recipe.stages[0], 0, 7, process=1, processes=2)
    assert not torch.equal(one.frames, other.frames)
    assert not torch.equal(one.frames, stage_scenes(recipe, recipe.stages[0], 1, 7).frames)


@pytest.mark.parametrize("with_rays", [False, True])
def test_scenes_are_in_view_0s_frame_and_their_depth_in_the_cameras_unit(with_rays):
    """Points of view 0, seen by view 1, lie where view 1's own depth says, or behind."""
    recipe = recipe_of(stages=[{**STATIC, "rays": 1.0}], height=48, width=48, static=["scenes"])
    scenes = held_out_scenes(recipe, recipe.stages[0], 1, with_rays=with_rays)
    assert (scenes.rays is not None) is with_rays
    torch.testing.assert_close(scenes.extrinsics[0, 0], torch.eye(4)[:3], atol=1e-5, rtol=0)
    from viewtime.reconstructor.pose_encoding import unproject

    depth = scenes.depth[0, 0]
    points = unproject(depth[0], scenes.extrinsics[0, 0], scenes.intrinsics[0, 0])
    points = points[torch.isfinite(depth[0])]
    local = points @ scenes.extrinsics[0, 1, :, :3].T + scenes.extrinsics[0, 1, :, 3]
    pixel = local @ scenes.intrinsics[0, 1].T
    pixel = (pixel[:, :2] / pixel[:, 2:]).floor().long()
    inside = (local[:, 2] > 0) & ((pixel >= 0) & (pixel < 48)).all(-1)
    there = depth[1][pixel[inside][:, 1], pixel[inside][:, 0]]
    close = ((local[inside][:, 2] - there).abs() < 0.05 * there).float().mean()
    assert inside.sum() > 200 and close > 0.5


def test_folders_of_calibrated_pictures_are_drawn_from(tmp_path):
    """Six cameras in a row as transforms.json; what it says is what is trained on."""
    rng, frames = np.random.default_rng(0), []
    for v in range(6):
        write_png(tmp_path / f"{v}.png", rng.random((16, 16, 3)).astype(np.float32))
        pose = np.eye(4)
        pose[0, 3] = v
        frames.append({"file_path": f"{v}.png", "transform_matrix": pose.tolist()})
    lens = {"fl_x": 20.0, "fl_y": 20.0, "cx": 8.0, "cy": 8.0, "w": 16, "h": 16}
    (tmp_path / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
    recipe = recipe_of(static=[str(tmp_path)])
    scenes = draw_scenes(recipe, recipe.stages[0], [(1,)])
    assert scenes.depth is None and scenes.frames.shape == (1, 1, 3, 3, 16, 16)
    model = Reconstructor(ReconstructorConfig.small(**TINY))
    loss, parts = photometric_loss(
        model, predict(model, scenes), scenes, gradient_distance, perceptual=0.1, geometry=1.0
    )
    assert math.isfinite(loss.item()) and "depth" not in parts  # nobody knows it
    crowded = recipe_of(stages=[{**STATIC, "views": 9}], static=[str(tmp_path)])
    with pytest.raises(TrainingError, match="11 views"):
        draw_scenes(crowded, crowded.stages[0], [(1,)])


# ---- where targets lie ---------------------------------------------------------------------------


@pytest.mark.parametrize("whole_clip", [False, True])
def test_no_picture_changes_with_the_size_of_the_predicted_world_or_its_lenses(whole_clip):
    """A model whose world is twice as large is as right as any, and so is one that sees through
    longer lenses, as targets are then seen through longer lenses too."""
    recipe = recipe_of(height=24, width=24)
    scenes = held_out_scenes(recipe, recipe.stages[1], 0)
    model = Reconstructor(ReconstructorConfig.small(**{**TINY, "size": 24})).eval()
    prediction = predict(model, scenes)
    true = encode_poses(scenes.extrinsics, scenes.intrinsics, (24, 24))[:, None].expand(
        -1, 2, -1, -1
    )
    larger = true.clone()
    larger[..., :3] *= 2.0
    raw = prediction.gaussians.clone()
    raw[:, :, :, :3] = 0.0  # offsets have their own way of growing
    grown = raw.clone()
    grown[:, :, :, 4:7] += math.log(2.0)
    depth = scenes.depth.clamp(max=20.0)
    one = dataclasses.replace(prediction, poses=[true], gaussians=raw, depth=depth)
    two = dataclasses.replace(prediction, poses=[larger], gaussians=grown, depth=2.0 * depth)
    a, b = (novel_views(model, p, scenes, whole_clip=whole_clip) for p in (one, two))
    torch.testing.assert_close(a.color, b.color, atol=2e-3, rtol=0)
    assert float(a.color.std()) > 0.01
    longer = scenes.intrinsics.clone()
    longer[..., (0, 1), (0, 1)] *= 1.1
    zoomed = dataclasses.replace(
        one,
        poses=[encode_poses(scenes.extrinsics, longer, (24, 24))[:, None].expand(-1, 2, -1, -1)],
    )
    lenses = captured_lenses(zoomed, scenes, scenes.target_intrinsics)
    ratio = lenses[..., 0, 0] / scenes.target_intrinsics[:, None, :, 0, 0]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.1), atol=1e-3, rtol=0)


# ---- what trains ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage, wanted", [
    (GEOMETRY, lambda n: not n.startswith("gaussian_head.")),
    (STATIC, lambda n: n.startswith("gaussian_head.")),
    ({**STATIC, "trains": "all"}, lambda n: "temporal" not in n and "ray_embed" not in n),
    (DYNAMIC, lambda n: n.startswith("gaussian_head.") or "temporal_blocks" in n),
])  # fmt: skip
def test_gradients_reach_only_what_trains(stage, wanted):
    torch.manual_seed(0)
    recipe = recipe_of(stages=[stage])
    model = Reconstructor(ReconstructorConfig.small(**TINY))
    chosen = choose_parameters(model, recipe.stages[0])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if wanted(n)}
    assert len(chosen) == len(trained)
    if stage["kind"] == "geometry":
        return
    scenes = held_out_scenes(recipe, recipe.stages[0], 0, with_rays=True)
    trunk = recipe.stages[0].trains != "head"
    prediction = predict(model, scenes, trunk_gradients=trunk)
    loss, _ = photometric_loss(model, prediction, scenes, gradient_distance, perceptual=0.25, own=1)
    loss.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    assert reached <= trained
    assert any(n.startswith("gaussian_head.") for n in reached)
    if stage["kind"] == "dynamic":  # silent layers hear through their last weights at first
        assert any("frame_temporal_blocks" in n for n in reached)
        assert max(
            float(p.grad.abs().max()) for n, p in model.named_parameters()
            if "temporal_blocks" in n and p.grad is not None
        ) > 0  # fmt: skip


def test_a_model_without_such_layers_is_told():
    model = Reconstructor(ReconstructorConfig.small(**{**TINY, "gaussian_head": "none"}))
    with pytest.raises(TrainingError, match="static stage: trains is 'head'"):
        choose_parameters(model, Stage(**STATIC))


def test_one_scene_is_learnt_from_views_it_is_not_given():
    torch.manual_seed(0)
    recipe = recipe_of(
        stages=[{**STATIC, "trains": "all", "novel": 3, "rays": 1.0}], height=24, width=24
    )
    scenes = held_out_scenes(recipe, recipe.stages[0], 2, with_rays=True)
    model = Reconstructor(ReconstructorConfig.small(**{**TINY, "dim": 32, "size": 24}))
    parameters = choose_parameters(model, recipe.stages[0])
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    before = score(model, scenes)[0]
    for _ in range(60):
        prediction = predict(model, scenes)
        loss, parts = photometric_loss(
            model, prediction, scenes, gradient_distance, perceptual=0.1, geometry=0.1
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    after = score(model, scenes)[0]
    assert after["psnr"] > before["psnr"] + 2.5, (before, after)
    assert after["depth"] < before["depth"]


def test_cameras_that_are_read_back_count_although_the_model_was_given_them():
    """The pictures follow the camera tokens then, and these are taught the cameras."""
    torch.manual_seed(0)
    model = Reconstructor(ReconstructorConfig.small(**{**TINY, "rays": True}))
    shown = {}
    for read_back in (False, True):
        recipe = recipe_of(
            read_back=read_back, stages=[{**STATIC, "rays": 1.0}], height=24, width=24,
            model={**TINY, "rays": True},
        )  # fmt: skip
        scenes = held_out_scenes(recipe, recipe.stages[0], 2, with_rays=True)
        assert scenes.part(0, 1).to("cpu").cameras_known is not read_back
        model.zero_grad()
        prediction = predict(model, scenes)
        shown[read_back] = novel_views(model, prediction, scenes).color
        photometric_loss(
            model, prediction, scenes, gradient_distance, perceptual=0.0, geometry=1.0
        )[0].backward()
        taught = max(float(p.grad.abs().max()) for p in model.camera_head.parameters())
        assert (taught > 0) is read_back
    assert not torch.allclose(shown[False], shown[True], atol=1e-3)


def test_a_plane_before_the_nearest_camera_is_what_a_target_there_sees():
    recipe = recipe_of(height=32, width=32)
    scenes = held_out_scenes(recipe, recipe.stages[0], 0)
    there = dataclasses.replace(
        scenes,
        targets=scenes.frames[:, :, :1],
        target_extrinsics=scenes.extrinsics[:, :1],
        target_intrinsics=scenes.intrinsics[:, :1],
    )
    assert plane_psnr(there) > plane_psnr(scenes) + 2.0


def test_that_plane_is_as_sharp_as_pixels_lifted_for_the_same_dilation():
    """Pixels turned into disks by `surfels` at the footprint that it names for 0.3 px^2."""
    recipe = recipe_of(height=32, width=32)
    scenes = held_out_scenes(recipe, recipe.stages[0], 0)
    scenes = dataclasses.replace(
        scenes,
        targets=scenes.frames[:, :, :1],
        target_extrinsics=scenes.extrinsics[:, :1],
        target_intrinsics=scenes.intrinsics[:, :1],
    )
    picture, seen = scenes.frames[0, 0, 0].permute(1, 2, 0).numpy(), scenes.depth[0, 0, 0].numpy()
    depth = np.full((32, 32), np.median(seen[np.isfinite(seen)]))
    lens, pose = (x[0, 0].double().numpy() for x in (scenes.intrinsics, scenes.extrinsics))
    camera = Camera("source", 32, 32, lens, pose)
    plane = surfels(picture, depth, camera, footprint=0.3).gaussians()
    shown = render(plane, camera, background=picture.mean((0, 1)), dilation=0.3).color.clip(0, 1)
    expected = -10 * np.log10(np.square(shown - picture).mean())
    assert plane_psnr(scenes) == pytest.approx(expected, abs=0.3)


# ---- kills ---------------------------------------------------------------------------------------


def test_killed_and_started_again_it_ends_in_the_same_weights(tmp_path):
    stages = [GEOMETRY, {**STATIC, "trains": "all", "geometry": 0.1}, DYNAMIC]
    weights = "weights/model.safetensors"
    other = {"precision": "bf16", "checkpointing": True}
    final = train(recipe_of(tmp_path / "whole", stages, **other))
    config = tmp_path / "config.json"
    # Scenes drawn in a process beside are the same scenes.
    config.write_text(json.dumps(settings(tmp_path / "killed", stages, beside=True, **other)))
    process = subprocess.Popen(
        [sys.executable, "-c", f"import torch; torch.set_num_threads({torch.get_num_threads()});"
         "import sys; from viewtime.training.reconstructor import main; main(sys.argv[1:])",
         config],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    stage = ""
    for line in process.stdout:
        stage = line if line.startswith("stage ") else stage
        if stage.startswith("stage 2") and line.startswith("step=2/"):
            process.kill()
            break
    process.wait()
    killed = tmp_path / "killed"
    assert not (killed / "2-static" / weights).exists()
    train(recipe_of(killed, stages, **other))
    log = (killed / "2-static" / "log.txt").read_text()
    assert "eta=" in log and log.count("step=1/3") == 1  # it went on, it did not begin again
    for part in ("1-geometry", "2-static", "3-dynamic", "."):
        one = load_file(tmp_path / "whole" / part / weights)
        two = load_file(killed / part / weights)
        assert all(torch.equal(one[name], two[name]) for name in one), part
    for part in ("2-static", "3-dynamic"):
        for name in ("sheet.png", "loss.png"):
            assert (killed / part / name).stat().st_size > 500
        held = json.loads((killed / part / "held_out.jsonl").read_text().splitlines()[-1])
        assert {"psnr", "ssim", "plane_psnr", "depth", "turn", "direction"} <= set(held)
    model = load_reconstructor(final)
    assert model.config.gaussian_head == "residual" and model.config.temporal == "layer"
    card = json.loads((final / "card.json").read_text())
    assert "gradients" in card["perceptual_distance"] and card["stages"][1]["held_out"]["psnr"]
    # A finished training is not trained again.
    before = (killed / "3-dynamic" / "log.txt").read_text()
    train(recipe_of(killed, stages, **other))
    assert (killed / "3-dynamic" / "log.txt").read_text() == before


def test_a_stage_ends_by_the_clock_and_is_through_then(tmp_path):
    stages = [{**STATIC, "steps": 100_000, "minutes": 1e-6}]
    train(recipe_of(tmp_path, stages))
    assert (tmp_path / "1-static" / "log.txt").read_text().startswith("step=1/100000")
    train(recipe_of(tmp_path, stages))
    assert len((tmp_path / "1-static" / "log.txt").read_text().splitlines()) == 1


# ---- ablations -----------------------------------------------------------------------------------


def test_the_tables_train_what_they_say_once_and_print_every_variant(tmp_path):
    from viewtime.evaluation import reconstructor_tables as tables

    scale = tables.Scale(
        base=1, static=1, dynamic=1, size=16, views=3, times=2, novel=2, batch=1, scenes=1,
        precision="no", model={k: v for k, v in TINY.items() if k != "size"} | {"temporal": "none"},
    )  # fmt: skip
    said: list[str] = []
    rows = tables.run_table("8", tmp_path, scale, said.append, seeds=(0,))
    assert list(rows) == [variant.name for variant in tables.COMPONENT_TABLE] and len(said) == 3
    configs = {}
    for run in tmp_path.glob("dynamic-*"):
        config = load_reconstructor(run / "weights").config
        configs[run.name] = (config.temporal, config.replace_cameras)
    assert sorted(configs.values()) == [("layer", False), ("layer", True), ("none", True)]
    assert len(list(tmp_path.glob("static-*"))) == 1  # shared: there is no time in it
    text = tables.markdown(rows, {"moving": tables.naive("moving", scale)})
    assert all(name in text for name in rows) and text.count("**") == 2
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*/train.safetensors")}
    assert tables.run_table("8", tmp_path, scale, said.append, seeds=(0,)) == rows
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*/train.safetensors")}
    assert [v.static for v in tables.DATA_TABLE] == [("scenes",), ("objects",), ("tracks",),
                                                     ("scenes", "objects", "tracks")]  # fmt: skip
