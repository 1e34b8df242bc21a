# SPDX-License-Identifier: Apache-2.0
"""The paper's recipe: what trains, what is drawn, that it survives kills and spreads out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from viewtime.generator.codec import PixelCodec
from viewtime.generator.conditioning import Conditions
from viewtime.generator.load import Generator, load_generator, save_generator
from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer
from viewtime.training import common
from viewtime.training.fine_tuning import FineTuning, Phase, choose_parameters, clip_gradient, train
from viewtime.training.flow import draw, flow_loss
from viewtime.training.mixture import KINDS, PAPER_SHARES, Mixture
from viewtime.training.samples import read_losses


@pytest.fixture
def base(tmp_path):
    """A small video model to start from, with pixels as latents."""
    torch.manual_seed(3)
    transformer = new_transformer(layers=2, heads=1, head_dim=24, ffn=32)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.02)
    model = ViewTimeTransformer(transformer, GeneratorConfig(text_tokens=0))
    save_generator(tmp_path / "base", model)
    return tmp_path / "base"


def settings(base, folder, **other):
    return {
        "base": str(base), "folder": str(folder), "phases": [{"frames": 2, "steps": 4},
        {"frames": 3, "steps": 2}], "views": 2, "height": 16, "width": 16, "batch": 2,
        "peak_rate": 1e-3, "warm_up": 1, "precision": "no", "log_every": 1, "checkpoint_every": 2,
        "sample_every": 100, "sample_steps": 1, **other,
    }  # fmt: skip


def test_the_defaults_are_the_papers():
    recipe = FineTuning(base="x")
    assert recipe.phases == (Phase(29, 4000), Phase(61, 2000)) and recipe.steps == 6000
    assert [recipe.frames_at(s) for s in (0, 3999, 4000, 5999, 7000)] == [29, 29, 61, 61, 61]
    assert (recipe.batch, recipe.peak_rate, recipe.views) == (96, 1e-4, 8)
    assert (recipe.height, recipe.width) == (144, 256)
    assert (
        Mixture().shares
        == PAPER_SHARES
        == dict(objects=0.4, physics=0.2, homography=0.2, static=0.2)
    )


def test_the_papers_config_files_are_recipes():
    import viewtime.training

    configs = Path(viewtime.training.__file__).parent / "configs"
    paper = FineTuning.from_dict(common.read_settings(configs / "generator-paper.toml"))
    assert paper.phases == FineTuning(base="x").phases and paper.batch == 96
    wan = FineTuning.from_dict(common.read_settings(configs / "generator-wan-1.3b.toml"))
    assert wan.base and paper.decay == wan.decay == "none"  # warmed up, then constant


@pytest.mark.parametrize("change, words", [
    ({"bases": "x"}, "unknown settings: bases"),
    ({"trainable": "head"}, "trainable is 'head', must be one of self_attention, all"),
    ({"decay": "linear"}, "decay is 'linear', must be one of cosine, none"),
    ({"precision": "fp16"}, "precision is 'fp16', must be one of no, bf16$"),
    ({"mixture": {"shares": {"movies": 1.0}}}, "shares: 'movies' must be one of objects"),
    ({"mixture": {"references": {"row": -1.0}}}, "references: row is -1.0, must be 0 or more"),
    ({"width": 20}, "frames of 20 x 16 px must be multiples of 8 x 8"),
])  # fmt: skip
def test_settings_without_meaning_are_refused_by_name(base, tmp_path, change, words):
    with pytest.raises(common.TrainingError, match=words):
        train(FineTuning.from_dict(settings(base, tmp_path / "run", **change)))


@pytest.mark.parametrize("architecture", ["fused", "parallel"])
def test_only_self_attention_and_what_was_added_trains(base, tmp_path, architecture):
    recipe = FineTuning.from_dict(
        settings(base, tmp_path / "run", model={"architecture": architecture})
    )
    before = load_generator(base, config=GeneratorConfig(architecture=architecture, text_tokens=0))
    after = load_generator(train(recipe))
    changed = {
        name
        for (name, old), new in zip(
            before.model.named_parameters(), after.model.state_dict().values()
        )
        if not torch.equal(old, new)
    }
    attention = {n for n, _ in before.model.named_parameters() if ".attn1." in n}
    added = {n for n, _ in before.model.named_parameters() if n.startswith("added_layers")}
    assert changed == attention | added
    assert after.model.config == before.model.config
    for name in ("sheet.png", "loss.png"):
        assert (tmp_path / "run" / name).stat().st_size > 1000
    steps, losses = read_losses(tmp_path / "run" / "log.txt")
    assert steps.tolist() == [1, 2, 3, 4, 5, 6] and np.isfinite(losses).all()


def test_the_rate_of_each_step_is_the_recipes(base, tmp_path, monkeypatch):
    rates = []
    stock = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step",
        lambda self, *a: (rates.append(self.param_groups[0]["lr"]), stock(self, *a))[1],
    )  # fmt: skip
    for decay in common.DECAYS:
        train(FineTuning.from_dict(settings(base, tmp_path / decay, decay=decay, warm_up=2)))
    cosine, none = rates[:6], rates[6:]
    assert none == [5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]
    assert cosine[:3] == none[:3] and cosine[-1] < 0.3e-3


def test_killed_and_started_again_it_ends_in_the_same_weights(base, tmp_path):
    weights = "transformer/diffusion_pytorch_model.safetensors"
    recipe = FineTuning.from_dict(settings(base, tmp_path / "whole"))
    uninterrupted = load_file(train(recipe) / weights)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings(base, tmp_path / "killed")))
    process = subprocess.Popen(
        [sys.executable, "-c", f"import torch; torch.set_num_threads({torch.get_num_threads()});"
         "import sys; from viewtime.training.generator import main; main(sys.argv[1:])", config],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step=3/"):
            process.kill()
            break
    process.wait()
    assert not (tmp_path / "killed" / "weights").exists()
    resumed = load_file(train(FineTuning.from_dict(settings(base, tmp_path / "killed"))) / weights)
    assert all(torch.equal(uninterrupted[key], resumed[key]) for key in uninterrupted)


def in_two_processes(script: Path, argument: str) -> None:
    """Run a script in two processes that find each other over loopback."""
    answer = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", script, argument],
        capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]


SPREAD = """
import json, sys
from viewtime.training.fine_tuning import FineTuning, train
train(FineTuning.from_dict(json.loads(sys.argv[1])))
"""


def test_two_processes_end_where_one_does(base, tmp_path):
    """DDP over gloo: the batch is shared out, the gradient is the mean."""
    (tmp_path / "spread.py").write_text(SPREAD)
    alone = settings(base, tmp_path / "one")
    both = settings(base, tmp_path / "two")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    in_two_processes(tmp_path / "spread.py", json.dumps(both))
    one = load_file(train(FineTuning.from_dict(alone)) / weights)
    two = load_file(tmp_path / "two" / "weights" / weights)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-4, rtol=0, msg=name)
    # And what two processes saved, one goes on from.
    longer = {**both, "phases": [{"frames": 2, "steps": 4}, {"frames": 3, "steps": 3}]}
    train(FineTuning.from_dict(longer))
    assert read_losses(tmp_path / "two" / "log.txt")[0].tolist() == [1, 2, 3, 4, 5, 6, 7]


SHARDED = """
import pathlib, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from viewtime.training.checkpoints import load_state, save_state
from viewtime.training.common import Average

