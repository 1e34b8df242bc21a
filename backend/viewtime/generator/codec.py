# SPDX-License-Identifier: Apache-2.0
"""Frames to latents and back: pixels as they are, or a Wan VAE applied to each view alone.

A codec also says which latents are known when only some frames are; it never pads or cuts a clip.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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

    def limit(self, budget: int | None) -> None:
        """Bytes that coding may take, None for no bound."""
        ...

    def calling_before_each_part(self, call: Callable[[], None]) -> AbstractContextManager[None]:
        """Within the context, `call()` runs before each part of the work; it may raise."""
        ...


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

    def limit(self, budget: int | None) -> None:
        """Nothing: there is no work."""

    def calling_before_each_part(self, call: Callable[[], None]) -> AbstractContextManager[None]:
        """Nothing is called: there is no work."""
        return nullcontext()


NUMBERS_PER_PIXEL = 140
"""Memory a Wan VAE needs at most, in float32 numbers per pixel of one frame and per channel of its
widest full-size layer (`base_dim`). From a published 6 to 9 GB for 512 x 320; an estimate."""


STILL_AFTER = 2
"""Of a clip that stands still all latents from this one on are alike, within what the VAE's cache
still remembers."""


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
        big frames in overlapping tiles, with seams it blends; it does so in any case where the
        budget does not hold one view."""
        self.vae = vae
        self.tiling = tiling
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

    def limit(self, budget: int | None) -> None:
        """Bytes that coding may take, None for one view at a time, whatever it takes."""
        self.budget = budget

    def views_at_once(self, height: int, width: int) -> int:
        """How many views the budget allows, at least 1. Sets whether the VAE takes tiles."""
        most = 1 if self.budget is None else self.budget // self.bytes_per_view(height, width)
        if self.tiling or most == 0:
            self.vae.enable_tiling()
        else:
            self.vae.disable_tiling()
        return max(1, most)

    def encode(self, frames: Tensor) -> Tensor:
        """Raises GeneratorError unless the number of frames is 1 + 4k and sizes divide by 8."""
        times, height, width = frames.shape[1], frames.shape[-2], frames.shape[-1]
        self.check_length(times)
        if height % self.spatial or width % self.spatial:
            raise GeneratorError(
                f"frames of {width} x {height} px do not fit the video codec: "
                f"width and height must be multiples of {self.spatial}"
            )
        views = frames.split(self.views_at_once(height, width))
        return torch.cat([self._encode_views(some) for some in views])

    def check_length(self, times: int) -> None:
        """Raises GeneratorError, naming the nearest, unless there are 1 + 4k frames."""
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
        self.check_length(times)
        latent_times = 1 + (times - 1) // self.temporal
        mask = torch.zeros(views, latent_times, dtype=torch.bool)
        exact = torch.zeros_like(mask)
        size = (n // self.spatial for n in frames.shape[-2:])
        latents = torch.zeros(views, latent_times, self.channels, *size)
        # Views whose first so many latents are whole, and frames that stand still in a latent of
        # one kind: what is alike goes through the VAE side by side, as far as the budget allows.
        whole_views: dict[int, list[int]] = defaultdict(list)
        still: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for v, row in enumerate(known.cpu()):
            run = int(row.long().cumprod(0).sum())  # known frames from the start on
            whole = 1 + (run - 1) // self.temporal if run else 0  # latents that they fill
            exact[v, :whole] = True
            if whole:
                whole_views[whole].append(v)
            for j in range(whole, latent_times):
                if (held := self._frame_in(row, j)) is not None:
                    still[min(j, STILL_AFTER)].append((v, j, held))
        for whole, at in whole_views.items():
            used = 1 + (whole - 1) * self.temporal
            latents[at, :whole] = self.encode(frames[at, :used]).cpu()
            mask[at, :whole] = True
        for kind, cells in still.items():
            of_view, of_latent, held_frames = (list(some) for some in zip(*cells))
            latents[of_view, of_latent] = self._standing_still(
                frames[of_view, held_frames], kind
            ).cpu()
            mask[of_view, of_latent] = True
        device = frames.device
        return latents.to(device), mask.to(device), exact.to(device)

    def _frame_in(self, known: Tensor, j: int) -> int | None:
        """The known frame in the middle of those that latent j mixes, None when there is none."""
        first = 0 if j == 0 else 1 + (j - 1) * self.temporal
        held = [t for t in range(first, 1 + j * self.temporal) if known[t]]
        return held[len(held) // 2] if held else None

    def _standing_still(self, frames: Tensor, j: int) -> Tensor:
        """Latents j (n, C, h, w) of clips that each repeat one of the frames (n, 3, H, W)."""
        length = 1 + j * self.temporal
        return self.encode(frames[:, None].expand(-1, length, -1, -1, -1))[:, -1]

    @contextmanager
    def calling_before_each_part(self, call: Callable[[], None]) -> Iterator[None]:
        """Within the context, `call()` runs before the VAE takes each latent's frames of the views
        that go at once; it may raise to break off."""
        parts = (self.vae.encoder, self.vae.decoder)
        hooks = [part.register_forward_pre_hook(lambda *_: call()) for part in parts]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.vae.clear_cache()  # of what was broken off

    def shrink(self, maps: Tensor) -> Tensor:
        """Maps (V, T, M, H, W) in [0, 1] -> (V, T', M, h, w): the least value of each latent."""
        first, rest = maps[:, :1], maps[:, 1:]
        if rest.shape[1]:
            rest = rest.unflatten(1, (-1, self.temporal)).amin(dim=2)
        least = torch.cat((first, rest), dim=1)
        return -F.max_pool2d(-least.flatten(0, 1), self.spatial).unflatten(0, least.shape[:2])
