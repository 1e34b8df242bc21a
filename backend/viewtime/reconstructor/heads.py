# SPDX-License-Identifier: Apache-2.0
"""The camera head of the reconstructor: camera tokens to poses, refined in rounds, as in VGGT.

It looks at tokens alone, never at pictures; dense heads are in `dpt`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viewtime.reconstructor.config import ReconstructorConfig
from viewtime.reconstructor.layers import Block, Mlp


class CameraHead(nn.Module):
    """Camera tokens (N, V, 2C) to pose encodings (N, V, 9), refined over a few rounds.

    Encoding "absT_quaR_FoV": translation, quaternion xyzw, vertical and horizontal field of view
    in radians; camera from view 0, OpenCV axes.
    """

    def __init__(self, config: ReconstructorConfig, *, rounds: int = 4) -> None:
        super().__init__()
        self.rounds = rounds
        dim = 2 * config.dim
        self.trunk = nn.ModuleList(
            Block(
                dim,
                config.camera_heads,
                config.camera_mlp_ratio,
                qk_norm=False,
                layer_scale=config.layer_scale,
            )
            for _ in range(config.camera_depth)
        )
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.pose_branch = Mlp(dim, dim // 2, 9)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """One encoding (N, V, 9) per round; the last is the answer."""
        tokens = self.token_norm(tokens)
        raw: Tensor | None = None
        answers = []
        for _ in range(self.rounds):
            if raw is None:
                embedded = self.embed_pose(self.empty_pose_tokens.expand(*tokens.shape[:2], 9))
            else:
                raw = raw.detach()  # no gradients through earlier rounds
                embedded = self.embed_pose(raw)
            shift, scale, gate = self.poseLN_modulation(embedded).chunk(3, dim=-1)
            x = gate * (self.adaln_norm(tokens) * (1.0 + scale) + shift) + tokens
            for block in self.trunk:
                x = block(x)
            delta = self.pose_branch(self.trunk_norm(x))
            raw = delta if raw is None else raw + delta
            answers.append(torch.cat([raw[..., :7], F.relu(raw[..., 7:])], dim=-1))
        return answers