dist.init_process_group("gloo")
rank = dist.get_rank()
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
def made(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, Average(model, 0.9)
def run(model, optimizer, average, steps):
    for step in steps:
        torch.manual_seed(100 + step)
        model(torch.randn(5, 6)).square().mean().backward()
        optimizer.step(); optimizer.zero_grad(); average.update(model, step)
first = made(0)
run(*first, range(3))
path = pathlib.Path(sys.argv[1])
save_state(path, 3, first[0], first[2], first[1], write=rank == 0)
dist.barrier()
run(*first, range(3, 6))
second = made(1)
assert load_state(path, second[0], second[2], second[1]) == 3
run(*second, range(3, 6))
for a, b in zip(first[0].parameters(), second[0].parameters()):
    assert torch.equal(a.full_tensor(), b.full_tensor())
for name in first[2].state:
    assert torch.equal(first[2].state[name].full_tensor(), second[2].state[name].full_tensor())
dist.destroy_process_group()
"""


def test_a_sharded_training_is_saved_whole_and_goes_on_exactly(tmp_path):
    state = tmp_path / "state.safetensors"
    (tmp_path / "sharded.py").write_text(SHARDED)
    in_two_processes(tmp_path / "sharded.py", str(state))
    saved = load_file(state)
    assert saved["model.0.weight"].shape == (8, 6)  # whole, not a shard
    assert saved["optimizer.step.0.weight"].item() == 3


SHARDED_TRAINING = """
import json, sys, accelerate, torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from viewtime.generator.model import ViewTimeTransformer
from viewtime.training.fine_tuning import FineTuning, train

class Sharded(accelerate.Accelerator):
    # FSDP2 as accelerate-fsdp.yaml asks for it; accelerate itself offers it on GPUs alone.
    def __init__(self, **settings):
        super().__init__(**settings)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
            transformer_cls_names_to_wrap=["WanTransformerBlock"], cpu_ram_efficient_loading=False)
        plugin.set_mixed_precision(self.mixed_precision)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state.update(
            fsdp_plugin=plugin, distributed_type=DistributedType.FSDP)
        self.state.fsdp_plugin, self.state.distributed_type = plugin, DistributedType.FSDP

