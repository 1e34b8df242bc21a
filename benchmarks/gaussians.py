# SPDX-License-Identifier: Apache-2.0
"""Times our CPU rasteriser, forward and with gradients, against plain torch; the ratio comes first.

The plain one blends 16 x 16 tiles with whole-tensor operations and leaves the backward pass to
autograd, which keeps gigabytes: it is compared at a smaller number of Gaussians, where ours is
timed once more; ours alone at the full one. "random" strews ellipsoids of 0.5 to 3 px over the
picture; "captured" is fine splats, one to a pixel or so at the full number, as captured geometry
gives. Peak memory is that of a process of its own each. Run from the repository:

    python benchmarks/gaussians.py [--count 100000] [--plain-count 20000] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from report import Spoken
from torch import Tensor

from viewtime.gaussians import CameraTensors, GaussianTensors, render
from viewtime.gaussians.parallel import thread_count
from viewtime_formats.rig import Camera

SCENES = {"random": (0.5, 3.0, 0.3), "captured": (0.3, 0.6, 0.01)}
"""Smallest and largest standard deviation in pixels, dilation in px^2."""
TILE = 16
FIELDS = tuple(GaussianTensors.__dataclass_fields__)


def scene(name: str, count: int, size: int, degree: int) -> tuple[GaussianTensors, CameraTensors]:
    """Gaussians strewn evenly over a picture, 2 to 6 units away."""
    low, high, _ = SCENES[name]
    rng = np.random.default_rng(0)
    z = rng.uniform(2, 6, count)
    places = rng.uniform(0, size, (count, 2)) - size / 2
    arrays = (
        np.column_stack([places / size * z[:, None], z]),
        np.exp(rng.uniform(np.log(low), np.log(high), (count, 3))) * z[:, None] / size,
        rng.normal(size=(count, 4)),
        rng.uniform(0.05, 0.95, count),
        rng.normal(size=(count, (degree + 1) ** 2, 3)) * 0.3,
    )
    lens = np.array([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]])
    camera = Camera("camera", size, size, lens, np.eye(4)[:3])
    tensors = (torch.tensor(a.astype(np.float32)).requires_grad_() for a in arrays)
    return GaussianTensors(*tensors), CameraTensors.of([camera])


def plain(g: GaussianTensors, cameras: CameraTensors, dilation: float) -> Tensor:
    """(H, W, 3) by torch alone: project all, then blend each tile's splats at all its pixels.

    For harmonics of degree 0 and a camera that is not turned.
    """
    size, focal = cameras.width, float(cameras.intrinsics[0, 0, 0])
    order = torch.argsort(g.means[:, 2].detach())
    mean, scale, opacity = g.means[order], g.scales[order], g.opacities[order]
    w, x, y, z = torch.nn.functional.normalize(g.rotations[order], dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    rotation = torch.stack(rows, -1).view(-1, 3, 3)
    tangent = mean[:, :2] / mean[:, 2:]
    flat = torch.eye(2).expand(len(mean), 2, 2)
    slopes = focal * torch.cat([flat, -tangent[..., None]], -1) / mean[:, 2, None, None]
    root = slopes @ rotation * scale[:, None]
    covariance = root @ root.mT + dilation * torch.eye(2)
    conic = torch.linalg.inv(covariance)
    centre = focal * tangent + size / 2
    colour = (0.5 + 0.28209479177387814 * g.colours[order, 0]).clamp(min=0)
    with torch.no_grad():
        reach = 2 * torch.log(opacity * 255).clamp(min=0)
        radius = (reach[:, None] * covariance.diagonal(dim1=1, dim2=2)).sqrt()
        low, high = centre - radius, centre + radius
    ticks = torch.arange(TILE) + 0.5
    rows_out = []
    for top in range(0, size, TILE):
        line = []
        for left in range(0, size, TILE):
            corner = torch.tensor([left, top])
            touched = (low < corner + TILE).all(1) & (high > corner).all(1)
            i = touched.nonzero()[:, 0]
            pixel = torch.stack(torch.meshgrid(left + ticks, top + ticks, indexing="xy"), -1)
            off = pixel.view(-1, 1, 2) - centre[i]
            c = conic[i]
            power = 0.5 * (c[:, 0, 0] * off[..., 0] ** 2 + c[:, 1, 1] * off[..., 1] ** 2)
            power = power + c[:, 0, 1] * off[..., 0] * off[..., 1]
            alpha = (opacity[i] * torch.exp(-power)).clamp(max=0.999)
            alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
            through = torch.cumprod(1 - alpha, 1)
            before = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1)
            line.append(((before * alpha) @ colour[i]).view(TILE, TILE, 3))
        rows_out.append(torch.cat(line, 1))
    return torch.cat(rows_out)


def seconds_of(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least wall and CPU seconds of one call, after one to warm up."""
    run()
    walls, works = [], []
    for _ in range(repeats):
        began, worked = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - began)
        works.append(time.process_time() - worked)
    return min(walls), min(works)


