# SPDX-License-Identifier: Apache-2.0
"""Trains a reconstructor on procedural 4D scenes: viewtime train reconstructor [CONFIG].

Resumes by itself from its folder and touches nothing outside it. It never downloads data.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from viewtime.data.synthetic import sample_grid
from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.load import save_reconstructor
from viewtime.reconstructor.model import Reconstructor
from viewtime.reconstructor.pose import encode_rig, rig_rays
from viewtime.training import common
from viewtime.training.reconstructor_loss import (
    FAR,
    absolute_relative_error,
    geometry_loss,
)
from viewtime_formats.errors import ViewtimeError
from viewtime_formats.rig import Rig

HELD_OUT = 10_000_000
"""Scene seeds from here on are never trained on."""


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. Training ends at `steps` or after `minutes`, whichever comes first."""

    out: str = "runs/reconstructor"
    steps: int = 100_000
    minutes: float = 30.0
    seed: int = 1
    learning_rate: float = 1.0e-3
    warmup: int = 50
    weight_decay: float = 0.02
    sizes: tuple[int, ...] = (64, 96)
    frames_per_step: int = 3  # of the largest size; smaller frames come in larger batches
    rays_share: float = 0.6  # of the batches that are given their cameras
    bf16: bool = True
    log_every: int = 50
    save_minutes: float = 8.0
    held_out: int = 6
    model: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """frames (B,T,V,3,H,W); depth (B,T,V,H,W) in the model's unit; rays (B,V,6,H,W) or None;
    cameras (B,V,9) encodings in the same unit."""

    frames: Tensor
    depth: Tensor
    rays: Tensor | None
    cameras: Tensor


