# SPDX-License-Identifier: Apache-2.0
"""The reconstructor: a V x T grid of frames to depth, confidence and one camera per view.

VGGT's structure and key names at a free size, made dynamic; it makes no Gaussians by itself.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viewtime.models import ModelError, bundled_path
from viewtime.reconstructor.aggregator import Aggregator
from viewtime.reconstructor.heads import CameraHead, DepthHead
from viewtime_formats.atomic import atomic_path, write_json

BUNDLED = "reconstructor-small"
FORMAT = "viewtime.reconstructor"
VERSION = 1


@dataclass(frozen=True)
class ReconstructorConfig:
    """Sizes of the model; the defaults are those of the bundled small one."""

    patch: int = 8  # pixels
    dim: int = 128
    depth: int = 4  # frame, global and temporal blocks each
    heads: int = 4
    mlp_ratio: float = 4.0
    temporal_mlp_ratio: float = 1.0
    registers: int = 4
    layer_scale: float = 0.3
    uv_tokens: bool = True  # fixed sines of the place on each token (VGGT has DINO's embedding)
    rays: bool = True  # known cameras may be given as rays
    camera_depth: int = 1
    camera_heads: int = 4
    camera_mlp_ratio: float = 1.0
    head_layers: tuple[int, int, int, int] = (0, 1, 2, 3)
    head_channels: tuple[int, int, int, int] = (32, 48, 64, 64)
    head_features: int = 32
    surface: bool = True  # surface logit and picture skip of the depth head
    size: int = 96  # longer side of the frames it was trained on, pixels

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ReconstructorConfig:
        """Raises ModelError when a field is unknown."""
        names = {field.name for field in dataclasses.fields(ReconstructorConfig)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise ModelError(f"reconstructor config: unknown field {unknown[0]!r}")
        fixed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return ReconstructorConfig(**fixed)


@dataclass(frozen=True)
class Prediction:
    """What the model says of each pixel and view.

    depth and confidence (B,T,V,H,W), planar z > 0 and >= 1; surface (B,T,V,H,W) logits of "not
    sky" or None; poses: one (B,T,V,9) encoding per refinement round, the last is the answer.
    """

    depth: Tensor
    confidence: Tensor
    surface: Tensor | None
    poses: list[Tensor]


class Reconstructor(nn.Module):
    """Frames (B,T,V,3,H,W) to a Prediction. View 0 is the reference at every timestep."""

    def __init__(self, config: ReconstructorConfig) -> None:
        super().__init__()
        self.config = c = config
        self.aggregator = Aggregator(
            patch=c.patch,
            dim=c.dim,
            depth=c.depth,
            heads=c.heads,
            mlp_ratio=c.mlp_ratio,
            registers=c.registers,
            layer_scale=c.layer_scale,
            temporal_mlp_ratio=c.temporal_mlp_ratio,
            uv_tokens=c.uv_tokens,
            rays=c.rays,
        )
        self.camera_head = CameraHead(
            2 * c.dim,
            depth=c.camera_depth,
            heads=c.camera_heads,
            mlp_ratio=c.camera_mlp_ratio,
            layer_scale=c.layer_scale,
        )
        self.depth_head = DepthHead(
            2 * c.dim,
            c.patch,
            c.head_channels,
            c.head_features,
            layers=c.head_layers,
            own_parts=c.surface,
        )

    def forward(
        self, frames: Tensor, rays: Tensor | None = None, *, temporal: bool = True
    ) -> Prediction:
        """frames in [0,1]; rays (B,V,6,H,W) of pose.rig_rays, or None where cameras are unknown.

        With rays, depth is in units of the rig; without, in units of the scene's mean distance
        from view 0. temporal=False leaves the temporal blocks out. Cameras do not change over
        time: the camera tokens of timestep 0 stand in for those of every timestep.
        """
        batch, times, views, _, height, width = frames.shape
        layers = self.aggregator(frames, rays, temporal)  # each (B,T,V,P,2C)
        camera_tokens = layers[-1][:, :1, :, 0].expand(-1, times, -1, -1)  # (B,T,V,2C)
        answers = self.camera_head(camera_tokens[:, 0])
        poses = [answer[:, None].expand(-1, times, -1, -1) for answer in answers]
        depth, confidence, surface = self.depth_head(
            [layer.flatten(0, 2) for layer in layers],
            frames.flatten(0, 2),
            self.aggregator.first_patch,
        )
        shape = (batch, times, views, height, width)
        return Prediction(
            depth.view(shape),
            confidence.view(shape),
            None if surface is None else surface.view(shape),
            poses,
        )


def load_reconstructor(
    name_or_path: str | Path = "bundled", *, device: str | torch.device = "cpu"
) -> Reconstructor:
    """Load a reconstructor from a folder with config.json and model.safetensors, as float32.

    "bundled" is the small one that comes with Viewtime. Raises ModelError, with what is wrong.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = bundled_path(BUNDLED) if str(name_or_path) == "bundled" else Path(name_or_path)
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder}: not a reconstructor: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ModelError(f"{folder}/config.json: not of format {FORMAT!r}")
    version = values.pop("version", None)
    if version != VERSION:
        raise ModelError(f"{folder}/config.json: version {version!r}, {VERSION} is needed")
    model = Reconstructor(ReconstructorConfig.from_dict(values))
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        raise ModelError(f"{folder}/model.safetensors: {str(error).splitlines()[-1]}") from error
    return model.to(device).eval()


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
