# SPDX-License-Identifier: Apache-2.0
"""Quality and speed of splats from captured geometry, judged at cameras that lent no pixel.

Procedural scenes, all matte or all glossy, on a round stage under a plain sky (--wild: as they
come, with ground to the horizon and textures finer than pixels); 8 cameras on an arc of 75 to 90
degrees, and one held out between each two. Depth is exact, or off by a normal share of itself in
every pixel. Run from the repository:

    python benchmarks/captured.py [--seeds 100,101,102] [--size 256] [--sheet sheet.png]
    python benchmarks/captured.py --times 16     # seconds for 8 views x 16 timesteps
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from report import Spoken

from viewtime.data import raycast
from viewtime.data.synthetic import Body, Scene, Solid, random_rig, random_scene, render_cell
from viewtime.evaluation.metrics import psnr, ssim
from viewtime.gaussians import render
from viewtime.gaussians.parallel import thread_count
from viewtime.reconstructor.captured import background_from_sky, fuse_views
from viewtime_formats.rig import Camera

ARC = (75.0, 90.0)


def surfaced(scene: Scene, glossy: bool, seed: int) -> Scene:
    """The scene with every material matte, or with highlights on all bodies and the ground."""
    rng = np.random.default_rng([seed, 41])

    def change(material: NDArray[np.float64]) -> NDArray[np.float64]:
        material = material.copy()
        material[raycast.GLOSS] = rng.uniform(0.25, 0.6) if glossy else 0.0
        material[raycast.EXPONENT] = rng.uniform(10.0, 60.0)
        return material

    bodies = tuple(
        replace(body, solids=tuple(replace(s, material=change(s.material)) for s in body.solids))
        for body in scene.bodies
    )
    ground = None if scene.ground is None else change(scene.ground)
    return replace(scene, bodies=bodies, ground=ground)


def staged(scene: Scene, seed: int) -> Scene:
    """The scene's bodies on a round stage instead of ground without an end, without walls."""
    ground = random_scene(seed + 1000, still=True).ground if scene.ground is None else scene.ground
    while ground is None:
        seed += 1
        ground = random_scene(seed + 1000, still=True).ground
    reach = scene.radius
    disk = Solid(raycast.CYLINDER, np.array([reach, reach, 0.05]), ground)
    bodies = [body for body in scene.bodies if np.hypot(*body.place[:2]) < scene.radius]
    bodies.append(Body((disk,), np.array([0.0, 0.0, -0.05])))
    light = scene.light.copy()
    light[raycast.ZENITH : raycast.ZENITH + 3] = light[raycast.HORIZON : raycast.HORIZON + 3]
    return replace(scene, bodies=tuple(bodies), ground=None, light=light)


def make_scene(seed: int, surface: str, wild: bool) -> Scene:
    """The scene of a seed with "matte" or "glossy" materials."""
    scene = random_scene(seed, still=True)
    return surfaced(scene if wild else staged(scene, seed), surface == "glossy", seed)


def arc(seed: int, scene: Scene, views: int, size: int) -> tuple[list[Camera], list[Camera]]:
    """`views` cameras along an arc, and those half way between neighbours."""
    cameras = random_rig(seed, scene, 2 * views - 1, size, size, degrees=ARC).cameras
    axis = cameras[0].rotation[0]
    ordered = sorted(cameras, key=lambda camera: float(camera.center @ axis))
    return ordered[::2], ordered[1::2]


