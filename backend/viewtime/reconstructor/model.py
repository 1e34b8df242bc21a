# SPDX-License-Identifier: Apache-2.0
"""The reconstructor: a V x T grid of frames to cameras, depth and the raw maps of Gaussians.

VGGT with temporal attention and a Gaussian head (paper, section 3.2); files are read in `load`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from viewtime.reconstructor.aggregator import Aggregator
from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.dpt import DepthHead, DPTHead, PointHead
from viewtime.reconstructor.gaussian_head import gaussian_head
from viewtime.reconstructor.heads import CameraHead
from viewtime.reconstructor.memory import WHOLE, Chunks, Shape, plan_chunks
from viewtime.reconstructor.pose_encoding import decode_poses
from viewtime.reconstructor.splats import RawSplats, raw_splats
from viewtime.reconstructor.track import TrackHead

ANYSPLAT_TANGENT = 1e-3
"""What AnySplat adds to the tangent of half a field of view."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of each pixel and view.

    depth and confidence (B,T,V,H,W), planar z > 0 and >= 1; surface (B,T,V,H,W) logits of "not
    sky" or None; poses: one (B,T,V,9) encoding per refinement round, the last is the answer;
    points (B,T,V,H,W,3) in view 0's frame and points_confidence (B,T,V,H,W), or None; gaussians:
    raw maps (B,T,V,C,H,W) of the Gaussian head (see `splats`), or None.
    """

    depth: Tensor
    confidence: Tensor
    surface: Tensor | None
    poses: list[Tensor]
    points: Tensor | None = None
    points_confidence: Tensor | None = None
    gaussians: Tensor | None = None

    def cameras(self, tangent_shift: float = 0.0) -> tuple[Tensor, Tensor]:
        """Camera from view 0's world (B,T,V,3,4), OpenCV, and intrinsics (B,T,V,3,3) in pixels."""
        height, width = self.depth.shape[-2:]
        return decode_poses(self.poses[-1], (height, width), tangent_shift=tangent_shift)


