# SPDX-License-Identifier: Apache-2.0
"""Differentiable pictures of Gaussians held in torch tensors: gsplat on CUDA, our own code on CPU.

Never moves tensors to another device by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Camera

from . import splatting, tiles
from .parallel import in_parallel
from .raster_cpu import (
    PIECES,
    Projected,
    Rendered,
    camera_arrays,
    check,
    project_arrays,
)

_NAMES = ("means", "scales", "rotations", "opacities", "colours")


@dataclass(frozen=True, eq=False)
class GaussianTensors:
    """N Gaussians as tensors of one device, any floating type; drawn and differentiated in float32.

    means (N, 3) world, scales (N, 3) linear, rotations (N, 4) wxyz of any length above 0 (they are
    normalised inside), opacities (N,) in [0, 1], colours (N, 3) display sRGB, or (N, K, 3)
    spherical harmonics with K of 1, 4, 9 or 16, whose colour is max(0, 0.5 + sum).
    """

    means: Tensor
    scales: Tensor
    rotations: Tensor
    opacities: Tensor
    colours: Tensor

    @classmethod
    def of(cls, gaussians: Gaussians, device: str | torch.device = "cpu") -> GaussianTensors:
        """Gaussians of arrays, copied to a device."""
        arrays = (
            gaussians.means,
            gaussians.scales,
            gaussians.rotations,
            gaussians.opacities,
            gaussians.sh,
        )
        return cls(*(torch.tensor(array, device=device) for array in arrays))


@dataclass(frozen=True, eq=False)
class CameraTensors:
    """C pinhole cameras of one picture size: viewmats (C, 4, 4) camera-from-world, OpenCV axes,
    rigid; intrinsics (C, 3, 3) in pixels without skew, pixel centres at +0.5."""

    viewmats: Tensor
    intrinsics: Tensor
    width: int
    height: int

    @classmethod
    def of(cls, cameras: Sequence[Camera], device: str | torch.device = "cpu") -> CameraTensors:
        """Cameras of one size. Raises ValueError when there are none or the sizes differ."""
        sizes = {(camera.width, camera.height) for camera in cameras}
        if len(sizes) != 1:
            raise ValueError(f"render: cameras of sizes {sorted(sizes)}; one size is needed")
        square = np.tile(np.eye(4), (len(cameras), 1, 1))
        square[:, :3] = [camera.camera_from_world for camera in cameras]
        lenses = np.stack([camera.intrinsics for camera in cameras])
        viewmats, intrinsics = (torch.tensor(a, device=device) for a in (square, lenses))
        return cls(viewmats, intrinsics, *sizes.pop())


class _Splat(torch.autograd.Function):
    """Blended sums of all cameras by the compiled loops, and their gradients."""

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, scales: Tensor, rotations: Tensor, opacities: Tensor,
        colours: Tensor, plain: bool, viewmats: np.ndarray, intrinsics: np.ndarray, width: int,
        height: int, dilation: float, near: float,
    ) -> Tensor:  # fmt: skip
        """(C, H, W, 5): r, g, b and depth, weighted by alpha, and transmittance."""
        tensors = (means, scales, rotations, opacities, colours)
        arrays = [np.require(t.detach().numpy(), np.float32, ["C", "W"]) for t in tensors]
        check(arrays, dilation, near, _NAMES)
        views, outs, lasts = [], [], []
        for pose, lens in zip(viewmats, intrinsics):
            view = project_arrays(arrays, plain, pose, lens, width, height, dilation, near)
            out, last = view.blend()
            views.append(view)
            outs.append(out)
            lasts.append(last)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*tensors)
            ctx.state = (views, outs, lasts, plain, viewmats, intrinsics, dilation)
        return torch.from_numpy(np.stack(outs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        arrays = [np.require(t.detach().numpy(), np.float32, ["C", "W"]) for t in ctx.saved_tensors]
        grads = [np.zeros_like(array) for array in arrays]
        views, outs, lasts, plain, viewmats, intrinsics, dilation = ctx.state
        d_outs = np.require(d_out.numpy(), np.float32, ["C", "W"])
        for c, view in enumerate(views):
            pairs = pair_gradients(view, outs[c], lasts[c], d_outs[c])
            camera = camera_arrays(viewmats[c], intrinsics[c], view.width, view.height)
            _add_gradients(view, pairs, arrays, plain, camera, dilation, grads)
        return *(torch.from_numpy(grad) for grad in grads), *[None] * 7


def _add_gradients(
    view: Projected,
    pairs: np.ndarray,
    arrays: list[np.ndarray],
    plain: bool,
    camera: tuple[np.ndarray, ...],
    dilation: float,
    grads: list[np.ndarray],
) -> None:
    """Add what one camera's pairs say to the gradients of means, scales, rotations, opacities and
    colours."""
    means, scales, rotations, _, colours = arrays
    in_parallel(
        lambda start, stop: splatting.project_backward(  # type: ignore[call-arg]
            start, stop, view.first, pairs, means, scales, rotations, colours, plain, *camera,
            float(dilation), *grads,
        ),
        view.count,
        PIECES,
    )  # fmt: skip


def pair_gradients(
    view: Projected, out: np.ndarray, last: np.ndarray, d_out: np.ndarray
) -> np.ndarray:
    """Gradients (P, 10) of each pair of splat and tile, from that of what `blend` gave."""
    pairs = np.zeros((len(view.listed), splatting.GRAD_SIZE), np.float32)
    in_parallel(
        lambda start, stop: tiles.blend_backward(
            start, stop, view.tiles_x, view.per_tile, view.listed, view.drawn, view.first,
            view.splats, view.shades, view.boxes, out, last, d_out, pairs,
        ),
        len(view.per_tile) - 1,
        PIECES,
    )  # fmt: skip
    return pairs


def _on_cpu(
    g: GaussianTensors, colours: Tensor, cameras: CameraTensors, dilation: float, near: float
) -> Tensor:
    """(C, H, W, 5) as _Splat, for tensors on the CPU."""
    if cameras.viewmats.requires_grad or cameras.intrinsics.requires_grad:
        raise ValueError(
            "render: the cameras require gradients, which only CUDA has; detach them on the CPU"
        )
    viewmats, lenses = (
        np.array(t.detach().double().numpy()) for t in (cameras.viewmats, cameras.intrinsics)
    )
    return _Splat.apply(
        g.means.float(), g.scales.float(), g.rotations.float(), g.opacities.float(), colours,
        g.colours.ndim == 2, viewmats, lenses, cameras.width, cameras.height, dilation, near,
    )  # fmt: skip


def _on_cuda(
    g: GaussianTensors, colours: Tensor, cameras: CameraTensors, dilation: float, near: float
) -> Tensor:
    """(C, H, W, 5) as _Splat, by gsplat's `rasterization` (its documented arguments alone)."""
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise ImportError(
            "render: Gaussians on a GPU are drawn by gsplat, which is not installed; "
            "pip install 'viewtime[cuda]', or move the tensors to the CPU"
        ) from error
    plain = g.colours.ndim == 2
    shown, alpha, _ = rasterization(
        means=g.means.float(),
        quats=g.rotations.float(),
        scales=g.scales.float(),
        opacities=g.opacities.float(),
        colors=colours[:, 0] if plain else colours,
        viewmats=cameras.viewmats.float(),
        Ks=cameras.intrinsics.float(),
        width=cameras.width,
        height=cameras.height,
        near_plane=near,
        eps2d=dilation,
        sh_degree=None if plain else int(colours.shape[1] ** 0.5) - 1,
        packed=False,
        render_mode="RGB+D",
    )
    return torch.cat([shown, 1 - alpha], -1)