def shot(
    scene: Scene, cameras: list[Camera], moment: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pictures (V, H, W, 3) and depths (V, H, W) of all cameras."""
    cells = [render_cell(scene, camera, moment) for camera in cameras]
    return np.stack([rgb for rgb, _ in cells]), np.stack([depth for _, depth in cells])


def quality(args: argparse.Namespace, say: Spoken) -> None:
    """Print PSNR and SSIM at held-out cameras for each surface and depth noise."""
    views, size = args.views, args.size
    say(f"{views} cameras, {size} px, held-out cameras between them, seeds {args.seeds}")
    say("surface  noise  PSNR dB (lowest scene)   SSIM  Gaussians")
    sheet = []
    for surface in args.surfaces.split(","):
        for noise in args.noises:
            scores, alike, counts = [], [], []
            for seed in args.seeds:
                scene = make_scene(seed, surface, args.wild)
                known, held_out = arc(seed, scene, views, size)
                images, depths = shot(scene, known, 0.0)
                truth, _ = shot(scene, held_out, 0.0)
                rng = np.random.default_rng([seed, 5])
                depths *= 1 + noise * rng.standard_normal(depths.shape, np.float32)
                splats = fuse_views(images, depths, known, depth_noise=noise)
                sky = background_from_sky(images, depths)
                shown = [render(splats, camera, background=sky).color for camera in held_out]
                scores.append(np.mean([psnr(a, b) for a, b in zip(shown, truth)]))
                pairs = zip(shown, truth)
                alike.append(
                    np.mean([ssim(a.transpose(2, 0, 1), b.transpose(2, 0, 1)) for a, b in pairs])
                )
                counts.append(len(splats))
                if args.sheet:
                    middle = len(held_out) // 2
                    error = np.clip(np.abs(shown[middle] - truth[middle]) * 4, 0, 1)
                    sheet.append(np.concatenate([truth[middle], shown[middle], error], 1))
            say(
                f"{surface:8s} {noise:4.0%}   {np.mean(scores):5.2f} ({np.min(scores):5.2f})"
                f"             {np.mean(alike):5.3f}  {np.mean(counts):8.0f}   "
                + " ".join(f"{score:.1f}" for score in scores)
            )
    if args.sheet:
        from PIL import Image

        rows = [
            np.concatenate(sheet[r : r + len(args.seeds)], 1)
            for r in range(0, len(sheet), len(args.seeds))
        ]
        picture = np.clip(np.concatenate(rows), 0, 1) * 255
        Image.fromarray(picture.round().astype(np.uint8)).save(args.sheet)
        say(f"{args.sheet}: truth, splats, error x 4; rows as in the table, columns the seeds")


def speed(args: argparse.Namespace, say: Spoken) -> None:
    """Say the seconds that fusing a moving scene takes, timestep by timestep."""
    seed = args.seeds[0]
    scene = random_scene(seed)
    known, _ = arc(seed, scene, args.views, args.size)
    captured = [shot(scene, known, float(t)) for t in range(args.times)]
    fuse_views(*captured[0], known)  # compiles, or loads what was compiled
    began, worked, count = time.perf_counter(), time.process_time(), 0
    for images, depths in captured:
        count += len(fuse_views(images, depths, known))
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    say(
        f"{args.views} views x {args.times} timesteps at {args.size} px, seed {seed}: "
        f"{seconds:.2f} s ({cpu:.2f} s of CPU), {count / args.times:.0f} Gaussians per timestep, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="100,101,102,103", help="scenes, comma-separated")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="pixels, square")
    parser.add_argument("--sheet", help="PNG to write: truth, splats, error")
    parser.add_argument("--wild", action="store_true", help="random scenes as they come")
    parser.add_argument("--noises", default="0,0.01,0.03", help="relative, comma-separated")
    parser.add_argument("--surfaces", default="matte,glossy")
    parser.add_argument("--times", type=int, default=0, help="time this many timesteps instead")
    parser.add_argument("--out", type=Path, help="write the lines to this file too")
    args = parser.parse_args()
    args.told = " ".join(sys.argv[1:])
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    args.noises = [float(noise) for noise in args.noises.split(",")]
    say = Spoken()
    if args.times:
        speed(args, say)
    else:
        quality(args, say)
    if args.out:
        what = "speed" if args.times else "quality"
        command = f"python benchmarks/captured.py {args.told}".strip()
        say.write(args.out, f"Splats from captured geometry: {what}", command, thread_count())


if __name__ == "__main__":
    main()