class Reconstructor(nn.Module):
    """Frames (B,T,V,3,H,W) to a Prediction. View 0 is the reference at every timestep."""

    def __init__(self, config: ReconstructorConfig) -> None:
        super().__init__()
        self.config = config
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config)
        self.point_head = PointHead(config) if config.point_head else None
        self.depth_head = DepthHead(config)
        self.track_head = TrackHead(config) if config.track_head else None
        self.gaussian_head = gaussian_head(config)

    def forward(
        self,
        frames: Tensor,
        rays: Tensor | None = None,
        *,
        temporal: bool = True,
        replace_cameras: bool | None = None,
        trunk_dtype: torch.dtype | None = None,
        memory_budget_gb: float | None = None,
        trunk_gradients: bool = True,
    ) -> Prediction:
        """frames in [0,1]; rays (B,V,6,H,W) of pose.rig_rays, or None where cameras are unknown.

        With rays, depth is in units of the rig; without, in units of the scene's mean distance
        from view 0. Heads always compute in float32.

        Args:
            temporal: False leaves the temporal blocks out.
            replace_cameras: the camera tokens of timestep 0 stand in for those of every
                timestep, so that cameras do not change over time; the config decides when None.
            trunk_dtype: what the trunk computes in (torch.bfloat16), its residuals in float32.
            memory_budget_gb: choose chunks that keep the estimated peak within it. Raises
                ValueError where that cannot be, and where gradients are kept.
            trunk_gradients: False runs the trunk without (the paper's first stage).
        """
        chunks = self._chunks(frames, memory_budget_gb, trunk_dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trunk_gradients):
            layers = self._trunk(frames, rays, temporal, trunk_dtype, chunks)
        replaces = self.config.replace_cameras if replace_cameras is None else replace_cameras
        return self._read(layers, frames, chunks, replaces)

    def _read(
        self,
        layers: dict[int, Tensor],
        frames: Tensor,
        chunks: Chunks,
        replaces: bool,
        *,
        gaussians: bool = True,
    ) -> Prediction:
        """What the heads say of the trunk's layers; gaussians=False leaves their head out."""
        batch, times, views, _, height, width = frames.shape
        grid = (batch, times, views, height, width)
        dtype = self.camera_head.token_norm.weight.dtype
        with torch.autocast(frames.device.type, enabled=False):
            poses = self._poses(layers[self.config.depth - 1][:, :, :, 0].to(dtype), replaces)
            tokens = [layers[i].flatten(0, 2) for i in self.config.head_layers]  # (BTV,P,2C)
            pictures = frames.flatten(0, 2).to(dtype)
            size = chunks.head_frames

            def dense(head: DPTHead) -> Any:
                sines = head.picture_sines(pictures)
                return _per_frames(lambda *now: head(*now, sines), tokens, pictures, size)

            depth, confidence, surface = dense(self.depth_head)
            points = None if self.point_head is None else dense(self.point_head)
            splats = self.gaussian_head if gaussians else None
            raw = None if splats is None else dense(splats)
        return Prediction(
            depth.view(grid),
            confidence.view(grid),
            None if surface is None else surface.view(grid),
            poses,
            None if points is None else points[0].view(*grid, 3),
            None if points is None else points[1].view(grid),
            None if raw is None else raw.view(batch, times, views, -1, height, width),
        )

    def static(self, images: Tensor, query_points: Tensor | None = None) -> dict[str, Tensor]:
        """Stock VGGT: images (B,S,3,H,W) or (S,3,H,W) in [0,1] to upstream's named predictions.

        pose_enc (B,S,9), depth (B,S,H,W,1), depth_conf (B,S,H,W), with a point head world_points
        (B,S,H,W,3) and world_points_conf, and for query_points (B,N,2) or (N,2), in pixels of the
        first image, track (B,S,N,2), vis and conf (B,S,N). Raises ValueError for query points
        without a track head.
        """
        if query_points is not None and self.track_head is None:
            raise ValueError("query points are given, but the model has no track head")
        images = images if images.ndim == 5 else images[None]
        layers = self._trunk(images[:, None], None, False, None, WHOLE)
        p = self._read(layers, images[:, None], WHOLE, False, gaussians=False)
        found = {
            "pose_enc": p.poses[-1][:, 0],
            "depth": p.depth[:, 0, ..., None],
            "depth_conf": p.confidence[:, 0],
        }
        if p.points is not None and p.points_confidence is not None:
            found["world_points"] = p.points[:, 0]
            found["world_points_conf"] = p.points_confidence[:, 0]
        if query_points is not None and self.track_head is not None:
            query = query_points if query_points.ndim == 3 else query_points[None]
            tokens = [layers[i][:, 0] for i in self.config.head_layers]
            tracks, found["vis"], found["conf"] = self.track_head(tokens, images, query)
            found["track"] = tracks[-1]
        return found

    def raw_splats(
        self,
        prediction: Prediction,
        frames: Tensor,
        *,
        depth: Tensor | None = None,
        extrinsics: Tensor | None = None,
        intrinsics: Tensor | None = None,
        unit: Tensor | float = 1.0,
    ) -> RawSplats:
        """Unactivated Gaussians (B,T,V*H*W,...) of a prediction; see `splats.raw_splats`.

        Captured depth and cameras stand in for the predicted ones where they are given. Raises
        ValueError without a Gaussian head.
        """
        if prediction.gaussians is None:
            raise ValueError("the model has no Gaussian head")
        kind = self.config.gaussian_head
        shift = ANYSPLAT_TANGENT if kind == "anysplat" else 0.0
        predicted = prediction.cameras(shift)
        return raw_splats(
            kind,
            prediction.gaussians,
            prediction.depth if depth is None else depth,
            predicted[0] if extrinsics is None else extrinsics,
            predicted[1] if intrinsics is None else intrinsics,
            frames,
            confidence=prediction.confidence,
            unit=unit,
        )

    def _trunk(
        self,
        frames: Tensor,
        rays: Tensor | None,
        temporal: bool,
        dtype: torch.dtype | None,
        chunks: Chunks,
    ) -> dict[int, Tensor]:
        keep = self.config.kept_layers
        if dtype is None or dtype == torch.float32:
            return self.aggregator(frames, rays, temporal=temporal, keep=keep, chunks=chunks)
        # Without gradients a cache of narrowed weights would cost half the trunk again.
        cached = torch.is_grad_enabled()
        with torch.autocast(frames.device.type, dtype, cache_enabled=cached):
            return self.aggregator(frames, rays, temporal=temporal, keep=keep, chunks=chunks)

    def _poses(self, tokens: Tensor, replaces: bool) -> list[Tensor]:
        """Camera tokens (B,T,V,2C) of the last layer to encodings (B,T,V,9) per round."""
        times, views = tokens.shape[1:3]
        if replaces:  # equal tokens give equal cameras: one timestep is enough
            answers = self.camera_head(tokens[:, 0])
            return [answer[:, None].expand(-1, times, -1, -1) for answer in answers]
        answers = self.camera_head(tokens.flatten(0, 1))
        return [answer.view(-1, times, views, 9) for answer in answers]

    def _chunks(self, frames: Tensor, budget_gb: float | None, dtype: torch.dtype | None) -> Chunks:
        if budget_gb is None:
            return WHOLE
        if torch.is_grad_enabled():
            raise ValueError("a memory budget holds without gradients only: use torch.no_grad()")
        batch, times, views, _, height, width = frames.shape
        weights = sum(p.numel() * p.element_size() for p in self.parameters())
        shape = Shape(batch, times, views, height, width)
        half = dtype in (torch.bfloat16, torch.float16)
        return plan_chunks(self.config, shape, budget_gb, weights, half=half)


def _per_frames(
    head: Callable[..., Any], tokens: Sequence[Tensor], pictures: Tensor, size: int
) -> Any:
    """head(tokens, pictures), a tensor or a tuple of tensors, `size` frames at a time."""
    count = len(pictures)
    step = size or count

    def answer(first: int) -> Any:
        now = [layer[first : first + step].to(pictures.dtype) for layer in tokens]
        return head(now, pictures[first : first + step])

    if step >= count:
        return answer(0)
    if torch.is_grad_enabled():
        parts = [answer(first) for first in range(0, count, step)]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return tuple(None if group[0] is None else torch.cat(group) for group in zip(*parts))
    # Into their places at once: joining them later would take twice the room.
    found: list[Tensor | None] = []
    for first in range(0, count, step):
        part = answer(first)
        single = isinstance(part, Tensor)
        group = (part,) if single else part
        if not found:
            found = [None if x is None else x.new_empty(count, *x.shape[1:]) for x in group]
        for whole, x in zip(found, group):
            if whole is not None:
                whole[first : first + step] = x
    return found[0] if single else tuple(found)
