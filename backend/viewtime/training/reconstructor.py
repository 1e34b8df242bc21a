# SPDX-License-Identifier: Apache-2.0
"""What a geometry stage is trained on: procedural 4D scenes with their depth and cameras. And the
command line of the reconstructor's training, whose stages are in `reconstructor_stages`.

Every batch is a function of (seed, step). It never downloads data and trains nothing itself.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from viewtime.data.synthetic import sample_grid
from viewtime.reconstructor.pose import encode_rig, rig_rays
from viewtime_formats.rig import Rig

HELD_OUT = 10_000_000
"""Scene seeds from here on are never trained on."""
SMALL = Path(__file__).parent / "configs" / "reconstructor-small.toml"
"""What is trained when no configuration is named."""


@dataclass(frozen=True)
class TrainConfig:
    """Shapes of the batches. frames_per_step: of the largest size; smaller frames come in larger
    batches. rays_share: of the batches that are given their cameras."""

    seed: int = 1
    sizes: tuple[int, ...] = (64, 96)
    frames_per_step: int = 3
    rays_share: float = 0.6


@dataclass(frozen=True)
class Batch:
    """frames (B,T,V,3,H,W); depth (B,T,V,H,W) in the model's unit; rays (B,V,6,H,W) or None;
    cameras (B,V,9) encodings in the same unit."""

    frames: Tensor
    depth: Tensor
    rays: Tensor | None
    cameras: Tensor


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


def main(arguments: Sequence[str] | None = None) -> int:
    """`viewtime train reconstructor [CONFIG]`: the stages of a configuration, or of SMALL. Returns
    the exit status."""
    from viewtime.training import reconstructor_stages

    values = list(sys.argv[1:] if arguments is None else arguments)
    return reconstructor_stages.main(values or [str(SMALL)])


if __name__ == "__main__":
    raise SystemExit(main())
