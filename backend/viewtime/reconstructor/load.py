# SPDX-License-Identifier: Apache-2.0
"""Reads and writes reconstructors: Viewtime's own folders, VGGT's and AnySplat's checkpoints.

Safetensors only, never pickles. It downloads only what is asked for by a hub id.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from viewtime.models import ModelError, bundled_path, open_weights
from viewtime.reconstructor.aggregator import temporal_blocks
from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.gaussian_head import gaussian_head
from viewtime.reconstructor.model import Reconstructor
from viewtime_formats.atomic import atomic_path, write_json

BUNDLED = "reconstructor-small"
FORMAT = "viewtime.reconstructor"
VERSION = 2
CHANGES = (
    "point_head", "track_head", "temporal", "temporal_mlp_ratio", "replace_cameras",
    "gaussian_head", "gaussian_log_scale", "gaussian_opacity", "voxel_size",
)  # fmt: skip


def load_reconstructor(
    name_or_path: str | Path = "bundled",
    *,
    device: str | torch.device = "cpu",
    config: ReconstructorConfig | None = None,
    local_files_only: bool = False,
    **changes: Any,
) -> Reconstructor:
    """Load a reconstructor as float32, ready to predict.

    Args:
        name_or_path: "bundled"; a folder of Viewtime's own (config.json, model.safetensors); a
            .safetensors file, or a folder of one or of shards with an index, in the layout of
            VGGT-1B or of AnySplat; or a hub id such as "facebook/VGGT-1B".
        config: sizes of a VGGT or AnySplat checkpoint that is not of the usual size.
        local_files_only: never download a hub id, only look in its cache.
        changes: fields of ReconstructorConfig, of those in CHANGES. VGGT's point and track heads
            are dropped by name unless point_head or track_head is True. temporal ("pair",
            "layer") and gaussian_head ("residual") add fresh layers to a checkpoint without.

    Everything else is strict: every tensor is accounted for. Raises ModelError, with what is wrong.
    """
    wrong = sorted(set(changes) - set(CHANGES))
    if wrong:
        raise ModelError(f"load_reconstructor: {wrong[0]!r} cannot be changed; {CHANGES} can")
    source = _source(name_or_path, local_files_only)
    values = _config_values(source)
    index = _tensor_files(source)
    if values.get("format") == FORMAT:
        found = _own_config(source, values)
        names = {name: name for name in index}
        dropped: tuple[str, ...] = ()
    elif any(name.startswith("encoder.aggregator.") for name in index):
        found, names = _anysplat(source, values, index, config)
        dropped = ("distill_aggregator.", "distill_camera_head.", "distill_depth_head.")
    elif any(name.startswith("aggregator.") for name in index):
        found = config or ReconstructorConfig()
        names = {name: name for name in index}
        changes = {"point_head": False, "track_head": False, **changes}
        dropped = ()
    else:
        raise ModelError(f"{source}: neither a Viewtime, nor a VGGT, nor an AnySplat checkpoint")
    base, found = found, dataclasses.replace(found, **changes)
    dropped = (*dropped, *set(_optional_parts(base)) - set(_optional_parts(found)))
    wanted = {ours: theirs for ours, theirs in names.items() if not ours.startswith(dropped)}
    fresh = tuple(set(_optional_parts(found)) - set(_optional_parts(base)))
    for head in ("point_head", "track_head"):
        if f"{head}." in fresh:
            raise ModelError(f"{source}: no {head} in this checkpoint; a fresh one knows nothing")
    return _filled(source, found, wanted, index, fresh).to(device).eval()


def save_reconstructor(
    folder: Path, model: Reconstructor, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write config.json and model.safetensors, each atomically."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict().items()
    state = {name: x.detach().to("cpu", dtype).contiguous() for name, x in tensors}
    with atomic_path(folder / "model.safetensors") as path:
        save_file(state, path, metadata={"format": "pt"})
    values = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(model.config)}
    write_json(folder / "config.json", values)


class _Unfilled(TorchFunctionMode):
    """Leaves new weights as they are: filling weights without data imports torch's compiler."""

    FILLS = frozenset({"normal_", "uniform_", "fill_", "zero_", "constant_", "kaiming_uniform_"})

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.FILLS:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def without_data(config: ReconstructorConfig) -> Reconstructor:
    """A model on the meta device: shapes without numbers, made at once whatever its size."""
    with torch.device("meta"), _Unfilled():
        return Reconstructor(config)


