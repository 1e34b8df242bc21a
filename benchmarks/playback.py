# SPDX-License-Identifier: Apache-2.0
"""Times one frame change of a splat sequence in Blender, without drawing; the files are warm.

It runs in Blender's own environment on the working tree's add-on and changes nothing outside a
temporary folder:

    .venv-blender/bin/python benchmarks/playback.py [--sizes 200000,500000,1500000] [--steps 12]

Three ways of going through the frames. "played": one after the other with a pause between them,
as at 24 frames per second, so that the thread has time to read ahead. "rushed": one after the
other without a pause. "scrubbed": to random frames, so that reading ahead rarely helps. Each time
is that of scene.frame_set, which reads, fills the cloud and evaluates the scene.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "bl_ext.user_default.viewtime"
GOALS = {200_000: 4.0, 500_000: 12.0, 1_500_000: 45.0}  # ms, median, played
FRAME_SECONDS = 1 / 24


def install(folder: Path, python: str) -> Any:
    """Build the extension, install it into a Blender of its own, and return bpy."""
    build = [python, str(ROOT / "tools" / "build_extension.py"), "--out", str(folder)]
    subprocess.run(build, check=True, capture_output=True)
    os.environ["BLENDER_USER_RESOURCES"] = str(folder / "user")
    import bpy

    (package,) = folder.glob("viewtime-*.zip")
    bpy.ops.extensions.package_install_files(
        repo="user_default", filepath=str(package), enable_on_install=False
    )
    importlib.invalidate_caches()
    bpy.ops.preferences.addon_enable(module=PACKAGE)
    return bpy


def write(folder: Path, count: int, steps: int, vary: bool) -> Path:
    """A sequence of random splats, SH 0; with `vary`, the count differs by up to 5 %."""
    import numpy as np

    formats = importlib.import_module("viewtime_formats")
    rng = np.random.default_rng(0)
    turn = np.array([1, 0, 0, 0], np.float32)
    with formats.SequenceWriter(folder, times=steps, fps=24, frame_start=1, frame_step=1) as writer:
        for step in range(steps):
            n = count - (count * (step % 5) // 100 if vary else 0)
            splats = formats.Gaussians(
                means=rng.random((n, 3), np.float32),
                scales=rng.random((n, 3), np.float32) * np.float32(0.01),
                rotations=np.tile(turn, (n, 1)),
                opacities=rng.random(n, np.float32),
                sh=rng.random((n, 1, 3), np.float32),
            )
            writer.write_step(step, splats)
    return folder


def times(bpy: Any, frames: Iterator[int], pause: bool) -> list[float]:
    """Milliseconds of each frame change."""
    taken = []
    for frame in frames:
        begun = time.perf_counter()
        bpy.context.scene.frame_set(frame)
        elapsed = time.perf_counter() - begun
        taken.append(elapsed * 1e3)
        if pause:
            time.sleep(max(0.0, FRAME_SECONDS - elapsed))
    return taken


def measure(bpy: Any, folder: Path, count: int, steps: int, vary: bool, turns: int) -> dict:
    """Median and slowest tenth of each way through the frames, in ms."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    bpy.ops.viewtime.import_sequence(directory=str(write(folder, count, steps, vary)))
    ob = bpy.context.object
    # Drawing is not measured: neither Blender's nor the quads of geometry nodes.
    ob.modifiers.clear()
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, steps
    onward = [1 + turn % steps for turn in range(turns)]
    dice = random.Random(0)
    jumps = [dice.randint(1, steps) for _ in range(turns)]
    times(bpy, iter(range(1, steps + 1)), pause=False)  # warm
    found = {}
    for name, frames, pause in (
        ("played", onward, True),
        ("rushed", onward, False),
        ("scrubbed", jumps, False),
    ):
        taken = sorted(times(bpy, iter(frames), pause))
        found[name] = (statistics.median(taken), taken[int(0.9 * (len(taken) - 1))])
    shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, GOALS)), help="Gaussians per step")
    parser.add_argument("--steps", type=int, default=12, help="timesteps of the sequence")
    parser.add_argument("--turns", type=int, default=60, help="frame changes to measure")
    parser.add_argument("--vary", action="store_true", help="another count at every step")
    parser.add_argument(
        "--python",
        default=str(ROOT / ".venv" / "bin" / "python"),
        help="interpreter that builds the extension",
    )
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="viewtime-playback-"))
    try:
        bpy = install(folder, given.python)
        print(f"Blender {bpy.app.version_string}, {os.cpu_count()} cores, load", os.getloadavg())
        print("median ms (slowest tenth) of a frame change" + (", counts vary" * given.vary))
        for count in map(int, given.sizes.split(",")):
            found = measure(bpy, folder / "s", count, given.steps, given.vary, given.turns)
            goal = GOALS.get(count)
            words = [f"{name} {mid:6.1f} ({slow:.1f})" for name, (mid, slow) in found.items()]
            print(f"{count:>9,}  " + "   ".join(words) + (f"   goal {goal:g}" if goal else ""))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        sys.stdout.flush()
        # Blender 4.5 as a module may wait for ever in its exit handlers.
        os._exit(0)


if __name__ == "__main__":
    main()
