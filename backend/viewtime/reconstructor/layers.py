# SPDX-License-Identifier: Apache-2.0
"""Transformer parts of the reconstructor: attention with query-key norm and 2D RoPE, blocks.

Parameter names are those of upstream VGGT, so that its weights load key by key.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_SEQUENCES = 32_768
"""Sequences in one attention call: CUDA's grids end at 65,535, and temporal attention has one
sequence per token of a timestep."""
Table = tuple[Tensor, Tensor]
"""Cosines and sines, each (N, head_dim), of N positions."""


class Rope2D:
    """Rotary embedding of a 2D position: half of a head's channels turn with y, half with x.

    Within each half the first quarter of the head pairs with the second (concatenated layout).
    """

    def __init__(self, base: float = 100.0) -> None:
        self.base = base

    def table(self, positions: Tensor, head_dim: int) -> Table:
        """(cos, sin), each (N, head_dim), for positions (N, 2) of (y, x)."""
        half = head_dim // 2
        steps = torch.arange(0, half, 2, device=positions.device).float() / half
        rates = 1.0 / (self.base**steps)
        angles = positions.float()[:, :, None] * rates  # (N, 2, head_dim / 4)
        angles = torch.cat([angles, angles], dim=-1).flatten(1)  # (N, head_dim)
        return angles.cos(), angles.sin()

    @staticmethod
    def apply(x: Tensor, table: Table) -> Tensor:
        """Turn x (..., N, head_dim); each half rotates within itself."""
        y_half, x_half = x.chunk(2, dim=-1)
        turned = []
        for half in (y_half, x_half):
            first, second = half.chunk(2, dim=-1)
            turned += [-second, first]
        return x * table[0].to(x.dtype) + torch.cat(turned, dim=-1) * table[1].to(x.dtype)


def token(*shape: int, std: float) -> nn.Parameter:
    """A learned token that starts as noise."""
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, C)."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, table: Table | None = None) -> Tensor:
        batch, count, dim = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = Rope2D.apply(q, table), Rope2D.apply(k, table)
        parts = zip(*(each.to(v.dtype).split(MAX_SEQUENCES) for each in (q, k, v)))
        done = [F.scaled_dot_product_attention(*part) for part in parts]
        x = done[0] if len(done) == 1 else torch.cat(done)
        return self.proj(x.transpose(1, 2).reshape(batch, count, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(nn.init.constant_(torch.empty(dim), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block. silent=True: its output projections start at zero, so that the
    fresh block is the identity, to the last bit."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        *,
        qk_norm: bool = True,
        layer_scale: float = 0.01,
        eps: float = 1e-5,
        silent: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale)
        if silent:
            for layer in (self.attn.proj, self.mlp.fc2):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, table: Table | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), table))
        return x + self.ls2(self.mlp(self.norm2(x)))


def uv_halves(
    height: int,
    width: int,
    channels: int,
    *,
    aspect: float | None = None,
    omega: float = 100.0,
    device: torch.device | str | None = None,
) -> Table:
    """Sines and cosines of x, (channels/2, 1, width), and of y, (channels/2, height, 1).

    Picture coordinates keep the aspect ratio (width over height) and are normalised by the
    diagonal; angles are computed in double, the result is float32. channels must divide by 4.
    """
    aspect = width / height if aspect is None else aspect
    diagonal = (aspect**2 + 1.0) ** 0.5
    # Outermost pixel centres, as upstream places them.
    left = aspect / diagonal * (width - 1) / width
    top = 1.0 / diagonal * (height - 1) / height
    # Apple's GPUs have no doubles.
    place = "cpu" if device is not None and torch.device(device).type == "mps" else device
    quarter = channels // 4
    rates = 1.0 / omega ** (torch.arange(quarter, dtype=torch.float64, device=place) / quarter)

    def half(end: float, count: int) -> Tensor:
        values = torch.linspace(-end, end, count, device=place)
        angles = rates[:, None] * values.double()[None, :]
        return torch.cat([torch.sin(angles).float(), torch.cos(angles).float()]).to(device)

    return half(left, width)[:, None, :], half(top, height)[:, :, None]


def uv_embedding(
    height: int, width: int, channels: int, *, device: torch.device | str | None = None
) -> Tensor:
    """(channels, height, width): both of uv_halves at every place, those of x first."""
    halves = uv_halves(height, width, channels, device=device)
    return torch.cat([half.expand(-1, height, width) for half in halves])
