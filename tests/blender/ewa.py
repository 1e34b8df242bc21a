# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of splats by EWA splatting written plainly in numpy, and what the display tests share.
It is the reference: it never uses the add-on's own maths."""

from __future__ import annotations

from math import factorial, pi, sqrt
from pathlib import Path

import bpy
import numpy as np
from mathutils import Vector

SIZE = 96
BACKGROUND = (0.05, 0.1, 0.2)  # scene linear


def plain_scene(scene: bpy.types.Scene) -> bpy.types.Scene:
    """Cycles at SIZE, a plain world, a camera that looks at the origin, Standard transform."""
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 8
    scene.cycles.pixel_filter_type = "BOX"
    scene.cycles.use_denoising = False
    scene.render.resolution_x = scene.render.resolution_y = SIZE
    scene.view_settings.view_transform = "Standard"
    scene.render.dither_intensity = 0.0
    scene.world = bpy.data.worlds.new("w")
    scene.world.color = BACKGROUND
    if scene.world.use_nodes:
        scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (*BACKGROUND, 1)
    camera = bpy.data.objects.new("c", bpy.data.cameras.new("c"))
    camera.location = (1.5, -4.0, 1.0)
    camera.rotation_euler = Vector((-1.5, 4.0, -1.0)).to_track_quat("-Z", "Y").to_euler()
    scene.collection.objects.link(camera)
    scene.camera = camera
    bpy.context.view_layer.update()
    return scene


def gaussians(formats, count: int, seed: int = 1, degree: int = 0):
    """Random ellipsoids of random colours within one unit."""
    rng = np.random.default_rng(seed)
    rotations = rng.normal(size=(count, 4))
    sh = rng.normal(0, 0.2, (count, (degree + 1) ** 2, 3)).astype(np.float32)
    colors = rng.uniform(0.1, 0.9, (count, 1, 3)).astype(np.float32)
    sh[:, :1] = formats.rgb_to_sh0(colors)
    return formats.Gaussians(
        means=rng.uniform(-1, 1, (count, 3)).astype(np.float32),
        scales=(0.03 * 12 ** rng.uniform(0, 1, (count, 3))).astype(np.float32),
        rotations=(rotations / np.linalg.norm(rotations, axis=1)[:, None]).astype(np.float32),
        opacities=rng.uniform(0.3, 0.95, count).astype(np.float32),
        sh=sh,
    )


def add(formats, folder: Path, splats) -> bpy.types.Object:
    """The object that plays a new sequence of these splats alone."""
    with formats.SequenceWriter(folder, times=1, fps=24.0, frame_start=1, frame_step=1) as writer:
        writer.write_step(0, splats)
    bpy.ops.viewtime.import_sequence(directory=str(folder))
    return bpy.context.object


def render(
    scene: bpy.types.Scene, folder: Path, alpha: bool = False, frame: int | None = None
) -> np.ndarray:
    """(SIZE, SIZE, 3 or 4) display values of the file that a user gets, top row first.

    frame: rendered as an animation of one frame, which does not move the objects of the file.
    """
    path = str(folder / "picture.png")
    scene.render.filepath = path
    scene.render.image_settings.color_depth = "16"
    scene.render.image_settings.color_mode = "RGBA" if alpha else "RGB"
    if frame is None:
        bpy.ops.render.render(write_still=True)
    else:
        path = str(folder / f"picture{frame:04}.png")
        scene.render.filepath = str(folder / "picture")
        scene.frame_start = scene.frame_end = frame
        bpy.ops.render.render(animation=True)
    image = bpy.data.images.load(path)
    image.colorspace_settings.name = "Non-Color"
    width, height = image.size
    pixels = np.array(image.pixels[:]).reshape(height, width, -1)[::-1]
    bpy.data.images.remove(image)
    return pixels[..., : 4 if alpha else 3]


