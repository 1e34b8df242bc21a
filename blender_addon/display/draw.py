# SPDX-License-Identifier: GPL-3.0-or-later
"""Splats in textures, and the one call that draws them into whatever framebuffer is bound.
It never reads Blender's data and never decides what is visible."""

from __future__ import annotations

from dataclasses import dataclass

import gpu
import numpy as np

from . import shader
from .cloud_data import Splats, Staging, pack, pack_order
from .settings import Look


@dataclass(frozen=True)
class View:
    """From where: (4, 4) camera_from_world (-z forward) and projection, both Blender's, the size
    in pixels, and up to six clipping planes (K, 4) of the world, positive where one sees."""

    camera_from_world: np.ndarray
    projection: np.ndarray
    width: int
    height: int
    planes: np.ndarray | None = None

    @property
    def perspective(self) -> bool:
        return bool(self.projection[3, 2] != 0.0)


def texture(data: np.ndarray, kind: str) -> gpu.types.GPUTexture:
    """(rows, columns[, 4]) float32 as a texture that is fetched by texel."""
    rows, columns = data.shape[:2]
    buffer = gpu.types.Buffer("FLOAT", data.size, np.ascontiguousarray(data).reshape(-1))
    return gpu.types.GPUTexture((columns, rows), format=kind, data=buffer)


class Uploaded:
    """One step's splats on the GPU. staging: arrays kept from one upload to the next."""

    def __init__(self, splats: Splats, staging: Staging | None = None) -> None:
        self.count = len(splats)
        self.coefficients = len(splats.rest)
        arrays = pack(splats, staging)
        # Colours beyond the first are seen in eight bits and fill most of the memory: half floats.
        self.textures = {
            name: texture(array, "RGBA32F" if array.ndim == 3 else "R32F")
            for name, array in arrays.items()
            if name != "rest"
        }
        self.textures["rest"] = texture(arrays["rest"], "R16F")


def quad_batch() -> gpu.types.GPUBatch:
    """Four corners from -1 to 1, for draws by instance and for whole pictures."""
    layout = gpu.types.GPUVertFormat()
    layout.attr_add(id="corner", comp_type="F32", len=2, fetch_mode="FLOAT")
    corners = gpu.types.GPUVertBuf(layout, 4)
    corners.attr_fill("corner", ((-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)))
    return gpu.types.GPUBatch(type="TRI_STRIP", buf=corners)


def forward_in(camera_from_object: np.ndarray) -> np.ndarray:
    """(3,) direction in the object's space along which the depth of its points grows."""
    return -camera_from_object[2, :3].astype(np.float32)


def eye_in(camera_from_object: np.ndarray, perspective: bool) -> np.ndarray:
    """(4,) the camera in the object's space: a place (w 1), or its direction of view (w 0)."""
    back = np.linalg.pinv(camera_from_object.astype(np.float64))
    if perspective:
        return np.append(back[:3, 3], 1.0)
    return np.append(-back[:3, 2] / max(np.linalg.norm(back[:3, 2]), 1e-30), 0.0)


class Painter:
    """The shader, the quad and the textures of orders. Belongs to one GPU context."""

    def __init__(self, with_depth: bool = False) -> None:
        self._shader = shader.splat_shader(with_depth)
        self._quad = quad_batch()

    def draw(
        self,
        uploaded: Uploaded,
        order: gpu.types.GPUTexture,
        count: int,
        world_from_object: np.ndarray,
        view: View,
        look: Look,
        *,
        linear: bool,
        growth: float = 1.0,
    ) -> None:
        """Draw `count` splats in `order` (far to near) with the depth test of the framebuffer.

        linear: colours leave as linear light, else as display sRGB; premultiplied in both cases.
        growth: factor on every scale.
        """
        if count == 0:
            return
        dots = look.mode == "POINTS"
        camera_from_object = view.camera_from_world @ world_from_object
        planes = np.zeros((0, 4)) if view.planes is None else view.planes @ world_from_object
        coefficients = uploaded.coefficients if look.view_dependent else 0
        block = shader.block(
            camera_from_object=camera_from_object,
            projection=view.projection,
            crop_from_object=look.crop,
            eye=eye_in(camera_from_object, view.perspective),
            frame=(view.width, view.height, shader.DILATION, growth),
            limits=(
                look.min_opacity,
                min(look.max_size, 3e38),
                look.point_size if dots else 0.0,
            ),
            choice=(coefficients, uploaded.count, linear, len(planes)),
            planes=planes[: shader.MAX_PLANES],
        )
        gpu.state.depth_test_set("LESS_EQUAL")
        # Dots are solid and may come in any order.
        gpu.state.depth_mask_set(dots)
        gpu.state.blend_set("NONE" if dots else "ALPHA_PREMULT")
        self._shader.bind()
        self._shader.uniform_block("vt", block)
        for name, held in uploaded.textures.items():
            self._shader.uniform_sampler(name, held)
        self._shader.uniform_sampler("order", order)
        self._quad.draw_instanced(self._shader, instance_start=0, instance_count=count)
        gpu.state.depth_mask_set(False)
        gpu.state.depth_test_set("NONE")
        gpu.state.blend_set("NONE")


def upload_order(order: np.ndarray) -> gpu.types.GPUTexture:
    """The order of drawing as a texture of indices."""
    return texture(pack_order(order), "R32F")