def render_tensors(
    gaussians: GaussianTensors,
    cameras: CameraTensors,
    *,
    background: Any,
    dilation: float,
    near: float,
) -> Rendered:
    """As `viewtime.gaussians.render`, for tensors: color (C, H, W, 3), alpha and depth (C, H, W).

    background: (3,) or (C, 3), anything torch makes a tensor of; a tensor may require gradients.
    """
    _check_tensors(gaussians, cameras)
    g = gaussians
    colours = g.colours.float()
    colours = colours[:, None] if colours.ndim == 2 else colours
    device, count = g.means.device, len(cameras.viewmats)
    empty = not len(g.means) or not count
    if empty:
        out = torch.zeros(count, cameras.height, cameras.width, 5, device=device)
        out[..., 4] = 1
    elif device.type == "cuda":
        check_on_device(g, colours, dilation, near)
        out = _on_cuda(g, colours, cameras, dilation, near)
    else:
        out = _on_cpu(g, colours, cameras, dilation, near)
    rgb, weighted, through = out.split([3, 1, 1], -1)
    behind = torch.as_tensor(background, dtype=torch.float32, device=device)
    if behind.shape not in ((3,), (count, 3)):
        raise ValueError(
            f"render: background has shape {tuple(behind.shape)}; (3,) or ({count}, 3) is needed"
        )
    color = rgb + through * behind.expand(count, 3)[:, None, None]
    alpha = 1 - through[..., 0]
    drawn = alpha > 0
    # Divided only where something was drawn: infinity there would make every gradient nan.
    depth = weighted[..., 0] / torch.where(drawn, alpha, 1.0)
    return Rendered(color, alpha, torch.where(drawn, depth, torch.inf))


