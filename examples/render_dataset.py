# SPDX-License-Identifier: Apache-2.0
"""Renders synthetic multi-view dynamic scenes for training, headless, in Blender's Python.
A scene's folder appears when it is whole, so that a run can be stopped and started again.

    .venv-blender/bin/python examples/render_dataset.py --out data/toys --scenes 100
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import bpy

# The folder of this file is on sys.path for a script; for an import its owner puts it there.
from dataset_scenes import Stage, arc_of_cameras, asset_stage, physics_stage

ENGINES = ("CYCLES", "EEVEE", "WORKBENCH")
DEVICES = ("CPU", "CUDA", "OPTIX", "HIP", "METAL", "ONEAPI")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    assets = _assets(options.assets)
    options.out.mkdir(parents=True, exist_ok=True)
    numbers = range(options.first, options.first + options.scenes)
    wanted = [n for n in numbers if not (_folder(options.out, n) / "transforms.json").is_file()]
    if len(wanted) < options.scenes:
        print(f"{options.scenes - len(wanted)} of {options.scenes} scenes are there already")
    start, failed = time.monotonic(), 0
    for done, number in enumerate(wanted, 1):
        seed = options.seed * 1_000_000 + number
        try:
            if assets:
                stage = asset_stage(assets[number % len(assets)], seed, options.frames)
            else:
                stage = physics_stage(seed, options.frames)
            _render_scene(stage, number, seed, options)
        except (ValueError, RuntimeError) as problem:  # one broken asset does not end the run
            print(f"scene {number}: left out: {problem}", file=sys.stderr)
            failed += 1
        each = (time.monotonic() - start) / done
        print(
            f"scene {number}: {done} of {len(wanted)}, {each:.1f} s each, "
            f"{each * (len(wanted) - done) / 60:.1f} min left",
            flush=True,
        )
    return 1 if failed and failed == len(wanted) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder that gets one folder per scene")
    add("--scenes", type=int, default=1, help="how many (default 1)")
    add("--first", type=int, default=0, help="number of the first: to share work out (default 0)")
    add("--views", type=int, default=8, help="cameras (default 8)")
    add("--frames", type=int, default=29, help="times, 24 per second (default 29)")
    add("--size", type=int, nargs=2, default=(256, 144), metavar=("WIDTH", "HEIGHT"))
    add("--seed", type=int, default=0, help="another seed, other scenes (default 0)")
    add("--assets", type=Path, help="folder of .glb and .gltf to show in place of thrown toys")
    add("--engine", choices=ENGINES, default="CYCLES", help="the others need a display or a GPU")
    add("--samples", type=int, default=16, help="of Cycles or EEVEE per pixel (default 16)")
    add("--device", choices=DEVICES, default="CPU", help="what Cycles renders on (default CPU)")
    add("--depth", action="store_true", help="also write depth, as multilayer EXR")
    options = parser.parse_args(arguments)
    for name in ("scenes", "views", "frames", "samples"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; 1 or more is needed")
    if min(options.size) < 4 or max(options.size) > 8192:
        parser.error(f"--size is {options.size[0]} {options.size[1]}; 4 to 8192 pixels are needed")
    return options


def _assets(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".glb", ".gltf"))
    if not found:
        raise SystemExit(f"{folder}: holds no .glb or .gltf")
    return found


def _folder(out: Path, number: int) -> Path:
    return out / f"scene_{number:06d}"


def _render_scene(stage: Stage, number: int, seed: int, options: argparse.Namespace) -> None:
    """Render all cells beside the scene's folder, then give the folder its name."""
    scene = bpy.context.scene
    set_render(scene, options)
    width, height = options.size
    cameras = arc_of_cameras(scene, stage, seed, options.views, (width, height))
    final = _folder(options.out, number)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        frames = []
        for t in range(options.frames):
            stage.pose(t)
            for v, camera in enumerate(cameras):
                name = f"view_{v:03d}/{t:04d}"
                _render_cell(scene, camera, part / name, stage.clear, options.depth)
                entry = {
                    "file_path": f"{name}.png",
                    "view": camera.name,
                    "time": t,
                    "transform_matrix": [list(row) for row in camera.matrix_world],
                }
                if options.depth:
                    entry["depth_file_path"] = f"{name}.exr"
                frames.append(entry)
        focal = cameras[0].data.lens / cameras[0].data.sensor_width * width
        about = {
            "source": stage.source,
            "fps": 24,
            "w": width,
            "h": height,
            "fl_x": focal,
            "fl_y": focal,
            "cx": width / 2,
            "cy": height / 2,
            "frames": frames,
        }
        (part / "transforms.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        os.rename(part, final)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _render_cell(
    scene: bpy.types.Scene, camera: bpy.types.Object, path: Path, clear: bool, depth: bool
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scene.camera = camera
    with _silence():
        answer = bpy.ops.render.render()
    if "FINISHED" not in answer:
        raise RuntimeError("the render was cancelled")
    result = bpy.data.images["Render Result"]
    _picture_format(scene, "PNG", "RGBA" if clear else "RGB")
    result.save_render(str(path.with_suffix(".png")), scene=scene)
    if depth:
        _picture_format(scene, "OPEN_EXR_MULTILAYER", "RGBA")
        result.save_render(str(path.with_suffix(".exr")), scene=scene)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Send what Blender itself prints, a line per sample, nowhere; errors are still shown."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _picture_format(scene: bpy.types.Scene, file_format: str, channels: str) -> None:
    settings = scene.render.image_settings
    png = file_format == "PNG"
    if hasattr(settings, "media_type"):  # Blender 5
        settings.media_type = "IMAGE" if png else "MULTI_LAYER_IMAGE"
    settings.file_format, settings.color_mode = file_format, channels
    settings.color_depth = "8" if png else "32"
    if not png:
        settings.exr_codec = "ZIP"


def set_render(scene: bpy.types.Scene, options: argparse.Namespace) -> None:
    """The engine and size asked for. Raises RuntimeError for a device that is not there."""
    render = scene.render
    render.resolution_x, render.resolution_y = options.size
    render.resolution_percentage = 100
    render.use_persistent_data = True
    bpy.context.view_layer.use_pass_z = options.depth
    if options.engine == "EEVEE":
        names = {item.identifier for item in render.bl_rna.properties["engine"].enum_items}
        next_name = "BLENDER_EEVEE_NEXT"  # as Blender 4 calls it
        render.engine = next_name if next_name in names else "BLENDER_EEVEE"
        scene.eevee.taa_render_samples = options.samples
        return
    if options.engine == "WORKBENCH":
        render.engine = "BLENDER_WORKBENCH"
        return
    render.engine = "CYCLES"
    cycles = scene.cycles
    cycles.samples, cycles.seed = options.samples, 1
    cycles.use_adaptive_sampling = False
    cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = 3, 2, 2
    cycles.caustics_reflective = cycles.caustics_refractive = False
    cycles.use_denoising = _has_denoiser()
    cycles.device = "CPU"
    if options.device != "CPU":
        preferences = bpy.context.preferences.addons["cycles"].preferences
        try:
            preferences.compute_device_type = options.device
            preferences.refresh_devices()
        except TypeError:
            raise RuntimeError(f"--device is {options.device}; this Blender has none") from None
        found = [d for d in preferences.devices if d.type == options.device]
        if not found:
            raise RuntimeError(f"--device is {options.device}; none is in this machine")
        for device in preferences.devices:
            device.use = device.type == options.device
        cycles.device = "GPU"


def _has_denoiser() -> bool:
    """Whether this Blender was built with Open Image Denoise; some distributions' is not."""
    try:
        import _cycles
    except ImportError:
        return False
    return bool(getattr(_cycles, "with_openimagedenoise", False))


def leave(status: int) -> None:
    """End the process now: Blender 4.5 as a module can wait for ever in its own exit handlers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    try:
        answer = main()
    except SystemExit as end:  # argparse has said what is wrong
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        answer = end.code if isinstance(end.code, int) else 1
    leave(answer)