def measure(args: argparse.Namespace, name: str, method: str) -> None:
    """Print, for the parent: forward and forward + backward seconds, CPU seconds, peak memory."""
    torch.set_num_threads(args.threads)
    dilation = SCENES[name][2]
    degree = 0 if method == "plain" else args.degree
    gaussians, cameras = scene(name, args.count, args.size, degree)
    weight = torch.randn(args.size, args.size, 3, generator=torch.Generator().manual_seed(0))

    def forward() -> Tensor:
        if method == "plain":
            return plain(gaussians, cameras, dilation)
        return render(gaussians, cameras, dilation=dilation).color[0]

    def picture() -> Tensor:
        with torch.no_grad():
            return forward()

    def both() -> None:
        for field in FIELDS:
            getattr(gaussians, field).grad = None
        (forward() * weight).sum().backward()

    if method == "plain":  # the two must be the same picture, or the comparison means nothing
        ours = render(gaussians, cameras, dilation=dilation).color[0]
        assert (ours - picture()).abs().max() < 0.02
    repeats = max(2, args.repeats // 3) if method == "plain" else args.repeats
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = [*seconds_of(picture, repeats), *seconds_of(both, repeats)]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(*results, grown / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="ours alone")
    parser.add_argument("--plain-count", type=int, default=20_000, help="both")
    parser.add_argument("--size", type=int, default=256, help="pixels, square, a multiple of 16")
    parser.add_argument("--degree", type=int, default=0, choices=(0, 1, 2, 3), help="ours alone")
    parser.add_argument("--threads", type=int, default=thread_count())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--skip-plain", action="store_true")
    parser.add_argument("--out", type=Path, help="write the lines to this file too")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.size % TILE:
        parser.error(f"--size {args.size} is no multiple of {TILE}")
    if args.child:
        measure(args, *args.child)
        return
    say = Spoken()
    say(
        f"{args.size} x {args.size} px, {args.threads} threads, torch {torch.__version__}, load "
        f"{os.getloadavg()[0]:.1f}; milliseconds (of CPU), MB of growth; ratios at equal numbers"
    )
    head = "scene     method Gaussians  ratio fwd  fwd+bwd    forward          fwd + bwd"
    say(f"{head}         memory")
    for name in SCENES:
        fewer = [] if args.skip_plain else [("ours", args.plain_count), ("plain", args.plain_count)]
        base: list[float] = []
        for method, count in [("ours", args.count), *fewer]:
            row = child(args, name, method, count)
            base = row if method == "ours" else base
            forward, forward_cpu, both, both_cpu, memory = row
            say(
                f"{name:9s} {method:6s} {count:9d} {forward / base[0]:10.1f} {both / base[2]:8.1f} "
                f"{forward * 1e3:10.1f} ({forward_cpu * 1e3:7.1f}) "
                f"{both * 1e3:8.1f} ({both_cpu * 1e3:7.1f}) {memory:8.0f}"
            )
    if args.out:
        command = f"python benchmarks/gaussians.py {' '.join(sys.argv[1:])}".strip()
        say.write(args.out, "The CPU rasteriser beside plain torch", command, args.threads)


def child(args: argparse.Namespace, scene_name: str, method: str, count: int) -> list[float]:
    """What `measure` prints in a process of its own."""
    command = [sys.executable, __file__, "--child", scene_name, method, "--count", str(count)]
    for option in ("size", "degree", "threads", "repeats"):
        command += [f"--{option}", str(getattr(args, option))]
    environment = os.environ | {"VIEWTIME_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr or f"{method}, {count} Gaussians: ended by signal {-done.returncode}")
    return [float(value) for value in done.stdout.split()]


if __name__ == "__main__":
    main()