class Seen:
    """Splats as a camera sees them: pixel places, inverse covariances, depths."""

    def __init__(self, scene: bpy.types.Scene, splats, world=None) -> None:
        camera = scene.camera
        to_camera = np.linalg.inv(np.array(camera.matrix_world))
        view = to_camera @ (np.eye(4) if world is None else world)
        turn = np.array([_matrix(q) for q in splats.rotations.astype(float)])
        axes = view[:3, :3] @ turn * splats.scales[:, None, :].astype(float)
        center = splats.means.astype(float) @ view[:3, :3].T + view[:3, 3]
        self.near = camera.data.clip_start
        self.z = z = -center[:, 2]
        x, y = center[:, 0], -center[:, 1]
        axes[:, 1:] *= -1  # OpenCV: y down, z forward
        zero = np.zeros_like(z)
        if camera.data.type == "ORTHO":
            pixels = SIZE / camera.data.ortho_scale
            self.u, self.v = pixels * x, pixels * y
            row_x = np.stack([zero + pixels, zero, zero], -1)
            row_y = np.stack([zero, zero + pixels, zero], -1)
        else:
            focal = SIZE * camera.data.lens / camera.data.sensor_width
            self.u, self.v = focal * x / z, focal * y / z
            row_x = np.stack([focal / z, zero, -focal * x / z**2], -1)
            row_y = np.stack([zero, focal / z, -focal * y / z**2], -1)
        flat = np.einsum("nki,nij->nkj", np.stack([row_x, row_y], 1), axes)
        self.inverse = np.linalg.inv(flat @ flat.transpose(0, 2, 1) + 0.01 * np.eye(2))
        self.opacity = splats.opacities.astype(float)
        # The camera's place (or direction) in the splats' own space.
        back = np.linalg.inv(view)
        if camera.data.type == "ORTHO":
            sight = np.tile(-back[:3, 2], (len(z), 1))
        else:
            sight = splats.means - back[:3, 3]
        self.sight = sight / np.linalg.norm(sight, axis=1, keepdims=True)

    def blend(self, colors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(H, W, 3) premultiplied, alpha (H, W, 1), depth (H, W, 1) weighted as the colours."""
        grid = (np.arange(SIZE) + 0.5) - SIZE / 2
        u, v = np.meshgrid(grid, grid)
        picture, depth = np.zeros((SIZE, SIZE, 3)), np.zeros((SIZE, SIZE, 1))
        through = np.ones((SIZE, SIZE, 1))
        for n in np.argsort(self.z):
            if self.z[n] < self.near:
                continue
            d = np.stack([u - self.u[n], v - self.v[n]], -1)
            power = 0.5 * np.einsum("hwi,ij,hwj->hw", d, self.inverse[n], d)
            alpha = np.minimum(self.opacity[n] * np.exp(-power), 0.999)[..., None]
            alpha = alpha * (alpha >= 1 / 255)
            picture += through * alpha * colors[n]
            depth += through * alpha * self.z[n]
            through = through * (1 - alpha)
        return picture, 1 - through, depth / np.maximum(1 - through, 1e-12)


def ewa(scene, splats, world=None) -> np.ndarray:
    """Over BACKGROUND, blended in scene linear light as Cycles does; display values."""
    seen = Seen(scene, splats, world)
    picture, alpha, _ = seen.blend(linear(harmonics(splats.sh, seen.sight)))
    return display(picture + (1 - alpha) * np.array(BACKGROUND))


def harmonics(sh: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(N, 3) display colours by the associated Legendre functions."""
    x, y, z = d.T
    angle, sine = np.arctan2(y, x), np.sqrt(np.maximum(1 - z * z, 0))
    legendre = {
        (0, 0): 1 + 0 * z, (1, 0): z, (1, 1): -sine, (2, 0): (3 * z * z - 1) / 2,
        (2, 1): -3 * z * sine, (2, 2): 3 * sine**2, (3, 0): (5 * z**3 - 3 * z) / 2,
        (3, 1): -1.5 * (5 * z * z - 1) * sine, (3, 2): 15 * z * sine**2, (3, 3): -15 * sine**3,
    }  # fmt: skip
    color = np.full((len(d), 3), 0.5)
    for degree in range(round(sqrt(sh.shape[1]))):
        for m in range(-degree, degree + 1):
            a = abs(m)
            norm = sqrt((2 * degree + 1) / (4 * pi) * factorial(degree - a) / factorial(degree + a))
            turn = 1.0 if m == 0 else sqrt(2) * (np.cos(m * angle) if m > 0 else np.sin(a * angle))
            term = norm * turn * legendre[degree, a]
            color += term[:, None] * sh[:, degree * degree + degree + m]
    return np.maximum(color, 0)


def _matrix(q):
    w, x, y, z = q / np.linalg.norm(q)
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]


def linear(values):
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def display(values):
    values = np.clip(values, 0, 1)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def psnr(a, b) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))