predict = ViewTimeTransformer.predict
def checked(self, x, t, conditions, **places):
    assert x.dtype == t.dtype == conditions.reference.dtype == torch.float32
    assert type(self).__name__.startswith("FSDP")
    assert self.transformer.proj_out.weight.dtype == torch.bfloat16
    return predict(self, x, t, conditions, **places)
ViewTimeTransformer.predict = checked
accelerate.Accelerator = Sharded
train(FineTuning.from_dict(json.loads(sys.argv[1])))
"""


def gradients(run):
    lines = (run / "log.txt").read_text().splitlines()
    return [float(line.split("gradient=")[1].split()[0]) for line in lines]


def test_a_sharded_training_clips_the_gradient_that_one_process_has(base, tmp_path):
    """FSDP2 over gloo, in bfloat16: what the model is given stays float32."""
    (tmp_path / "sharded.py").write_text(SHARDED_TRAINING)
    short = {"phases": [{"frames": 2, "steps": 3}], "precision": "bf16"}
    # In a process of its own: accelerate has one precision per process.
    alone = [sys.executable, "-c", SPREAD, json.dumps(settings(base, tmp_path / "one", **short))]
    subprocess.run(alone, check=True, capture_output=True)
    in_two_processes(tmp_path / "sharded.py", json.dumps(settings(base, tmp_path / "two", **short)))
    assert gradients(tmp_path / "two") == pytest.approx(gradients(tmp_path / "one"), rel=0.03)
    assert min(gradients(tmp_path / "one")) > 0
    weights = "transformer/diffusion_pytorch_model.safetensors"
    one, two = (load_file(tmp_path / run / "weights" / weights) for run in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=5e-3, rtol=0, msg=name)


def test_a_gradient_above_the_limit_is_scaled_down_to_it():
    from accelerate import Accelerator

    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    model.weight.grad = torch.full((2, 2), 5.0)
    assert clip_gradient(Accelerator(cpu=True), model, 1.0).item() == pytest.approx(10.0)
    assert model.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


# ---- what is drawn -------------------------------------------------------------------------------


def drawn_grids(count=60, **settings):
    mixture = Mixture(**settings)
    return [
        mixture.grid(n, seed=0, views=3, times=4, height=16, width=16) for n in range(count)
    ]  # fmt: skip


def test_still_scenes_never_see_a_freeze_time_column_and_stand_still():
    grids = drawn_grids(40, shares={"static": 1.0}, references={"both": 1.0}, freeze_anywhere=True)
    for grid in grids:
        assert np.array_equal(grid.frames, np.repeat(grid.frames[:, :1], 4, axis=1))
        rows = grid.known.all(axis=1)
        assert rows.sum() == 1 and grid.known.sum() == 4  # the fixed view alone
    assert {int(np.flatnonzero(g.known.all(axis=1))[0]) for g in grids} == {0, 2}  # reversed or not


def test_shares_and_references_are_drawn_as_asked():
    grids = drawn_grids(200)
    shares = {k: sum(g.kind == k for g in grids) / len(grids) for k in KINDS}
    for kind, share in PAPER_SHARES.items():
        assert shares[kind] == pytest.approx(share, abs=0.12)
    moving = [g for g in grids if g.kind != "static"]
    rows = [g.known.all(axis=1).any() for g in moving]
    columns = [g.known.all(axis=0).any() for g in moving]
    assert np.mean(rows) == pytest.approx(0.7, abs=0.12)
    assert np.mean(columns) == pytest.approx(0.7, abs=0.12)
    again = Mixture().grid(7, seed=0, views=3, times=4, height=16, width=16)
    assert np.array_equal(again.frames, grids[7].frames)


def test_only_the_papers_own_config_freezes_the_first_time_alone():
    configs = Path(common.__file__).parent / "configs"
    for name, anywhere in (("paper", False), ("wan-1.3b", True)):
        recipe = FineTuning.from_dict(common.read_settings(configs / f"generator-{name}.toml"))
        mixture = Mixture(**{**recipe.mixture, "references": {"column": 1.0}})
        drawn = [
            mixture.draw_references("objects", np.random.default_rng(n), 2, 5) for n in range(40)
        ]
        found = {int(np.flatnonzero(known.all(axis=0))[0]) for known in drawn}
        assert found == (set(range(5)) if anywhere else {0})


def test_views_of_a_transformed_video_share_its_motion():
    """Every view is a homography of one video: where nothing moves there, nothing moves here."""
    grid = drawn_grids(1, shares={"homography": 1.0}, references={"none": 1.0}, reverse=0.0)[0]
    moving = np.abs(np.diff(grid.frames, axis=1)).mean(axis=(1, 2, 3, 4))
    assert moving.min() > 0.2 * moving.max()  # no view stands still while another moves
    assert np.abs(grid.frames[0] - grid.frames[2]).mean() > 0.01  # and no two are the same


def test_objects_stand_before_white():
    grid = drawn_grids(1, shares={"objects": 1.0})[0]
    assert (grid.frames[:, :, :, 0, :] > 0.99).mean() > 0.5


# ---- the objective -------------------------------------------------------------------------------


def test_the_drawn_velocity_leads_from_noise_to_data_and_known_cells_do_not_count():
    clean = torch.randn(2, 2, 3, 3, 4, 4)
    known = torch.zeros(2, 2, 3, dtype=torch.bool)
    known[:, 0] = True
    conditions = Conditions(clean * known[..., None, None, None], known, torch.zeros(2, 0, 4))
    drawn = draw(clean, conditions, torch.Generator().manual_seed(0), shift=3.0)
    way = drawn.t.view(-1, 1, 1, 1, 1, 1)
    torch.testing.assert_close(drawn.x - way * drawn.velocity, clean)
    assert flow_loss(drawn.velocity, drawn, conditions) == 0
    wrong = drawn.velocity.clone()
    wrong[:, 0] += 7  # known cells
    assert flow_loss(wrong, drawn, conditions) == 0
    wrong[:, 1] += 1
    assert flow_loss(wrong, drawn, conditions).item() == pytest.approx(1, rel=1e-5)
    late = draw(clean.expand(2, 2, 3, 3, 4, 4), conditions, torch.Generator(), shift=50.0)
    assert late.t.min() > 0.5


def test_it_learns_a_grid_by_heart_with_self_attention_alone(base):
    generator = load_generator(base)
    model = generator.model.train()
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.3)
    optimizer = torch.optim.AdamW(choose_parameters(model, "self_attention"), lr=1e-2)
    assert isinstance(generator.codec, PixelCodec) and isinstance(generator, Generator)
    clean = torch.randn(1, 2, 3, 3, 16, 16)
    conditions = Conditions(
        torch.zeros_like(clean), torch.zeros(1, 2, 3, dtype=torch.bool), torch.zeros(1, 0, 16)
    )
    losses = []
    for _ in range(60):
        drawn = draw(clean, conditions, torch.Generator().manual_seed(1), shift=1.0)
        loss = flow_loss(model(drawn.x, drawn.t, conditions), drawn, conditions)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], (losses[0], losses[-1])


def test_a_device_casts_the_same_scenes():
    """The torch caster stands in on a GPU; here it runs on the CPU, asked for by its full name."""
    for kind in KINDS:
        mixture = Mixture({kind: 1.0})
        shape = dict(seed=0, views=2, times=2, height=16, width=16)
        ours, other = mixture.grid(3, **shape), mixture.grid(3, **shape, device="cpu:0")
        assert np.array_equal(ours.known, other.known)
        np.testing.assert_allclose(other.frames, ours.frames, atol=0.02)


def test_the_shipped_launches_are_ones_that_accelerate_and_the_model_know():
    from accelerate.commands.config.config_args import load_config_from_file
    from diffusers.models.transformers import transformer_wan

    configs = Path(common.__file__).parent / "configs"
    kinds = {}
    for path in configs.glob("accelerate-*.yaml"):
        found = load_config_from_file(str(path))
        kinds[path.stem] = str(found.distributed_type.value)
        assert found.num_processes == 8 and found.mixed_precision == "bf16"
        wrapped = found.fsdp_config.get("fsdp_transformer_layer_cls_to_wrap")
        assert wrapped is None or hasattr(transformer_wan, wrapped)
    assert kinds == {"accelerate-ddp": "MULTI_GPU", "accelerate-fsdp": "FSDP"}
