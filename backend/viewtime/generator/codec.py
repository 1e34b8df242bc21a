# SPDX-License-Identifier: Apache-2.0
"""Frames to latents and back: pixels as they are, or a Wan VAE applied to each view alone.

A codec also says which latents are known when only some frames are; it never pads or cuts a clip.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from viewtime.generator.errors import GeneratorError


class Codec(Protocol):
    """frames: (V, T, 3, H, W) in [0, 1]; latents: (V, T', C, h, w)."""

    channels: int
    spatial: int

    def encode(self, frames: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def encode_known(self, frames: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def shrink(self, maps: Tensor) -> Tensor: ...


class PixelCodec:
    """The identity up to range: latents = 2 * frames - 1."""

    channels = 3
    spatial = 1

    def encode(self, frames: Tensor) -> Tensor:
        return frames * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return latents.add(1).mul(0.5).clamp(0, 1)

    def encode_known(self, frames: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (zero where unknown), which are known (V, T), and which of them exactly: all."""
        return self.encode(frames) * known[..., None, None, None], known, known

    def shrink(self, maps: Tensor) -> Tensor:
        """Maps (V, T, M, H, W) in [0, 1] at the size of latents: the same."""
        return maps


NUMBERS_PER_PIXEL = 140
"""Memory a Wan VAE needs at most, in float32 numbers per pixel of one frame and per channel of its
widest full-size layer (`base_dim`). From a published 6 to 9 GB for 512 x 320; an estimate."""


class WanCodec:
    """A Wan VAE: 8 x 8 pixels (16 x 16 for Wan 2.2) and 4 frames (1 for the first) to one latent.

    The VAE is causal in time and keeps a cache along it, so views go through it side by side, as
    a batch, and never one after the other.

    The rule for a latent that mixes 4 frames (DESIGN decision 3): it is exact when its frames and
    all before it in its view are known. Where only some are (a moment frozen in the middle of a
    clip), the reference is the latent at that place of a clip in which the known frame stands
    still; it tells the model what to make there, and is not kept as a result.
    """

    def __init__(self, vae: Any, *, budget: int | None = None, tiling: bool = False) -> None:
        """vae: a diffusers AutoencoderKLWan. budget: bytes that decoding may take, which decides
        how many views go at once; None means one view at a time. tiling: let the VAE work through
        big frames in overlapping tiles, with seams it blends."""
        self.vae = vae
        if tiling:
            vae.enable_tiling()
        self.budget = budget
        self.channels = vae.config.z_dim
        self.spatial = vae.config.scale_factor_spatial or 8
        self.temporal = vae.config.scale_factor_temporal or 4
        shape = (1, self.channels, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        self._std = torch.tensor(vae.config.latents_std).view(shape)

    def bytes_per_view(self, height: int, width: int) -> int:
        """An estimate of the memory that one view of this size takes while it is decoded."""
        size = torch.finfo(self.vae.dtype).bits // 8
        return NUMBERS_PER_PIXEL * self.vae.config.base_dim * size * height * width

    def views_at_once(self, height: int, width: int) -> int:
        """How many views the budget allows, at least 1."""
        if self.budget is None:
            return 1
        return max(1, self.budget // self.bytes_per_view(height, width))

    def encode(self, frames: Tensor) -> Tensor:
        """Raises GeneratorError unless the number of frames is 1 + 4k and sizes divide by 8."""
        times, height, width = frames.shape[1], frames.shape[-2], frames.shape[-1]
        self._check_length(times)
        if height % self.spatial or width % self.spatial:
            raise GeneratorError(
                f"frames of {width} x {height} px do not fit the video codec: "
                f"width and height must be multiples of {self.spatial}"
            )
        views = frames.split(self.views_at_once(height, width))
        return torch.cat([self._encode_views(some) for some in views])

    def _check_length(self, times: int) -> None:
        if (times - 1) % self.temporal:
            below = 1 + (times - 1) // self.temporal * self.temporal
            raise GeneratorError(
                f"{times} frames per view do not fit the video codec, which takes 1 + "
                f"{self.temporal}k frames: use {below} or {below + self.temporal}"
            )

    def _encode_views(self, views: Tensor) -> Tensor:
        video = (views * 2 - 1).transpose(1, 2).to(self.vae.device, self.vae.dtype)
        with torch.no_grad():
            latents = self.vae.encode(video).latent_dist.mode().float()  # (V, C, T', h, w)
        latents = (latents - self._mean.to(latents)) / self._std.to(latents)
        return latents.transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        height, width = (n * self.spatial for n in latents.shape[-2:])
        views = []
        for some in latents.split(self.views_at_once(height, width)):
            z = some.transpose(1, 2).to(self.vae.device)  # (V, C, T', h, w)
            z = z * self._std.to(z) + self._mean.to(z)
            with torch.no_grad():
                video = self.vae.decode(z.to(self.vae.dtype)).sample.float()
            views.append(video.transpose(1, 2).add(1).mul(0.5).clamp(0, 1))
        return torch.cat(views)

    def encode_known(self, frames: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (zero where unknown), which are known (V, T'), and which of them exactly.

        Raises GeneratorError when the clip's length is not 1 + 4k.
        """
        views, times = known.shape
        self._check_length(times)
        latent_times = 1 + (times - 1) // self.temporal
        mask = torch.zeros(views, latent_times, dtype=torch.bool)
        exact = torch.zeros_like(mask)
        size = (n // self.spatial for n in frames.shape[-2:])
        latents = torch.zeros(views, latent_times, self.channels, *size)
        for v in range(views):
            run = int(known[v].long().cumprod(0).sum())  # known frames from the start on
            whole = 1 + (run - 1) // self.temporal if run else 0  # latents that they fill
            if whole:
                used = 1 + (whole - 1) * self.temporal
                latents[v, :whole] = self.encode(frames[v : v + 1, :used])[0].cpu()
                mask[v, :whole] = exact[v, :whole] = True
            for j in range(whole, latent_times):
                held = self._frame_in(known[v], j)
                if held is not None:
                    latents[v, j] = self._standing_still(frames[v, held], j).cpu()
                    mask[v, j] = True
        device = frames.device
        return latents.to(device), mask.to(device), exact.to(device)

    def _frame_in(self, known: Tensor, j: int) -> int | None:
        """The known frame in the middle of those that latent j mixes, None when there is none."""
        first = 0 if j == 0 else 1 + (j - 1) * self.temporal
        held = [t for t in range(first, 1 + j * self.temporal) if known[t]]
        return held[len(held) // 2] if held else None

    def _standing_still(self, frame: Tensor, j: int) -> Tensor:
        """Latent j (C, h, w) of a clip that repeats the frame (3, H, W); the third is as the
        second, and all later ones, within what the VAE's cache still remembers."""
        length = 1 + min(j, 2) * self.temporal
        return self.encode(frame.expand(1, length, *frame.shape))[0, -1]

    def shrink(self, maps: Tensor) -> Tensor:
        """Maps (V, T, M, H, W) in [0, 1] -> (V, T', M, h, w): the least value of each latent."""
        first, rest = maps[:, :1], maps[:, 1:]
        if rest.shape[1]:
            rest = rest.unflatten(1, (-1, self.temporal)).amin(dim=2)
        least = torch.cat((first, rest), dim=1)
        return -F.max_pool2d(-least.flatten(0, 1), self.spatial).unflatten(0, least.shape[:2])
