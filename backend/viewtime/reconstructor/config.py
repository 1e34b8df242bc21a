# SPDX-License-Identifier: Apache-2.0
"""The hyper-parameters of a reconstructor; the defaults are those of VGGT-1B, nothing added.

Numbers only: it builds no layers and reads no files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from viewtime.models import ModelError

TEMPORAL = ("none", "pair", "layer")
"""Where temporal attention goes: nowhere, after each frame and global pair, after each layer."""
PATCH_EMBEDS = ("dinov2", "conv")
GAUSSIAN_HEADS = {"none": 0, "residual": 14, "anysplat": 84}
"""Gaussian heads and their channels."""


@dataclass(frozen=True)
class ReconstructorConfig:
    """Sizes and switches of the model.

    The first group is upstream VGGT (facts of `VGGT-1B`: 1797 tensors, 1,256,537,516 parameters);
    the second is what Viewtime adds to it, all of it off.
    """

    patch: int = 14  # pixels
    size: int = 518  # longer side of the frames it was trained on, pixels
    dim: int = 1024
    depth: int = 24  # frame and global blocks each
    heads: int = 16
    mlp_ratio: float = 4.0
    registers: int = 4
    layer_scale: float = 0.01
    rope_base: float = 100.0
    patch_embed: str = "dinov2"
    dino_depth: int = 24
    dino_heads: int = 16
    camera_depth: int = 4
    camera_heads: int = 16
    camera_mlp_ratio: float = 4.0
    head_layers: tuple[int, ...] = (4, 11, 17, 23)
    head_channels: tuple[int, ...] = (256, 512, 1024, 1024)
    head_features: int = 256
    head_hidden: int = 32
    point_head: bool = True
    track_head: bool = True
    track_features: int = 128
    track_hidden: int = 384
    track_depth: int = 6

    temporal: str = "none"  # one of TEMPORAL; paper, section 3.2: "layer"
    temporal_mlp_ratio: float = 4.0
    replace_cameras: bool = True  # camera tokens of timestep 0 stand in at every timestep
    gaussian_head: str = "none"  # one of GAUSSIAN_HEADS; paper, appendix C: "residual"
    gaussian_log_scale: float = -7.0  # log of the first standard deviation, as in Splatt3R
    gaussian_opacity: float = -2.0  # logit of the first opacity, as in Splatt3R
    voxel_size: float = 0.0  # of the merge of splats, in the model's unit; 0: none
    uv_tokens: bool = False  # fixed sines of the place on each token, for patch_embed "conv"
    rays: bool = False  # known cameras may be given as rays
    surface: bool = False  # surface logit and picture skip of the depth head
    analytic: bool = False  # splats are analytic unless the head's are asked for

    def __post_init__(self) -> None:
        for name, allowed in (
            ("temporal", TEMPORAL),
            ("patch_embed", PATCH_EMBEDS),
            ("gaussian_head", tuple(GAUSSIAN_HEADS)),
        ):
            if getattr(self, name) not in allowed:
                raise _error(name, getattr(self, name), f"one of {', '.join(allowed)}")
        for name in ("head_layers", "head_channels"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != 4:
                raise _error(name, value, "four numbers")
        if not all(0 <= layer < self.depth for layer in self.head_layers):
            raise _error("head_layers", self.head_layers, f"layers 0 to {self.depth - 1}")
        for width, heads, multiple in (
            ("dim", "heads", 4),
            ("dim", "dino_heads", 1),
            ("dim", "camera_heads", 1),
        ):
            if getattr(self, width) % (multiple * getattr(self, heads)):
                many = f"{multiple} x " if multiple > 1 else ""
                raise _error(width, getattr(self, width), f"a multiple of {many}{heads}")

    @property
    def first_patch(self) -> int:
        """Index of the first patch token among the tokens of a frame."""
        return 1 + self.registers

    @property
    def gaussian_channels(self) -> int:
        """Raw channels of the Gaussian head; 0 without one."""
        return GAUSSIAN_HEADS[self.gaussian_head]

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Layers whose tokens the heads read, ascending; the camera head reads the last."""
        return tuple(sorted({*self.head_layers, self.depth - 1}))

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ReconstructorConfig:
        """Raises ModelError when a field is unknown or its value cannot be."""
        names = {field.name for field in dataclasses.fields(ReconstructorConfig)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise ModelError(f"reconstructor config: unknown field {unknown[0]!r}")
        try:
            return ReconstructorConfig(**values)
        except TypeError as error:
            raise ModelError(f"reconstructor config: {error}") from error

    @staticmethod
    def small(**changes: Any) -> ReconstructorConfig:
        """The sizes of a small reconstructor, with changes."""
        return ReconstructorConfig.from_dict({**SMALL, **changes})


SMALL: dict[str, Any] = {
    "patch": 8,
    "size": 96,
    "dim": 128,
    "depth": 4,
    "heads": 4,
    "layer_scale": 0.3,
    "patch_embed": "conv",
    "dino_depth": 0,
    "dino_heads": 1,
    "camera_depth": 1,
    "camera_heads": 4,
    "camera_mlp_ratio": 1.0,
    "head_layers": (0, 1, 2, 3),
    "head_channels": (32, 48, 64, 64),
    "head_features": 32,
    "head_hidden": 16,
    "point_head": False,
    "track_head": False,
    "temporal": "pair",
    "temporal_mlp_ratio": 1.0,
    "uv_tokens": True,
    "rays": True,
    "surface": True,
}


def _error(name: str, value: object, right: str) -> ModelError:
    return ModelError(f"reconstructor config: {name} is {value!r}; {right} is needed")