def _check_tensors(g: GaussianTensors, cameras: CameraTensors) -> None:
    """Raise ValueError for types, devices and camera shapes that do not fit."""
    device = g.means.device
    named = [(name, getattr(g, name)) for name in _NAMES]
    named += [("viewmats", cameras.viewmats), ("intrinsics", cameras.intrinsics)]
    for name, tensor in named:
        if not tensor.is_floating_point():
            raise ValueError(f"render: {name} is {tensor.dtype}; a floating type is needed")
        if name in _NAMES and tensor.device != device:
            raise ValueError(f"render: {name} is on {tensor.device}, means on {device}")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"render: tensors on {device}; cpu or cuda is needed")
    if device.type == "cuda" and cameras.viewmats.device != device:
        raise ValueError(f"render: viewmats is on {cameras.viewmats.device}, means on {device}")
    if g.colours.ndim not in (2, 3) or (g.colours.ndim == 2 and g.colours.shape[1] != 3):
        raise ValueError(
            f"render: colours has shape {tuple(g.colours.shape)}; (N, 3) or (N, K, 3) is needed"
        )
    for name, size in (("viewmats", 4), ("intrinsics", 3)):
        tensor, wanted = getattr(cameras, name), (len(cameras.viewmats), size, size)
        if tensor.shape != wanted:
            raise ValueError(f"render: {name} has shape {tuple(tensor.shape)}; {wanted} is needed")
        if not tensor.isfinite().all():
            raise ValueError(f"render: {name} is not finite everywhere")
    if cameras.width < 1 or cameras.height < 1:
        raise ValueError(f"render: {cameras.width} x {cameras.height} pixels; 1 or more is needed")


def check_on_device(g: GaussianTensors, colours: Tensor, dilation: float, near: float) -> None:
    """What `check` says of arrays. The tensors travel only when one of them is bad."""
    tensors = [t.detach() for t in (g.means, g.scales, g.rotations, g.opacities, colours)]
    try:
        lengths = tensors[2].square().sum(-1)
        finite = torch.stack([t.float().sum().isfinite() for t in tensors]).all()
        opacities = tensors[3]
        inside = (opacities >= 0).all() & (opacities <= 1).all() & (tensors[1] >= 0).all()
        good = bool(finite & inside & (lengths >= 1e-24).all())
    except (IndexError, RuntimeError):  # shapes so wrong that nothing could be asked
        good = False
    shown = [t[:1] for t in tensors] if good and len({len(t) for t in tensors}) == 1 else tensors
    check([np.array(t.float().cpu().numpy()) for t in shown], dilation, near, _NAMES)