def read_config(path: Path | None) -> TrainConfig:
    """The defaults, changed by a .json or .toml file. Raises ViewtimeError on unknown fields."""
    if path is None:
        return TrainConfig()
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        known = {f.name for f in dataclasses.fields(TrainConfig)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ViewtimeError(f"{path}: unknown field {unknown[0]!r}")
        fixed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return TrainConfig(**fixed)
    except (OSError, ValueError, TypeError) as error:
        raise ViewtimeError(f"{path}: {error}") from error


def make_batch(
    seeds: Sequence[int],
    views: int,
    times: int,
    size: int,
    *,
    with_rays: bool,
    height: int | None = None,
    frame_step: float = 1.0,
    still: bool = False,
    device: torch.device | str = "cpu",
) -> Batch:
    """Scenes by seed, normalised: by the rig's unit when its rays are given, else by the mean
    distance of what is seen from view 0 (distances count up to three times their median). They
    are cast on `device`, and lie there."""
    rows: list[tuple[np.ndarray, ...]] = []
    for seed in seeds:
        frames, true_depth, rig = _cast(
            device, seed, views, times, size, height=height, still=still, frame_step=frame_step
        )
        found = rig_rays(rig, size, size if height is None else height) if with_rays else None
        if found is not None:
            unit, rays = found.unit, found.rays
        else:
            depth = true_depth[0][np.isfinite(true_depth[0])]
            depth = depth if depth.size else true_depth[np.isfinite(true_depth)]
            unit = 1.0
            if depth.size:
                unit = float(np.minimum(depth, 3.0 * np.median(depth)).mean())
            rays = np.zeros((0,), np.float32)
        rows.append(
            (
                frames.transpose(1, 0, 2, 3, 4),
                true_depth.transpose(1, 0, 2, 3) / unit,
                rays,
                encode_rig(rig, unit),
            )
        )
    all_frames, depths, rays_list, cameras = zip(*rows)
    has_rays = all(r.size for r in rays_list)
    stack = [torch.from_numpy(np.stack(x)).to(device) for x in (all_frames, depths, cameras)]
    rays_tensor = torch.from_numpy(np.stack(rays_list)).to(device) if has_rays else None
    return Batch(stack[0], stack[1], rays_tensor, stack[2])


def _cast(
    device: torch.device | str, seed: int, views: int, times: int, size: int, **how: Any
) -> tuple[np.ndarray, np.ndarray, Rig]:
    """Frames (V,T,3,H,W), depth (V,T,H,W) and rig of a scene; on CUDA the GPU does the work."""
    if torch.device(device).type == "cuda":
        from viewtime.data.raycast_torch import sample_grid_on

        frames, depth, rig = sample_grid_on(device, seed, views, times, size, **how)
        return frames.cpu().numpy(), depth.cpu().numpy(), rig
    grid, rig = sample_grid(seed, views, times, size, **how)
    assert grid.depth is not None
    return grid.frames, grid.depth, rig


def training_batch(
    config: TrainConfig, step: int, progress: float, device: torch.device | str = "cpu"
) -> Batch:
    """The batch of a step: shapes vary, small frames first, some pictures blurred or noisy."""
    rng = np.random.default_rng([config.seed, step, 5])
    largest = max(config.sizes)
    weights = np.array([(s / largest) ** (2.0 * (2.0 * progress - 1.0)) for s in config.sizes])
    size = int(rng.choice(config.sizes, p=weights / weights.sum()))
    height = None
    if rng.random() < 0.3:
        height = 8 * int(round(size * 0.6 / 8))
    views = int(rng.choice([1, 2, 3, 4, 6], p=[0.06, 0.14, 0.3, 0.35, 0.15]))
    times = int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))
    with_rays = bool(views > 1 and rng.random() < config.rays_share)
    pixels = size * (size if height is None else height)
    budget = config.frames_per_step * largest**2
    while times > 1 and views * times * pixels > 2 * budget:
        times -= 1
    count = max(1, budget // (views * times * pixels))
    first = int(rng.integers(0, HELD_OUT // 2))
    batch = make_batch(
        range(first, first + count),
        views,
        times,
        size,
        with_rays=with_rays,
        height=height,
        frame_step=float(rng.uniform(0.5, 4.0)),
        device=device,
    )
    frames = batch.frames
    if rng.random() < 0.3:  # generated frames are softer than rendered ones
        flat = frames.flatten(0, 2)
        small = F.interpolate(flat, scale_factor=0.5, mode="area")
        blurred = F.interpolate(small, size=flat.shape[-2:], mode="bilinear")
        frames = blurred.view(frames.shape)
    if rng.random() < 0.4:
        noise = torch.from_numpy(rng.normal(size=frames.shape).astype(np.float32))
        frames = frames + float(rng.uniform(0.0, 0.04)) * noise.to(frames)
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, 3).astype(np.float32)).view(3, 1, 1).to(frames)
    return dataclasses.replace(batch, frames=(frames * gain).clamp(0.0, 1.0))


def loss_of(model: Reconstructor, batch: Batch, bf16: bool) -> tuple[Tensor, dict[str, float]]:
    """The training loss and its parts. Cameras count only where they were not given."""
    with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=bf16):
        prediction = model(batch.frames, batch.rays)
    return geometry_loss(prediction, batch.depth, batch.cameras if batch.rays is None else None)


def evaluate(model: Reconstructor, scenes: int, size: int) -> dict[str, float]:
    """Held-out errors at 4 views x 2 times: absrel with and without cameras (one scale aligned
    per grid), sky accuracy, and mean absolute error of the encodings without cameras."""
    model.eval()
    result: dict[str, list[float]] = {}
    with torch.no_grad():
        for n in range(scenes):
            for rays in (True, False):
                batch = make_batch([HELD_OUT + n], 4, 2, size, with_rays=rays, frame_step=3.0)
                p = model(batch.frames, batch.rays)
                name = "absrel_rays" if rays else "absrel"
                error = absolute_relative_error(p.depth, batch.depth)
                result.setdefault(name, []).append(error)
                if p.surface is not None:
                    right = (p.surface > 0) == torch.isfinite(batch.depth)
                    result.setdefault("sky_accuracy", []).append(float(right.float().mean()))
                if not rays:
                    camera = (p.poses[-1][:, 0] - batch.cameras).abs().mean()
                    result.setdefault("camera", []).append(float(camera))
    model.train()
    return {name: float(np.mean(values)) for name, values in result.items()}