def _source(name_or_path: str | Path, local_files_only: bool) -> Path:
    """The file or folder that a name means; a hub id is looked up, and downloaded if it may be."""
    name = str(name_or_path)
    if name == "bundled":
        return bundled_path(BUNDLED)
    path = Path(name_or_path)
    if path.exists():
        return path
    card = open_weights.find(name)
    repo = card.repo if card else name
    if isinstance(name_or_path, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ModelError(f"{name}: no such file or folder, and no hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(
            snapshot_download(
                repo,
                revision=card.revision if card else None,
                allow_patterns=patterns,
                local_files_only=local_files_only,
            )  # fmt: skip
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{repo}: gated; accept its terms at https://huggingface.co/{repo} and sign in "
            "with `hf auth login`"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(f"{repo}: cannot be had from the hub: {error}") from error


def _config_values(source: Path) -> dict[str, Any]:
    """config.json beside the weights, or nothing."""
    path = (source if source.is_dir() else source.parent) / "config.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: {type(values).__name__}; an object is needed")
    return values


def _tensor_files(source: Path) -> dict[str, Path]:
    """Each tensor's name and the file it is in, from headers alone."""
    from safetensors import SafetensorError, safe_open

    files = [source]
    if source.is_dir():
        index = source / "model.safetensors.index.json"
        if index.is_file():
            files = _shards(index)
        elif (source / "model.safetensors").is_file():
            files = [source / "model.safetensors"]
        else:
            files = sorted(source.glob("*.safetensors"))
        if len(files) != 1 and not index.is_file():
            held = ", ".join(sorted(p.name for p in source.iterdir())[:8]) or "nothing"
            raise ModelError(
                f"{source}: not a reconstructor: one .safetensors file or an index is needed "
                f"(it holds {held}; a .pt must be converted first)"
            )
    found: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                found.update((name, file) for name in tensors.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: not a safetensors file: {error}") from error
    return found


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{index}: no weight_map of shards: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index}: shard {name!r}; a plain file name is needed")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index.parent / name}: this shard is missing")
    return [index.parent / name for name in sorted(names)]


def _own_config(source: Path, values: dict[str, Any]) -> ReconstructorConfig:
    values = {k: v for k, v in values.items() if k != "format"}
    version = values.pop("version", None)
    if version != VERSION:
        raise ModelError(f"{source}/config.json: version {version!r}, {VERSION} is needed")
    return ReconstructorConfig.from_dict(values)


def _anysplat(
    source: Path,
    values: Mapping[str, Any],
    index: Mapping[str, Path],
    config: ReconstructorConfig | None,
) -> tuple[ReconstructorConfig, dict[str, str]]:
    """Config and our name -> its name, of a checkpoint made by AnySplat's own class."""
    encoder = values.get("encoder_cfg") or {}
    kind = encoder.get("pred_head_type", "depth")
    if kind != "depth":
        raise ModelError(f"{source}: AnySplat with {kind!r} geometry; only 'depth' is known")
    base = config or ReconstructorConfig()
    found = dataclasses.replace(
        base,
        point_head=False,
        track_head=False,
        gaussian_head="anysplat",
        voxel_size=float(encoder.get("voxel_size", 0.002))
        if encoder.get("voxelize", True)
        else 0.0,
    )
    names = {}
    for name in index:
        ours = name.removeprefix("encoder.")
        if ours.startswith("gaussian_param_head."):
            ours = "gaussian_head." + ours.removeprefix("gaussian_param_head.")
        names[ours] = name
    return found, names


def _optional_parts(config: ReconstructorConfig) -> list[str]:
    """Prefixes of the parameters that only some models have."""
    parts = [f"{head}." for head in ("point_head", "track_head") if getattr(config, head)]
    if config.temporal == "layer":
        parts.append("aggregator.frame_temporal_blocks.")
    if config.temporal != "none":
        parts.append("aggregator.temporal_blocks.")
    if config.gaussian_head != "none":
        parts.append("gaussian_head.")
    return parts


def _filled(
    source: Path,
    config: ReconstructorConfig,
    names: Mapping[str, str],
    index: Mapping[str, Path],
    fresh: tuple[str, ...],
) -> Reconstructor:
    """A model of config with the tensors of `names`, our name -> the file's; the parts named by
    `fresh` are not in the file and start anew."""
    from safetensors import safe_open

    model = without_data(config)
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    missing = sorted(n for n in set(shapes) - set(names) if not n.startswith(fresh))
    unknown = sorted(set(names) - set(shapes))
    if missing or unknown:
        said = [f"{len(missing)} tensors missing (first: {missing[0]})"] if missing else []
        said += [f"{len(unknown)} unknown (first: {unknown[0]})"] if unknown else []
        raise ModelError(f"{source}: does not fit its config: {'; '.join(said)}")
    state: dict[str, Tensor] = {}
    for file in sorted(set(index.values())):
        with safe_open(file, "pt") as tensors:
            for ours, theirs in names.items():
                if index[theirs] != file:
                    continue
                shape = tuple(tensors.get_slice(theirs).get_shape())
                if shape != shapes[ours]:
                    raise ModelError(f"{file}: {theirs} is {shape}; {shapes[ours]} is needed")
                state[ours] = tensors.get_tensor(theirs).float()
    model.load_state_dict(state, strict=False, assign=True)
    if "aggregator.frame_temporal_blocks." in fresh:
        model.aggregator.frame_temporal_blocks = temporal_blocks(config)
    if "aggregator.temporal_blocks." in fresh:
        model.aggregator.temporal_blocks = temporal_blocks(config)
    if "gaussian_head." in fresh:
        model.gaussian_head = gaussian_head(config)
    return model
