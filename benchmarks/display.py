# SPDX-License-Identifier: Apache-2.0
"""Splats as Blender draws them against the backend's own rasteriser: the same camera, the same
splats, the picture file that a user gets. It changes nothing in the repository.

    .venv/bin/python benchmarks/display.py --blender .venv-blender/bin/python --out runs/display

Two sets of splats: "shapes" (flat splats on surfaces with harmonics of degree 3, as a
reconstruction gives) and "cloud" (random ellipsoids of random colours, half transparent: the worst
case for order and blending). The rows:

    pass           render engine Viewtime Splats, view transform Standard
    cycles         quads in Cycles, Blend in renders: Display, view transform Raw, 1 sample, pixel
                   filter Box of width 0.01: a pixel is its centre, as in the backend
    cycles scene   the same with Blend in renders: Scene, view transform Standard
    cycles smooth  as cycles, with 16 samples and the filter Box of width 1: a pixel is its area;
                   compared with the backend's picture at 4 times the size, averaged
    eevee ...      quads in EEVEE, filter size 0; otherwise as the rows of Cycles

All after Prepare Render (128 transparent bounces, 64 for certain). "dB" compares with the backend
blended in the same light as the technique; "to display" with the backend as it draws (blended in
display values, as splats are trained): what blending in scene linear light costs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "bl_ext.user_default.viewtime"
TECHNIQUES = {
    # name: (engine, blend in renders, view transform, samples, width of the pixel filter)
    "pass": ("VIEWTIME_SPLATS", "SCENE", "Standard", 1, 0.01),
    "cycles": ("CYCLES", "DISPLAY", "Raw", 1, 0.01),
    "cycles scene": ("CYCLES", "SCENE", "Standard", 1, 0.01),
    "cycles smooth": ("CYCLES", "DISPLAY", "Raw", 16, 1.0),
    "eevee": ("EEVEE", "DISPLAY", "Raw", 4, 0.0),
    "eevee scene": ("EEVEE", "SCENE", "Standard", 4, 0.0),
}
SETS = ("shapes", "cloud")


# ---- splats ----


def make_splats(kind: str, count: int):
    """`count` Gaussians of one of SETS, about the origin, within one unit."""
    from viewtime_formats import Gaussians, rgb_to_sh0

    rng = np.random.default_rng(7)
    harmonics = np.zeros((count, 16, 3), np.float32)
    if kind == "cloud":
        means = rng.uniform(-0.8, 0.8, (count, 3))
        scales = 0.005 * 12 ** rng.uniform(0, 1, (count, 3))
        rotations = rng.normal(size=(count, 4))
        opacities = rng.uniform(0.3, 0.95, count)
        harmonics[:, 0] = rgb_to_sh0(rng.uniform(0.1, 0.9, (count, 3)))
    else:
        part = rng.integers(0, 3, count)
        u, v = rng.uniform(0, 2 * np.pi, (2, count))
        height = rng.uniform(-1, 1, count)
        flat = np.sqrt(1 - height**2)
        ball = np.stack([flat * np.cos(u), flat * np.sin(u), height], -1)
        tube = np.stack([np.cos(u) * np.cos(v), np.sin(u) * np.cos(v), np.sin(v)], -1)
        ring = 0.75 * np.stack([np.cos(u), np.sin(u), 0 * u], -1) + 0.16 * tube
        floor = np.stack([*rng.uniform(-1, 1, (2, count)), np.full(count, -0.55)], -1)
        up = np.tile([0.0, 0.0, 1.0], (count, 1))
        pick = [part == 0, part == 1, part == 2]
        means = np.select([p[:, None] for p in pick], [0.45 * ball, ring, floor])
        normal = np.select([p[:, None] for p in pick], [ball, tube, up])
        stripe = np.select(pick, [np.sin(9 * height), np.sin(12 * u), np.sin(9 * means[:, 0])])
        stripe = np.where(part == 2, stripe * np.sin(9 * means[:, 1]), stripe) > 0
        dark = np.array([[0.85, 0.25, 0.2], [0.15, 0.3, 0.7], [0.8, 0.8, 0.75]])[part]
        light = np.array([[0.95, 0.85, 0.5], [0.9, 0.9, 0.95], [0.25, 0.3, 0.3]])[part]
        harmonics[:, 0] = rgb_to_sh0(np.where(stripe[:, None], light, dark))
        # A highlight that moves with the view: degree 1 along the surface's normal.
        harmonics[:, [3, 1, 2]] += (normal[:, :, None] * [[[0.25]], [[0.25]], [[-0.25]]][0]).astype(
            np.float32
        )
        scales = np.stack([np.full(count, 0.016), np.full(count, 0.016), np.full(count, 1e-3)], -1)
        # The shortest turn of z onto the normal.
        rotations = np.stack(
            [1 + normal[:, 2], -normal[:, 1], normal[:, 0], np.zeros(count)], -1
        ) + [1e-6, 0, 0, 0]
        opacities = rng.uniform(0.6, 0.99, count)
    harmonics[:, 4:] += rng.normal(0, 0.02, (count, 12, 3))
    rotations = rotations / np.linalg.norm(rotations, axis=1, keepdims=True)
    return Gaussians(
        *(np.ascontiguousarray(a, np.float32) for a in (means, scales, rotations, opacities)),
        harmonics,
    )


# ---- inside Blender ----


def inside(work: Path) -> None:
    """Render everything that work/job.json asks for; runs in Blender's interpreter."""
    import importlib

    import bpy
    from mathutils import Vector

    job = json.loads((work / "job.json").read_text())
    bpy.ops.extensions.package_install_files(
        repo="user_default", filepath=job["extension"], enable_on_install=False
    )
    importlib.invalidate_caches()
    bpy.ops.preferences.addon_enable(module=PACKAGE)
    conventions = importlib.import_module(f"{PACKAGE}.conventions")
    formats = importlib.import_module("viewtime_formats")
    size = job["size"]
    eevee = {
        item.identifier for item in bpy.types.RenderSettings.bl_rna.properties["engine"].enum_items
    }
    names = {"EEVEE": "BLENDER_EEVEE_NEXT" if "BLENDER_EEVEE_NEXT" in eevee else "BLENDER_EEVEE"}
    seconds = {}
    for kind in SETS:
        bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
        scene = bpy.context.scene
        camera = bpy.data.objects.new("c", bpy.data.cameras.new("c"))
        camera.location = (1.2, -2.6, 1.3)
        camera.rotation_euler = Vector((-1.2, 2.6, -1.4)).to_track_quat("-Z", "Y").to_euler()
        scene.collection.objects.link(camera)
        scene.camera = camera
        folder = work / kind
        with formats.SequenceWriter(
            folder, times=1, fps=24.0, frame_start=1, frame_step=1
        ) as writer:
            splats = np.load(work / f"{kind}.npz")
            writer.write_step(0, formats.Gaussians(**splats))
        bpy.ops.viewtime.import_sequence(directory=str(folder))
        ob = bpy.context.object
        scene.world = bpy.data.worlds.new("w")
        scene.world.color = (0, 0, 0)
        if scene.world.use_nodes:
            scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0, 0, 0, 1)
        render = scene.render
        render.resolution_x = render.resolution_y = size
        render.dither_intensity = 0.0
        render.image_settings.color_depth = "16"
        scene.cycles.use_adaptive_sampling = False
        scene.cycles.use_denoising = False
        scene.cycles.pixel_filter_type = "BOX"
        bpy.ops.viewtime.prepare_render()
        bpy.context.view_layer.update()
        seen = conventions.camera_from_blender(camera, scene, size, size)
        np.savez(work / f"{kind}.camera.npz", k=seen.intrinsics, pose=seen.camera_from_world)
        for mesh in (False, True):
            if mesh:
                bpy.ops.mesh.primitive_cube_add(size=0.5, location=(0.35, -0.55, 0.0))
                bpy.ops.object.light_add(type="SUN", rotation=(0.6, 0.3, 0.0))
            for technique, (engine, blend, view, samples, width) in TECHNIQUES.items():
                if technique.split()[0] not in job["engines"] or (mesh and blend != "SCENE"):
                    continue
                scene.cycles.samples = scene.eevee.taa_render_samples = samples
                scene.cycles.filter_width = max(width, 0.01)
                render.filter_size = width
                render.engine = names.get(engine, engine)
                scene.view_settings.view_transform = view
                ob.viewtime.display_blend = blend
                name = f"{kind}.{technique.replace(' ', '_')}" + (".mesh" if mesh else "")
                render.filepath = str(work / f"{name}.png")
                start = time.perf_counter()
                bpy.ops.render.render(write_still=True)
                seconds[name] = time.perf_counter() - start
                image = bpy.data.images.load(render.filepath)
                image.colorspace_settings.name = "Non-Color"
                pixels = np.array(image.pixels[:], np.float32).reshape(size, size, -1)
                np.save(work / f"{name}.npy", pixels[::-1, :, :3])
    (work / "seconds.json").write_text(json.dumps(seconds))
    sys.stdout.flush()
    os._exit(0)  # Blender as a module can wait for ever in its exit handlers


