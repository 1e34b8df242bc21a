# SPDX-License-Identifier: Apache-2.0
"""VGGT's pose encoding "absT_quaR_FoV" and camera matrices, both ways, in torch.

Nine numbers per camera: translation, quaternion xyzw, vertical and horizontal field of view in
radians. Cameras are OpenCV, camera from world. It never fixes a world: that is the caller's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Rotations (...,3,3) of quaternions xyzw (...,4) of any length but zero."""
    x, y, z, w = quaternion.unbind(-1)
    s = 2.0 / (quaternion * quaternion).sum(-1)
    rows = [
        [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
        [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
        [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternions xyzw (...,4), w >= 0, of rotations (...,3,3).

    Of four ways to write 4 q_k q the one with the largest q_k is taken: no angle is special.
    """
    (xx, a, b), (c, yy, d), (e, f, zz) = (row.unbind(-1) for row in rotation.unbind(-2))
    dx, dy, dz = f - d, b - e, c - a
    xy, xz, yz = c + a, e + b, f + d
    rows = [
        [1 + xx - yy - zz, xy, xz, dx],
        [xy, 1 - xx + yy - zz, yz, dy],
        [xz, yz, 1 - xx - yy + zz, dz],
        [dx, dy, dz, 1 + xx + yy + zz],
    ]
    table = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # (...,4,4)
    squares = table.diagonal(dim1=-2, dim2=-1)
    largest = squares.argmax(-1, keepdim=True)  # (...,1)
    row = table.gather(-2, largest[..., None].expand(*largest.shape, 4))[..., 0, :]
    quaternion = row / (2.0 * squares.gather(-1, largest).sqrt())
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def encode_poses(extrinsics: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Encodings (...,9), float32, of cameras (...,3,4) with pixel intrinsics (...,3,3).

    size: (height, width) of the frames. The principal point is not encoded.
    """
    height, width = size
    fields = [
        2 * torch.atan((height / 2) / intrinsics[..., 1, 1]),
        2 * torch.atan((width / 2) / intrinsics[..., 0, 0]),
    ]
    quaternion = matrix_to_quaternion(extrinsics[..., :3, :3])
    parts = [extrinsics[..., :3, 3], quaternion, torch.stack(fields, dim=-1)]
    return torch.cat(parts, dim=-1).float()


def decode_poses(
    encoding: Tensor, size: tuple[int, int], *, tangent_shift: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cameras (...,3,4) and intrinsics (...,3,3) in pixels of encodings (...,9).

    size: (height, width); the principal point is the middle. tangent_shift is added to the
    tangents of half the fields of view (AnySplat: 1e-3).
    """
    height, width = size
    rotation = quaternion_to_matrix(encoding[..., 3:7])
    extrinsics = torch.cat([rotation, encoding[..., :3, None]], dim=-1)
    fy = (height / 2.0) / (torch.tan(encoding[..., 7] / 2.0) + tangent_shift)
    fx = (width / 2.0) / (torch.tan(encoding[..., 8] / 2.0) + tangent_shift)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [[fx, zero, one * (width / 2)], [zero, fy, one * (height / 2)], [zero, zero, one]]
    return extrinsics, torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def unproject(
    depth: Tensor, extrinsics: Tensor, intrinsics: Tensor, *, pixel: float = 0.5
) -> Tensor:
    """World points (...,H,W,3) of planar depth (...,H,W).

    pixel: where in a pixel its ray goes through; 0.5 is its centre, so that a point lands on its
    own pixel when rendered. Upstream VGGT uses 0.
    """
    height, width = depth.shape[-2:]
    y = torch.arange(height, device=depth.device, dtype=depth.dtype)[:, None] + pixel
    x = torch.arange(width, device=depth.device, dtype=depth.dtype)[None, :] + pixel
    fx, fy, cx, cy = (
        intrinsics[..., i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))
    )
    local = torch.stack([(x - cx) * depth / fx, (y - cy) * depth / fy, depth], dim=-1)
    rotation, translation = extrinsics[..., :3, :3], extrinsics[..., :3, 3]
    return (local - translation[..., None, None, :]) @ rotation[..., None, :, :]


def multiply_quaternions(a: Tensor, b: Tensor) -> Tensor:
    """Product a b of quaternions xyzw (...,4): turns by b, then by a."""
    av, aw, bv, bw = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    vector = aw * bv + bw * av + torch.linalg.cross(av, bv)
    return torch.cat([vector, aw * bw - (av * bv).sum(-1, keepdim=True)], dim=-1)
