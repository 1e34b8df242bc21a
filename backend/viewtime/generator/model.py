# SPDX-License-Identifier: Apache-2.0
"""The fused view-time transformer of Fig. 3: a stock Wan transformer that sees rows and columns.

It predicts the velocity of a rectified flow; it never samples, encodes, or reads files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from viewtime.generator.architectures import ARCHITECTURES, install
from viewtime.generator.attention import TextProcessor, TokenGrid
from viewtime.generator.conditioning import Conditions, PriorEmbedding, from_video, to_video
from viewtime.generator.errors import GeneratorError
from viewtime.generator.positions import POSITIONS, ViewEmbedding, ViewTimePositions

PREDICTIONS = ("velocity", "sample")
REFERENCES = ("added", "clean", "kept")


@dataclass(frozen=True)
class GeneratorConfig:
    """What a generator is beyond its transformer's own config.

    architecture: how tokens see each other, one of ARCHITECTURES (Fig. 3). positions: how view
      and time enter the rotary table, one of POSITIONS (appendix B).
    references: "added" adds the references' patch embeddings to those of the noised latents
      (section 3.1); "clean" puts exact references themselves in their place and marks their tokens
      as free of noise, for checkpoints that were trained with a timestep per token (TI2V-5B);
      "kept" adds and marks nothing: the sampler alone puts references in their place, as noised as
      all else (`sampler.pin_known`), which is all that a model that was not fine-tuned understands.
    prediction: "velocity" for stock checkpoints; "sample" where the transformer gives the clean
      latents, as a correction of the prior when there is one (at a transformer output of zero the
      model then is its prior), from which the velocity follows.
    prior_features: width of the embedding for the prior, 0 = takes none; prior_maps: number of
      maps that come with it (16 with its evidence); prior_context: width of the coarser scales that
      its correction looks at, 0 = none; prior_exact: a second embedding for priors of exact depth,
      which want a lighter hand than others (it needs the evidence).
    sigma, sigma_invalid: noise on the prior where the flow starts, in latent units. t_max: position
      stride between views, 0 = the grid's times.
    t_floor: smallest flow time the velocity is divided by. clip: bound on predicted clean
      latents outside training, 0 = none (pixels end at 1). text_tokens: number of zero tokens
      that stand for "no prompt" (512 for Wan's checkpoints, 0 where no text was ever seen).
    steps_with_prior: the most steps that do good when there is a prior, 0 = any number. A small
      model's first guess is its best: later steps take its own errors for truth.
    held_by_motion: outside training, a correction of views that are known at some time is held
      back where it is stronger than what the references show moving, see `hold_back`.
    """

    architecture: str = "fused"
    positions: str = "flat"
    references: str = "added"
    prediction: str = "velocity"
    prior_features: int = 0
    prior_maps: int = 3
    prior_context: int = 0
    prior_exact: bool = False
    sigma: float = 0.0
    sigma_invalid: float = 1.0
    t_max: int = 0
    t_floor: float = 0.02
    clip: float = 0.0
    text_tokens: int = 512
    steps_with_prior: int = 0
    held_by_motion: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("architecture", ARCHITECTURES),
            ("positions", POSITIONS),
            ("references", REFERENCES),
            ("prediction", PREDICTIONS),
        ):
            if getattr(self, name) not in allowed:
                raise GeneratorError(
                    f"{name} is {getattr(self, name)!r}, must be one of {', '.join(allowed)}"
                )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeneratorConfig:
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise GeneratorError(f"unknown generator settings: {', '.join(sorted(unknown))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ViewTimeTransformer(nn.Module):
    """Wan transformer with view-time attention, view-time positions and added conditions."""

    def __init__(self, transformer: Any, config: GeneratorConfig) -> None:
        """transformer: a diffusers WanTransformer3DModel; its processors and rope are replaced."""
        super().__init__()
        self.config = config
        self.grid = TokenGrid()
        self.transformer = transformer
        self.patch_size = tuple(transformer.config.patch_size)
        self.channels = transformer.config.in_channels
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim

        def embedding() -> PriorEmbedding:
            return PriorEmbedding(
                self.channels, config.prior_maps, config.prior_features, width, self.patch_size,
                config.prior_context,
            )  # fmt: skip

        self.prior_embedding = embedding() if config.prior_features else None
        exact = config.prior_features and config.prior_exact
        self.exact_embedding = embedding() if exact else None

        self.view_embedding = ViewEmbedding(width) if config.positions == "learned" else None
        transformer.rope = ViewTimePositions(
            transformer.rope, self.grid, config.t_max, config.positions
        )
        self.added_layers = install(
            transformer, config.architecture, self.grid, self.view_embedding
        )
        for block in transformer.blocks:
            block.attn2.set_processor(TextProcessor(block.attn2.processor))
        self._conditions: Conditions | None = None
        self._features: Tensor | None = None
        transformer.patch_embedding.register_forward_hook(self._add_conditions)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        conditions: Conditions,
        *,
        view_index: tuple[int, ...] | None = None,
        time_index: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Velocity d x_t / d t of the flow x_t = (1 - t) x_0 + t x_1.

        x: (B, V, T, C, h, w) latents at flow time t: (B,) in [0, 1]. Returns the shape of x.
        view_index, time_index: see TokenGrid.
        """
        clean_or_velocity = self.predict(
            x, t, conditions, view_index=view_index, time_index=time_index
        )
        if self.config.prediction == "velocity":
            return clean_or_velocity
        t = t.clamp_min(self.config.t_floor).view(-1, 1, 1, 1, 1, 1)
        return (x - clean_or_velocity) / t

    def velocity(self, x: Tensor, t: Tensor, conditions: Conditions, *, cache: str) -> Tensor:
        """`forward` in float32, for a sampler. cache: a name for this kind of call, by which a
        cache that diffusers keeps over the steps (if one is enabled) tells them apart."""
        with self.transformer.cache_context(cache):
            return self(x, t, conditions).float()

    def forget_cache(self) -> None:
        """Drop what a cache over the steps may still hold of an earlier sampling."""
        if self.transformer.is_cache_enabled:
            self.transformer._reset_stateful_cache()

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        conditions: Conditions,
        *,
        view_index: tuple[int, ...] | None = None,
        time_index: tuple[int, ...] | None = None,
    ) -> Tensor:
        """What the transformer gives: velocity or clean latents, as `config.prediction` says."""
        _, views, times, _, height, width = x.shape
        if height % self.patch_size[1] or width % self.patch_size[2]:
            raise GeneratorError(
                f"latents of {height} x {width} cannot be cut into patches of "
                f"{self.patch_size[1]} x {self.patch_size[2]}"
            )
        self.grid.set(views, times, view_index, time_index)
        self._conditions, self._features = conditions, None
        timestep = t * 1000
        if self.config.references == "clean":
            exact = conditions.exactly_known
            x = torch.where(exact[..., None, None, None], conditions.reference.to(x), x)
            timestep = self._timestep_per_token(timestep, exact, height, width)
        # Latents stay float32 through the steps; a big checkpoint's weights are bfloat16.
        dtype = self.transformer.patch_embedding.weight.dtype
        try:
            out = self.transformer(
                hidden_states=to_video(x).to(dtype),
                timestep=timestep,
                encoder_hidden_states=conditions.text.to(dtype),
                return_dict=False,
            )[0]
            if self._features is not None:
                out = self._embedding(conditions).correct(out, self._features, conditions)
        finally:
            self._conditions = self._features = None
        out = from_video(out, views)
        if self.config.prediction == "velocity":
            return out
        clean = out
        if conditions.prior is not None:
            if self.config.held_by_motion and not self.training:
                out = hold_back(out, conditions)
            clean = conditions.prior + out
        return clean.clamp(-self.config.clip, self.config.clip) if self._clips else clean

    def _timestep_per_token(self, timestep: Tensor, exact: Tensor, h: int, w: int) -> Tensor:
        """timestep (B,), and 0 for the tokens of exact cells (B, V, T): (B, N)."""
        per_cell = torch.where(exact, torch.zeros_like(timestep)[:, None, None],
                               timestep[:, None, None])  # (B, V, T)  # fmt: skip
        tokens = (h // self.patch_size[1]) * (w // self.patch_size[2])
        return per_cell.flatten(1).repeat_interleave(tokens, dim=1)

    @property
    def _clips(self) -> bool:
        return self.config.clip > 0 and not self.training

    def _add_conditions(self, embed: Any, inputs: tuple[Tensor], tokens: Tensor) -> Tensor:
        """Add the patch embeddings of references and prior to those of the noised latents."""
        conditions = self._conditions
        if conditions is None:
            return tokens
        added = self._added_cells(conditions)
        if added.any():
            mask = added.flatten(1)[:, None, :, None, None]  # (B, 1, V*T, 1, 1)
            reference = to_video(conditions.reference)
            # Not embed(reference): that would come back to this hook. The weights may be off the
            # device again when they are brought to it layer by layer.
            weight, bias = (x.to(tokens.device) for x in (embed.weight, embed.bias))
            embedded = nn.functional.conv3d(reference.to(weight.dtype), weight, bias, embed.stride)
            tokens = tokens + embedded * mask
        if conditions.prior is not None:
            embedding = self._embedding(conditions)
            self._features = embedding(conditions)
            tokens = tokens + embedding.proj(self._features).to(tokens)
        return tokens

    def _added_cells(self, conditions: Conditions) -> Tensor:
        """(B, V, T) bool: the cells whose reference is added to the noised latents."""
        if self.config.references == "kept":
            return torch.zeros_like(conditions.known)
        if self.config.references == "clean":
            return conditions.known & ~conditions.exactly_known
        return conditions.known

    def _embedding(self, conditions: Conditions) -> PriorEmbedding:
        """What embeds the prior of these conditions; one for exact depth where all of it is."""
        if self.prior_embedding is None:
            raise GeneratorError("this model was not made to take a prior")
        if self.exact_embedding is None or conditions.maps is None:
            return self.prior_embedding
        trust = conditions.maps[:, :, :, -1].flatten(1).amax(dim=1)  # (B,), 1 for exact depth
        return self.exact_embedding if bool((trust == 1).all()) else self.prior_embedding

    @contextmanager
    def calling_before_each_block(self, call: Callable[[], None]) -> Iterator[None]:
        """Within the context, `call()` runs before each block; it may raise to break off."""
        hooks = [
            block.register_forward_pre_hook(lambda *_: call()) for block in self.transformer.blocks
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def hold_back(correction: Tensor, conditions: Conditions) -> Tensor:
    """A correction (B, V, T, C, h, w) of the prior times m^2 / (m^2 + c^2), frame by frame.

    c^2 is the frame's mean square, and m^2 that of the differences between any two times of a view
    that is known at several: what the references show moving. A view that is known at some time
    needs mending only where things move, so a correction much stronger than all motion is mostly
    the model's own error (Wiener's filter, with the motion for the signal). Where no reference
    shows any motion such views stay as they are. Views that are known at no time are left alone.
    """
    known = conditions.known[..., None, None, None]  # (B, V, T, 1, 1, 1)
    frames = torch.where(known, conditions.reference.float(), 0)  # (B, V, T, C, h, w)
    count = known.sum(dim=2, keepdim=True)  # (B, V, 1, 1, 1, 1)
    mean = frames.sum(dim=2, keepdim=True) / count.clamp(min=1)
    away = torch.where(known, frames - mean, 0).square().mean(dim=(3, 4, 5)).sum(dim=2)  # (B, V)
    pairs = (count.flatten(1) - 1).clamp(min=0)  # (B, V), 0 for a view known once
    motion = 2 * away.sum(dim=1) / pairs.sum(dim=1).clamp(min=1)  # (B,), twice the variance
    motion = motion[:, None, None, None, None, None]
    energy = correction.float().square().mean(dim=(3, 4, 5), keepdim=True)  # (B, V, T, 1, 1, 1)
    share = motion / (motion + energy).clamp(min=1e-12)
    return correction * torch.where(count > 0, share, 1.0).to(correction.dtype)


def new_transformer(
    *,
    layers: int,
    heads: int,
    head_dim: int = 64,
    ffn: int,
    channels: int = 3,
    patch_size: tuple[int, int, int] = (1, 8, 8),
    text_dim: int = 16,
) -> Any:
    """A fresh WanTransformer3DModel of the stock class, whose output is zero until trained."""
    from diffusers import WanTransformer3DModel

    transformer: Any = WanTransformer3DModel(
        patch_size=patch_size,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=channels,
        out_channels=channels,
        text_dim=text_dim,
        freq_dim=64,
        ffn_dim=ffn,
        num_layers=layers,
        cross_attn_norm=False,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    for block in transformer.blocks:  # never used without text: small in a compressed bundle
        for parameter in block.attn2.parameters():
            torch.nn.init.zeros_(parameter)
    return transformer
