# SPDX-License-Identifier: Apache-2.0
"""The one way to a picture of Gaussians: arrays or tensors, one camera or many, CPU or CUDA.

Imports torch only when given tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Camera

from . import raster_cpu
from .raster_cpu import DILATION, NEAR, Rendered

if TYPE_CHECKING:
    from .tensors import CameraTensors, GaussianTensors


def render(
    gaussians: Gaussians | GaussianTensors,
    camera: Camera | Sequence[Camera] | CameraTensors,
    *,
    background: Any = (0.0, 0.0, 0.0),
    dilation: float = DILATION,
    near: float = NEAR,
) -> Rendered:
    """The pictures that cameras see of Gaussians.

    Arrays in, arrays out, by our own rasteriser. Tensors in, differentiable tensors out: on the CPU
    by the same rasteriser with a backward pass of its own (gradients for everything but the
    cameras), on CUDA by gsplat. Both follow gsplat: wxyz quaternions, linear scales, opacities in
    [0, 1], OpenCV cameras (x right, y down, z forward), pixel centres at +0.5, colours
    max(0, 0.5 + harmonics), alpha at most 0.999 and counted from 1/255 on, and a pixel is finished
    before the splat that would leave it a transmittance of 1e-4 or less.

    Args:
        gaussians: `Gaussians` (arrays) or `GaussianTensors`, world frame, scene units, spherical
            harmonics of degree 0 to 3; tensors may carry plain colours (N, 3) instead.
        camera: one Camera, several of one size, or (for tensors) `CameraTensors`.
        background: (3,) display sRGB behind everything; for tensors also (C, 3).
        dilation: px^2 added to both screen variances: gsplat's eps2d, 0.3 there and in most
            viewers; 0.01 suits splats that were made for it, as our captured geometry is.
        near: Gaussians whose centre lies nearer (scene units along z) are not drawn.

    Returns:
        Rendered: color (H, W, 3), alpha (H, W), depth (H, W), the alpha-weighted mean of the planar
        z, inf where nothing is drawn; with a leading axis of cameras unless one Camera was given.

    Raises:
        ValueError: naming the field and the value, for shapes that do not fit, values that are not
            finite, negative scales, zero quaternions, opacities outside [0, 1], harmonics above
            degree 3, cameras of several sizes or with gradients on the CPU.
        ImportError: for tensors on CUDA without gsplat.
    """
    if not isinstance(gaussians, Gaussians):
        from .tensors import CameraTensors, render_tensors

        cameras = camera
        if not isinstance(cameras, CameraTensors):
            several = [camera] if isinstance(camera, Camera) else list(camera)  # type: ignore[arg-type]
            cameras = CameraTensors.of(several, gaussians.means.device)
        shown = render_tensors(
            gaussians, cameras, background=background, dilation=dilation, near=near
        )
        if isinstance(camera, Camera):
            return Rendered(shown.color[0], shown.alpha[0], shown.depth[0])
        return shown
    if isinstance(camera, Camera):
        return raster_cpu.render(
            gaussians, camera, background=background, dilation=dilation, near=near
        )
    if not isinstance(camera, Sequence):
        raise ValueError("render: arrays are seen by Camera objects; make them GaussianTensors")
    pictures = [
        raster_cpu.render(gaussians, one, background=background, dilation=dilation, near=near)
        for one in camera
    ]
    if len({picture.alpha.shape for picture in pictures}) != 1:
        sizes = sorted({(one.width, one.height) for one in camera})
        raise ValueError(f"render: cameras of sizes {sizes}; one size is needed")
    parts = zip(*((p.color, p.alpha, p.depth) for p in pictures))
    return Rendered(*(np.stack(part) for part in parts))