def write_sheet(path: Path, model: Reconstructor, size: int, scenes: int = 6) -> None:
    """Rows of held-out pictures: frame, true 1/z, predicted 1/z with and without cameras."""
    from viewtime.media import write_png

    rows = []
    model.eval()
    with torch.no_grad():
        for n in range(scenes):
            batch = make_batch([HELD_OUT + n], 4, 1, size, with_rays=True)
            tiles = [batch.frames[0, 0, 2].permute(1, 2, 0).numpy()]
            unit = torch.nan_to_num(1.0 / batch.depth[0, 0, 2]).clamp(max=3.0) / 2.5
            tiles.append(np.repeat(unit.numpy()[..., None], 3, -1))
            for rays in (batch.rays, None):
                p = model(batch.frames, rays)
                z = p.depth[0, 0, 2]
                known = torch.isfinite(batch.depth[0, 0, 2])
                scale = (batch.depth[0, 0, 2] / z)[known].median() if known.any() else 1.0
                inverse = 1.0 / (scale * z).clamp(max=FAR)
                if p.surface is not None:
                    inverse = inverse * (p.surface[0, 0, 2] > 0)
                tiles.append(np.repeat(inverse.clamp(max=2.5).numpy()[..., None] / 2.5, 3, -1))
            rows.append(np.concatenate(tiles, 1))
    model.train()
    write_png(path, np.clip(np.concatenate(rows, 0), 0.0, 1.0).astype(np.float32))


def train(config: TrainConfig) -> Path:
    """Train, or go on training, in config.out; returns the folder with the final weights."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = Reconstructor(ReconstructorConfig.small(**config.model))
    model.depth_head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    checkpoint = out / "train.safetensors"
    step, spent = 0, 0.0
    if checkpoint.is_file():
        step, spent = common.load_checkpoint(checkpoint, model, None, optimizer)
        print(f"resumed at step {step} after {spent / 60:.1f} min", flush=True)

    def save() -> None:
        common.save_checkpoint(checkpoint, step, model, None, optimizer, seconds=spent)

    model.train()
    sums: dict[str, list[float]] = {}
    started, saved = time.monotonic() - spent, time.monotonic()
    limit = config.minutes * 60.0
    while step < config.steps and spent < limit:
        progress = max(step / config.steps, spent / limit)
        rate = config.learning_rate * min(1.0, (step + 1) / config.warmup)
        rate *= 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, parts = loss_of(model, training_batch(config, step, progress), config.bf16)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        step += 1
        spent = time.monotonic() - started
        for name, value in parts.items():
            sums.setdefault(name, []).append(value)
        if step % config.log_every == 0:
            means = " ".join(f"{k} {np.mean(v):.4f}" for k, v in sums.items())
            left = min(limit - spent, (config.steps - step) * spent / step)
            print(
                f"step {step} {means} lr {rate:.2e} {spent / step:.3f} s/step "
                f"ETA {max(left, 0.0) / 60:.1f} min",
                flush=True,
            )
            sums.clear()
        if time.monotonic() - saved > 60.0 * config.save_minutes:
            save()
            report(config, out, model, step, spent)
            saved = time.monotonic()
    save()
    report(config, out, model, step, spent)
    return out / "weights"


def report(config: TrainConfig, out: Path, model: Reconstructor, step: int, spent: float) -> None:
    """Weights, a sample sheet and the held-out errors as they stand."""
    save_reconstructor(out / "weights", model)
    errors = evaluate(model, config.held_out, max(config.sizes))
    line = {"step": step, "minutes": round(spent / 60.0, 2), **errors}
    with (out / "held_out.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print("held out " + json.dumps(line), flush=True)
    write_sheet(out / "sheet.png", model, max(config.sizes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: an optional config file; one that names stages is trained by
    `reconstructor_stages`. Returns the exit status."""
    values = list(sys.argv[1:] if arguments is None else arguments)
    if values and "stages" in common.read_settings(Path(values[0])):
        from viewtime.training import reconstructor_stages

        return reconstructor_stages.main(values)
    config = read_config(Path(values[0]) if values else None)
    print(f"weights in {train(config)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