# ---- outside ----


def reference(splats, camera, linear: bool, smooth: bool = False) -> np.ndarray:
    """(H, W, 3) display sRGB over black: blended in display values, or in linear light.

    smooth: pixels are areas (4 x 4 centres, averaged) instead of their centres.
    """
    if smooth:
        fine = 4 * np.array([camera.width, camera.height])
        lens = camera.intrinsics * [[4], [4], [1]]
        large = type(camera)("fine", *map(int, fine), lens, camera.camera_from_world)
        picture = reference(splats, large, linear)
        return picture.reshape(camera.height, 4, camera.width, 4, 3).mean(axis=(1, 3))
    from viewtime.gaussians import render
    from viewtime_formats import Gaussians, rgb_to_sh0

    if linear:
        sight = splats.means - camera.center
        sight = sight / np.linalg.norm(sight, axis=1, keepdims=True)
        colour = _harmonics(splats.sh, sight.astype(np.float32))
        colour = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        splats = Gaussians(
            splats.means,
            splats.scales,
            splats.rotations,
            splats.opacities,
            rgb_to_sh0(colour)[:, None],
        )
    picture = np.clip(render(splats, camera).color, 0, 1)
    if linear:
        picture = np.where(
            picture <= 0.0031308, picture * 12.92, 1.055 * picture ** (1 / 2.4) - 0.055
        )
    return picture


