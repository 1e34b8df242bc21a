# SPDX-License-Identifier: Apache-2.0
"""Leave-one-out quality of captured-geometry splats for calibrated photos with depth.

Each view is drawn from splats of all the others; the view itself lends neither colour nor depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from viewtime.evaluation.metrics import psnr, ssim
from viewtime.gaussians.fill import push_pull
from viewtime.gaussians.lift import clean_depth
from viewtime.gaussians.raster_cpu import render
from viewtime.grid import grid_from_capture
from viewtime.reconstructor.captured import background_from_sky, fuse_views
from viewtime_formats.capture import Capture
from viewtime_formats.errors import CaptureError
from viewtime_formats.rig import Camera

PHOTO_DEPTH_NOISE = 0.01
"""Relative error assumed of depth that no renderer made."""


class LeftOut(NamedTuple):
    """One view drawn from the others.

    psnr in dB and ssim count the whole picture (holes show the sky or are filled smoothly);
    covered is the share of pixels that the others' splats cover, and psnr_covered counts those
    alone (nan where there are none).
    """

    view: int
    psnr: float
    ssim: float
    covered: float
    psnr_covered: float


def leave_one_out_views(
    images: NDArray[np.float32],
    depths: NDArray[np.float32],
    cameras: Sequence[Camera],
    *,
    depth_noise: float = PHOTO_DEPTH_NOISE,
    dilation: float = 0.01,
) -> list[LeftOut]:
    """As `leave_one_out`, for images (V, H, W, 3), depths (V, H, W) and V cameras in memory."""
    results = []
    for v, camera in enumerate(cameras):
        others = [j for j in range(len(cameras)) if j != v]
        splats = fuse_views(
            images[others], depths[others], [cameras[j] for j in others], depth_noise=depth_noise
        )
        sky = background_from_sky(images[others], depths[others])
        shown = render(splats, camera, background=sky, dilation=dilation)
        covered = shown.alpha > 0.5
        # What nobody covers is the sky where there is one, else a hole to fill from around it.
        has_sky = np.isinf(clean_depth(depths[others])).any()
        picture = shown.color if has_sky else push_pull(shown.color, covered)
        seen, truth = np.clip(shown.color, 0, 1)[covered], images[v][covered]
        results.append(
            LeftOut(
                v,
                psnr(picture, images[v]),
                ssim(picture.transpose(2, 0, 1), images[v].transpose(2, 0, 1)),
                float(covered.mean()),
                psnr(seen[:, None], truth[:, None]) if covered.any() else float("nan"),
            )
        )
    return results


def leave_one_out(
    capture: Capture,
    *,
    time: int = 0,
    size: int | None = None,
    depth_noise: float = PHOTO_DEPTH_NOISE,
) -> list[LeftOut]:
    """PSNR and SSIM of each view of one timestep, drawn from splats of all the other views.

    Args:
        capture: with a rig, and all views of the timestep with depth.
        size: height in pixels to work at; None is the capture's own.
        depth_noise: relative error of the depth.

    Raises:
        CaptureError: when the rig, a frame or its depth is missing, or there is only one view.
    """
    if capture.rig is None or len(capture.rig) < 2:
        raise CaptureError(f"{capture.folder}: leaving one out needs a rig of two views or more")
    grid = grid_from_capture(capture, size)
    if not grid.known[:, time].all() or grid.depth is None or np.isnan(grid.depth[:, time]).all():
        raise CaptureError(f"{capture.folder}: leaving one out needs every view with depth")
    height, width = grid.frames.shape[3:]
    images = np.ascontiguousarray(grid.frames[:, time].transpose(0, 2, 3, 1))
    return leave_one_out_views(
        images,
        grid.depth[:, time],
        capture.rig.resized(width, height).cameras,
        depth_noise=depth_noise,
    )
