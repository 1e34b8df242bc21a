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

    def encode_known(self, frames: Tensor, known: Tensor) -> tuple[Tensor, Tensor]: ...

    def shrink(self, maps: Tensor) -> Tensor: ...


class PixelCodec:
    """The identity up to range: latents = 2 * frames - 1."""

    channels = 3
    spatial = 1

    def encode(self, frames: Tensor) -> Tensor:
        return frames * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return latents.add(1).mul(0.5).clamp(0, 1)

    def encode_known(self, frames: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (zero where unknown) and their mask (V, T)."""
        return self.encode(frames) * known[..., None, None, None], known

    def shrink(self, maps: Tensor) -> Tensor:
        """Maps (V, T, M, H, W) in [0, 1] at the size of latents: the same."""
        return maps


class WanCodec:
    """A Wan VAE: 8 x 8 pixels and 4 frames (1 for the first) to one latent of 16 channels.

    The VAE is causal in time and keeps a cache along it, so each view is encoded alone.
    """

    def __init__(self, vae: Any) -> None:
        """vae: a diffusers AutoencoderKLWan."""
        self.vae = vae
        self.channels = vae.config.z_dim
        self.spatial = vae.config.scale_factor_spatial or 8
        self.temporal = vae.config.scale_factor_temporal or 4
        shape = (1, self.channels, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        self._std = torch.tensor(vae.config.latents_std).view(shape)

    def encode(self, frames: Tensor) -> Tensor:
        """Raises GeneratorError unless the number of frames is 1 + 4k and sizes divide by 8."""
        times, height, width = frames.shape[1], frames.shape[-2], frames.shape[-1]
        if (times - 1) % self.temporal:
            below = 1 + (times - 1) // self.temporal * self.temporal
            raise GeneratorError(
                f"{times} frames per view do not fit the video codec, which takes 1 + "
                f"{self.temporal}k frames: use {below} or {below + self.temporal}"
            )
        if height % self.spatial or width % self.spatial:
            raise GeneratorError(
                f"frames of {width} x {height} px do not fit the video codec: "
                f"width and height must be multiples of {self.spatial}"
            )
        return torch.cat([self._encode_view(view) for view in frames])

    def _encode_view(self, view: Tensor) -> Tensor:
        video = (view * 2 - 1).transpose(0, 1)[None].to(self.vae.device, self.vae.dtype)
        with torch.no_grad():
            latents = self.vae.encode(video).latent_dist.mode().float()
        latents = (latents - self._mean.to(latents)) / self._std.to(latents)
        return latents.transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        views = []
        for view in latents:
            z = view.transpose(0, 1)[None].to(self.vae.device)
            z = z * self._std.to(z) + self._mean.to(z)
            with torch.no_grad():
                video = self.vae.decode(z.to(self.vae.dtype)).sample.float()
            views.append(video[0].transpose(0, 1).add(1).mul(0.5).clamp(0, 1))
        return torch.stack(views)

    def encode_known(self, frames: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (zero where unknown) and their mask (V, T').

        A latent is exact when its frames and all before it are known, since the VAE is causal.
        Raises GeneratorError when a known frame would be lost.
        """
        views, times = known.shape
        latent_times = 1 + (times - 1) // self.temporal
        mask = torch.zeros(views, latent_times, dtype=torch.bool)
        latents = torch.zeros(
            views, latent_times, self.channels, *(n // self.spatial for n in frames.shape[-2:])
        )
        for v in range(views):
            run = int(known[v].long().cumprod(0).sum())  # known frames from the start on
            if known[v, run:].any():
                lost = int((known[v] & (torch.arange(times) >= run)).nonzero()[0])
                raise GeneratorError(
                    f"the frame of view {v} at time {lost} has no latent of its own, as the video "
                    "codec is causal in time: put freeze-time frames at time 0"
                )
            if run == 0:
                continue
            if (run - 1) % self.temporal:
                raise GeneratorError(
                    f"view {v} has {run} known frames, the video codec takes 1 + {self.temporal}k"
                )
            count = 1 + (run - 1) // self.temporal
            latents[v, :count] = self.encode(frames[v : v + 1, :run])[0].cpu()
            mask[v, :count] = True
        return latents.to(frames.device), mask.to(frames.device)

    def shrink(self, maps: Tensor) -> Tensor:
        """Maps (V, T, M, H, W) in [0, 1] -> (V, T', M, h, w): the least value of each latent."""
        first, rest = maps[:, :1], maps[:, 1:]
        if rest.shape[1]:
            rest = rest.unflatten(1, (-1, self.temporal)).amin(dim=2)
        least = torch.cat((first, rest), dim=1)
        return -F.max_pool2d(-least.flatten(0, 1), self.spatial).unflatten(0, least.shape[:2])