def _harmonics(sh: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(N, 3) colours by the associated Legendre functions: independent of the formulas in use."""
    from math import factorial, pi, sqrt

    x, y, z = d.T.astype(np.float64)
    angle = np.arctan2(y, x)
    sine = np.sqrt(np.maximum(1 - z * z, 0))
    legendre = {
        (0, 0): 1 + 0 * z, (1, 0): z, (1, 1): -sine, (2, 0): (3 * z * z - 1) / 2,
        (2, 1): -3 * z * sine, (2, 2): 3 * sine**2, (3, 0): (5 * z**3 - 3 * z) / 2,
        (3, 1): -1.5 * (5 * z * z - 1) * sine, (3, 2): 15 * z * sine**2, (3, 3): -15 * sine**3,
    }  # fmt: skip
    colour = np.full((len(d), 3), 0.5)
    for degree in range(4):
        for m in range(-degree, degree + 1):
            a = abs(m)
            norm = sqrt((2 * degree + 1) / (4 * pi) * factorial(degree - a) / factorial(degree + a))
            turn = 1.0 if m == 0 else sqrt(2) * (np.cos(m * angle) if m > 0 else np.sin(a * angle))
            term = norm * turn * legendre[degree, a]
            colour += term[:, None] * sh[:, degree * degree + degree + m]
    return np.maximum(colour, 0)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def sheet(work: Path, rows: list[list[tuple[str, np.ndarray]]], out: Path) -> None:
    """A picture of pictures with their names."""
    from PIL import Image, ImageDraw

    side = 288
    width = max(len(row) for row in rows)
    page = Image.new("RGB", (width * (side + 4), len(rows) * (side + 20)), (30, 30, 30))
    draw = ImageDraw.Draw(page)
    for r, row in enumerate(rows):
        for c, (name, picture) in enumerate(row):
            image = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
            page.paste(
                image.resize((side, side), Image.LANCZOS), (c * (side + 4), r * (side + 20) + 18)
            )
            draw.text((c * (side + 4) + 4, r * (side + 20) + 3), name, (230, 230, 230))
    page.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blender", type=Path, default=ROOT / ".venv-blender" / "bin" / "python")
    parser.add_argument("--splats", type=int, default=20000)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--engines", default="pass,cycles,eevee")
    parser.add_argument("--extension", type=Path, help="a built zip; else one is built now")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "display")
    arguments = parser.parse_args()
    from viewtime_formats.rig import Camera

    work = Path(tempfile.mkdtemp(prefix="viewtime-display-"))
    try:
        extension = arguments.extension
        if extension is None:
            builder = [sys.executable, str(ROOT / "tools" / "build_extension.py")]
            subprocess.run([*builder, "--out", str(work)], check=True, capture_output=True)
            extension = next(work.glob("viewtime-*.zip"))
        sets = {kind: make_splats(kind, arguments.splats) for kind in SETS}
        for kind, splats in sets.items():
            np.savez(work / f"{kind}.npz", **vars(splats))
        job = {
            "extension": str(extension.resolve()),
            "size": arguments.size,
            "engines": arguments.engines.split(","),
        }
        (work / "job.json").write_text(json.dumps(job))
        environment = {**os.environ, "BLENDER_USER_RESOURCES": str(work / "user")}
        command = [str(arguments.blender), __file__, "--inside", str(work)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True)
        if not (work / "seconds.json").exists():
            sys.exit(f"Blender failed:\n{answer.stdout[-2000:]}\n{answer.stderr[-4000:]}")
        seconds = json.loads((work / "seconds.json").read_text())
        print(f"{arguments.splats} splats, {arguments.size} px")
        print(f"{'splats':8}{'technique':18}{'dB':>8}{'to display':>12}{'seconds':>9}")
        rows = []
        for kind, splats in sets.items():
            seen = np.load(work / f"{kind}.camera.npz")
            camera = Camera("c", arguments.size, arguments.size, seen["k"], seen["pose"])
            display = reference(splats, camera, linear=False)
            scene = reference(splats, camera, linear=True)
            row, hidden = [(f"{kind}: backend", display)], [(f"{kind}: backend, linear", scene)]
            for technique, (_, blend, _, _, width) in TECHNIQUES.items():
                name = f"{kind}.{technique.replace(' ', '_')}"
                if name not in seconds:
                    continue
                picture = np.load(work / f"{name}.npy")
                smooth = reference(splats, camera, False, True) if width == 1.0 else display
                same = scene if blend == "SCENE" and technique != "pass" else smooth
                print(
                    f"{kind:8}{technique:18}{psnr(picture, same):8.1f}"
                    f"{psnr(picture, smooth):12.1f}{seconds[name]:9.2f}"
                )
                row.append((technique, picture))
                if f"{name}.mesh" in seconds:
                    hidden.append((f"{technique}, mesh", np.load(work / f"{name}.mesh.npy")))
            rows += [row, hidden]
        arguments.out.mkdir(parents=True, exist_ok=True)
        sheet(work, rows, arguments.out / "display.png")
        print(f"pictures: {arguments.out / 'display.png'}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(Path(sys.argv[2]))
    else:
        main()
