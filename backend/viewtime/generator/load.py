# SPDX-License-Identifier: Apache-2.0
"""Generators from and to folders in diffusers' layout: safetensors only, never a pickle.

A folder has transformer/ (WanTransformer3DModel), optionally vae/ (AutoencoderKLWan; without it
latents are pixels), text_encoder/ and tokenizer/ (UMT5), and optionally what is ours: config.json,
prior_embedding, exact_embedding and added (all .safetensors). Nothing is ever downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from viewtime.generator.codec import Codec, PixelCodec, WanCodec
from viewtime.generator.errors import GeneratorError
from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer
from viewtime.models.local import generator_folder
from viewtime.models.open_weights import GENERATORS, find
from viewtime_formats.atomic import write_json

FORMAT = "viewtime.generator"
BASIC_MAPS = 3
"""Maps that every model with a prior takes; one that takes more is given the evidence, too."""
VERSION = 1
STOCK = GeneratorConfig(references="kept")
"""What a checkpoint without settings of ours is: fused, with references that are kept, not added,
since it never learnt what such a sum of embeddings means."""


@dataclass(frozen=True)
class Generator:
    """A model with the codec and the text encoder it was made for.

    folder: where it was read from. frame_multiple: what H and W must be multiples of.
    offload, runs_on: how its weights are kept off the device, and which that is (see `speed`).
    """

    name: str
    model: ViewTimeTransformer
    codec: Codec
    folder: Path | None = None
    offload: str = "none"
    runs_on: torch.device | None = None

    @property
    def takes_text(self) -> bool:
        return self.folder is not None and (self.folder / "text_encoder").is_dir()

    def encode_text(self, prompts: list[str]) -> Tensor:
        """(B, L, text_dim). The text encoder is loaded for this and dropped at once.

        Without a text encoder (the bundled model has none) every prompt is the empty one.
        """
        from viewtime.generator.text import encode_prompts

        config = self.model.transformer.config
        if self.takes_text:
            assert self.folder is not None
            return encode_prompts(self.folder, prompts, self.device)
        return torch.zeros(
            len(prompts), self.model.config.text_tokens, config.text_dim, device=self.device
        )

    @property
    def takes_prior(self) -> bool:
        return self.model.prior_embedding is not None

    @property
    def takes_evidence(self) -> bool:
        """Whether a prior must come with what it was chosen from."""
        return self.takes_prior and self.model.config.prior_maps > BASIC_MAPS

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device if self.runs_on is None else self.runs_on

    @property
    def frame_multiple(self) -> tuple[int, int]:
        _, rows, columns = self.model.patch_size
        return self.codec.spatial * rows, self.codec.spatial * columns


def load_generator(
    name_or_path: str | Path = "bundled",
    *,
    device: str | torch.device = "cpu",
    config: GeneratorConfig | None = None,
    references: str | None = None,
    vae_budget: int | None = None,
    vae_tiling: bool = False,
    weights_on: str | torch.device | None = None,
) -> Generator:
    """Load a generator. "bundled" is the small one that comes with Viewtime; else a folder, or a
    name that `viewtime models` lists or a hub id, which must have been downloaded.

    config: what to make of a checkpoint; None takes the folder's own, or STOCK if it has none.
    references: how references enter, one of `model.REFERENCES`, in place of what the config says.
    vae_budget, vae_tiling: see `WanCodec`. weights_on: where the transformer's weights wait that
    will be brought to the device in parts (see `speed.offload`); None is the device itself.

    Weights become float32 on the CPU, bfloat16 elsewhere (but for what Wan keeps in float32).
    Raises GeneratorError when the folder is not a generator or holds unsafe or unfit weights,
    ModelError when there is none of this name.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    folder = generator_folder(name_or_path)
    _refuse_two_experts(folder)
    device = torch.device(device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    _require_weights(folder / "transformer")
    _require_whole_links(folder)
    if config is None:
        own = folder / "config.json"
        config = read_config(own) if own.is_file() else STOCK
    if references is not None:
        config = replace(config, references=references)
    options: dict[str, Any] = dict(use_safetensors=True, local_files_only=True, torch_dtype=dtype)
    try:
        transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", **options)
        vae = None
        if (folder / "vae").is_dir():
            _require_weights(folder / "vae")
            options["torch_dtype"] = torch.float32  # the VAE loses detail in bfloat16
            vae = AutoencoderKLWan.from_pretrained(folder / "vae", **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise GeneratorError(f"{folder}: {str(error).splitlines()[0]}") from error
    codec: Codec = PixelCodec()
    if vae is not None:
        codec = WanCodec(vae.to(device).eval(), budget=vae_budget, tiling=vae_tiling)
    wanted = transformer.config.in_channels
    if wanted != codec.channels or transformer.config.out_channels != codec.channels:
        raise GeneratorError(
            f"{folder}: the transformer takes {wanted} and gives "
            f"{transformer.config.out_channels} channels, its latents have {codec.channels}"
        )
    model = ViewTimeTransformer(transformer, config)
    if model.prior_embedding is not None:
        _load_prior_embedding(model.prior_embedding, folder / "prior_embedding.safetensors")
    if model.exact_embedding is not None:
        _load_prior_embedding(model.exact_embedding, folder / "exact_embedding.safetensors")
    added = _added_parts(model)
    if added:
        _load_added(model, folder / "added.safetensors")
    model = model.to(device if weights_on is None else weights_on)
    found = find(str(name_or_path))  # a folder in the hub's cache is named by a commit
    name = folder.name if found is None else found.name
    return Generator(name, model.eval(), codec, folder)


def save_generator(
    folder: Path,
    model: ViewTimeTransformer,
    *,
    dtype: torch.dtype = torch.float32,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write transformer/, config.json and what is ours; codecs and text encoders are not written.

    state: the model's whole state where the model itself holds shards; None is the model's own.
    """
    from safetensors.torch import save_file

    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    model.transformer.save_config(folder / "transformer")
    whole = model.state_dict() if state is None else state

    def part(*names: str) -> dict[str, Tensor]:
        """The tensors below one name, under their names there; below several, under full names."""
        cut = f"{names[0]}." if len(names) == 1 else ""
        return {
            key.removeprefix(cut): value.detach().to(dtype).contiguous()
            for key, value in whole.items()
            if key.startswith(tuple(f"{name}." for name in names))
        }

    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(part("transformer"), weights, metadata={"format": "pt"})
    if model.prior_embedding is not None:
        save_file(part("prior_embedding"), folder / "prior_embedding.safetensors")
    if model.exact_embedding is not None:
        save_file(part("exact_embedding"), folder / "exact_embedding.safetensors")
    if added := part("added_layers", "view_embedding"):
        save_file(added, folder / "added.safetensors")
    values = {"format": FORMAT, "version": VERSION, **model.config.to_dict()}
    write_json(folder / "config.json", values)


def read_config(path: Path) -> GeneratorConfig:
    """Our settings; when the file is absent the defaults, which fine-tuning goes by.

    Raises GeneratorError when the file says something else.
    """
    if not path.is_file():
        return GeneratorConfig()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GeneratorError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise GeneratorError(f'{path}: "format" must be "{FORMAT}"')
    if values.pop("version", None) != VERSION:
        raise GeneratorError(f'{path}: "version" must be {VERSION}')
    return GeneratorConfig.from_dict(values)


def _refuse_two_experts(folder: Path) -> None:
    """A checkpoint of two transformers would run with the one for much noise alone, unnoticed."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        index = {}
    index = index if isinstance(index, dict) else {}
    second = index.get("transformer_2") or [None]
    named = isinstance(second, list) and second[-1] is not None
    if named or index.get("boundary_ratio") is not None or (folder / "transformer_2").is_dir():
        works = ", ".join(card.name for card in GENERATORS)
        raise GeneratorError(
            f"{folder}: has two transformers, one for much noise and one for little (transformer_2,"
            f" boundary_ratio); a model with one is needed, such as {works}"
        )


def _require_weights(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise GeneratorError(
            f"{folder}: no config.json (a generator is a folder as diffusers saves)"
        )
    if not any(folder.glob("*.safetensors")):
        raise GeneratorError(f"{folder}: no .safetensors weights (other formats are not read)")


def _require_whole_links(folder: Path) -> None:
    """A part that is a link to nothing would pass for one that was never there."""
    for part in (folder / name for name in ("vae", "text_encoder", "tokenizer")):
        if part.is_symlink() and not part.exists():
            raise GeneratorError(
                f"{part}: is a link to {part.readlink()}, which is not there any more; put that "
                "folder back, or its files here"
            )


def _added_parts(model: ViewTimeTransformer) -> dict[str, torch.nn.Module]:
    """What an architecture or a position embedding adds to the stock weights, by name."""
    parts: dict[str, torch.nn.Module] = {}
    if len(model.added_layers):
        parts["added_layers"] = model.added_layers
    if model.view_embedding is not None:
        parts["view_embedding"] = model.view_embedding
    return parts


def _load_added(model: ViewTimeTransformer, path: Path) -> None:
    """Fill what is added. A stock checkpoint has no such file: what is added then starts fresh."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return
    try:
        state = {k: x.float() for k, x in load_file(path).items()}
        for name, module in _added_parts(model).items():
            prefix = f"{name}."
            module.load_state_dict(
                {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
            )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise GeneratorError(f"{path}: {str(error).splitlines()[0]}") from error


def _load_prior_embedding(module: torch.nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = {k: x.float() for k, x in load_file(path).items()}
        module.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise GeneratorError(f"{path}: {str(error).splitlines()[0]}") from error
