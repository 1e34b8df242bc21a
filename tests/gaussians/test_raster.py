# SPDX-License-Identifier: Apache-2.0
"""The CPU rasteriser against a float64 formula written independently, with two projections."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import viewtime.gaussians
from viewtime.gaussians import gather_colour, project_gaussians, render, weigh
from viewtime.gaussians.ops import empty
from viewtime_formats.gaussians import SH_C0, Gaussians, rgb_to_sh0
from viewtime_formats.rig import Camera

SIZE = (37, 29)
BACKGROUND = np.array([0.2, 0.5, 0.9])


def camera() -> Camera:
    """A turned, shifted camera with unequal focal lengths and an off-centre principal point."""
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    intrinsics = np.array([[41.0, 0, 17.3], [0, 38.0, 15.9], [0, 0, 1]])
    pose = np.concatenate([turn, [[0.3], [-0.2], [4.0]]], axis=1)
    return Camera("test", *SIZE, intrinsics, pose)


def random_gaussians(count: int, degree: int, seed: int = 0) -> Gaussians:
    rng = np.random.default_rng(seed)
    rotations = rng.normal(size=(count, 4))
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    arrays = (
        rng.normal(size=(count, 3)) * (1.2, 1.2, 1.5),
        np.exp(rng.uniform(-4.5, -1.2, (count, 3))),
        rotations,
        rng.uniform(0.05, 1, count),
        rng.normal(size=(count, (degree + 1) ** 2, 3)) * 0.4,
    )
    return Gaussians(*(array.astype(np.float32) for array in arrays))


def harmonics(degree: int, direction: torch.Tensor) -> torch.Tensor:
    """Real spherical harmonics (N, K) from Legendre recurrences, Condon-Shortley phase kept."""
    x, y, z = direction.unbind(-1)
    phi = torch.atan2(y, x)
    sine = torch.sqrt(torch.clamp(1 - z * z, min=0))
    legendre: dict[tuple[int, int], torch.Tensor] = {}
    for m in range(degree + 1):
        odd = math.prod(range(1, 2 * m, 2))
        legendre[m, m] = (-1) ** m * odd * sine**m
        legendre[m + 1, m] = z * (2 * m + 1) * legendre[m, m]
        for n in range(m + 2, degree + 1):
            legendre[n, m] = (
                z * (2 * n - 1) * legendre[n - 1, m] - (n + m - 1) * legendre[n - 2, m]
            ) / (n - m)
    columns = []
    for n in range(degree + 1):
        for m in range(-n, n + 1):
            k = abs(m)
            norm = math.sqrt(
                (2 * n + 1) / (4 * math.pi) * math.factorial(n - k) / math.factorial(n + k)
            )
            wave = (
                torch.ones_like(phi)
                if m == 0
                else math.sqrt(2) * (torch.cos(k * phi) if m > 0 else torch.sin(k * phi))
            )
            columns.append(norm * wave * legendre[n, k])
    return torch.stack(columns, -1)


def covariances(gaussians: Gaussians) -> torch.Tensor:
    """(N, 3, 3): R diag(s^2) R^T, the rotation through the quaternion's action on the axes."""
    q = torch.from_numpy(gaussians.rotations).double()
    w, vector = q[:, :1], q[:, 1:]
    axes = []
    for k in range(3):
        axis = torch.eye(3, dtype=torch.float64)[k].expand_as(vector)
        cross = torch.linalg.cross(vector, axis)
        axes.append(axis + 2 * w * cross + 2 * torch.linalg.cross(vector, cross))
    rotation = torch.stack(axes, -1)
    scale = torch.from_numpy(gaussians.scales).double()
    return rotation @ torch.diag_embed(scale**2) @ rotation.mT


def own_projection(gaussians, view, dilation):
    """Centres (N, 2), inverse screen covariances (N, 2, 2) and depths (N,), by autograd."""
    pose = torch.tensor(view.camera_from_world)
    points = torch.from_numpy(gaussians.means).double() @ pose[:, :3].T + pose[:, 3]
    k = torch.tensor(view.intrinsics)

    def pinhole(p):
        return (k @ p)[:2] / p[2]

    # The slope of the projection is taken at most 30 % outside the picture, as in 3DGS.
    size = torch.tensor([view.width, view.height])
    focal, middle = torch.stack([k[0, 0], k[1, 1]]), k[:2, 2]
    margin = 0.15 * size / focal
    tangent = points[:, :2] / points[:, 2:]
    tangent = torch.maximum(tangent, -middle / focal - margin)
    tangent = torch.minimum(tangent, (size - middle) / focal + margin)
    held = torch.cat([tangent * points[:, 2:], points[:, 2:]], 1)
    slopes = torch.stack([torch.autograd.functional.jacobian(pinhole, p) for p in held])
    linear = slopes @ pose[:, :3]
    screen = linear @ covariances(gaussians) @ linear.mT + dilation * torch.eye(2)
    return torch.stack([pinhole(p) for p in points]), torch.linalg.inv(screen), points[:, 2]


def gsplat_projection(gaussians, view, dilation):
    try:
        from gsplat.cuda._torch_impl import _fully_fused_projection
    except Exception as error:  # its JIT build fails in many ways where there is no CUDA
        pytest.fail(f"gsplat's torch code does not import: {error}")
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.tensor(view.camera_from_world)
    _, centres, depths, conics, _ = _fully_fused_projection(
        torch.from_numpy(gaussians.means).double(),
        covariances(gaussians),
        pose[None],
        torch.tensor(view.intrinsics)[None],
        view.width,
        view.height,
        eps2d=dilation,
    )
    a, b, c = conics[0].unbind(-1)
    return (
        centres[0],
        torch.stack([torch.stack([a, b], -1), torch.stack([b, c], -1)], -2),
        depths[0],
    )


def oracle(gaussians: Gaussians, view: Camera, projection, dilation: float):
    """Colour (H, W, 3), alpha (H, W), weighted depth (H, W): all splats at all pixels."""
    centres, conics, depths = projection(gaussians, view, dilation)
    direction = torch.from_numpy(gaussians.means).double() - torch.tensor(view.center)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    basis = harmonics(gaussians.sh_degree, direction)
    colours = torch.einsum("nk,nkc->nc", basis, torch.from_numpy(gaussians.sh).double()) + 0.5
    colours = colours.clamp(min=0)
    y, x = torch.meshgrid(
        torch.arange(view.height) + 0.5, torch.arange(view.width) + 0.5, indexing="ij"
    )
    pixels = torch.stack([x, y], -1).double()
    through = torch.ones(view.height, view.width, dtype=torch.float64)
    colour, depth = torch.zeros(view.height, view.width, 3).double(), torch.zeros_like(through)
    for i in torch.argsort(depths).tolist():
        if depths[i] <= 1e-3:
            continue
        offset = pixels - centres[i]
        power = 0.5 * torch.einsum("hwi,ij,hwj->hw", offset, conics[i], offset)
        alpha = (float(gaussians.opacities[i]) * torch.exp(-power)).clamp(max=0.999)
        alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
        weight = through * alpha
        colour += weight[..., None] * colours[i]
        depth += weight * depths[i]
        through = through - weight
    return colour.numpy(), (1 - through).numpy(), depth.numpy()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("dilation", [0.01, 0.3])
def test_a_picture_matches_the_float64_formula(degree, dilation):
    gaussians, view = random_gaussians(60, degree, seed=degree), camera()
    shown = render(gaussians, view, background=BACKGROUND, dilation=dilation)
    colour, alpha, depth = oracle(gaussians, view, own_projection, dilation)
    np.testing.assert_allclose(shown.alpha, alpha, atol=3e-4)
    np.testing.assert_allclose(shown.color, colour + (1 - alpha)[..., None] * BACKGROUND, atol=1e-3)
    seen = alpha > 1 / 255
    assert 0.5 < seen.mean() < 1
    np.testing.assert_allclose(shown.depth[seen] * shown.alpha[seen], depth[seen], atol=3e-3)
    assert np.isinf(shown.depth[alpha == 0]).all()


def test_the_projection_agrees_with_gsplat():
    gaussians, view = random_gaussians(40, 0, seed=9), camera()
    pose = torch.tensor(view.camera_from_world)
    z = torch.from_numpy(gaussians.means).double() @ pose[2, :3] + pose[2, 3]
    assert (z > 0.02).all()  # gsplat's near plane differs from ours
    colour, alpha, _ = oracle(gaussians, view, gsplat_projection, 0.3)
    shown = render(gaussians, view, dilation=0.3)
    np.testing.assert_allclose(shown.alpha, alpha, atol=3e-4)
    np.testing.assert_allclose(shown.color, colour, atol=1e-3)


def test_gaussians_behind_and_beside_the_camera_leave_the_background():
    view = camera()
    rays = np.array([[0, 0, -1.0], [0, 0, 1e-4], [30, 0, 1], [0, -30, 1]])
    means = (rays - view.translation) @ view.rotation
    gaussians = random_gaussians(4, 0)
    gaussians = Gaussians(
        means.astype(np.float32),
        np.full((4, 3), 0.01, np.float32),
        gaussians.rotations,
        gaussians.opacities,
        gaussians.sh,
    )
    shown = render(gaussians, view, background=BACKGROUND)
    np.testing.assert_array_equal(shown.alpha, 0)
    np.testing.assert_allclose(shown.color, np.broadcast_to(BACKGROUND, shown.color.shape))


def test_no_gaussians_give_the_background():
    shown = render(empty(), camera(), background=BACKGROUND)
    np.testing.assert_allclose(shown.color, np.broadcast_to(BACKGROUND, shown.color.shape))
    assert np.isinf(shown.depth).all()


def test_a_gaussian_cut_by_the_border_is_drawn_up_to_it():
    view = Camera("plain", 16, 8, np.diag([20.0, 20.0, 1.0]), np.eye(4)[:3])
    one = Gaussians(
        np.array([[0.0, 0.2, 1.0]], np.float32),  # on the left border, half way down
        np.full((1, 3), 0.1, np.float32),
        np.array([[1, 0, 0, 0]], np.float32),
        np.array([0.9], np.float32),
        rgb_to_sh0(np.array([[[1.0, 0.5, 0.0]]])),
    )
    shown = render(one, view)
    squares = (np.arange(16) + 0.5) ** 2
    expected = 0.9 * np.exp(-0.5 * (squares[:6] + 0.25) / (4 + 0.01))
    np.testing.assert_allclose(shown.alpha[3, :6], expected, rtol=0.02)
    np.testing.assert_allclose(shown.alpha[3], shown.alpha[4], rtol=1e-5)
    assert one.sh[0, 0, 0] * SH_C0 == pytest.approx(0.5)


def test_one_thread_and_many_give_the_same_picture(monkeypatch):
    gaussians, view = random_gaussians(300, 1), camera()
    monkeypatch.setenv("VIEWTIME_THREADS", "1")
    alone = render(gaussians, view)
    monkeypatch.setenv("VIEWTIME_THREADS", "3")
    together = render(gaussians, view)
    np.testing.assert_array_equal(alone.color, together.color)


def test_colours_of_a_degree_that_nobody_defined_are_refused():
    gaussians = random_gaussians(2, 0)
    gaussians.sh = np.zeros((2, 7, 3), np.float32)
    with pytest.raises(ValueError, match="7 coefficients"):
        render(gaussians, camera())


def test_gathering_is_the_adjoint_of_rendering_in_the_colours(monkeypatch):
    splats, view = random_gaussians(400, 0), camera()
    picture = np.random.default_rng(3).normal(size=(view.height, view.width, 3))
    black = Gaussians(
        splats.means, splats.scales, splats.rotations, splats.opacities,
        rgb_to_sh0(np.zeros((400, 3), np.float32))[:, None],
    )  # fmt: skip
    shown = render(splats, view).color.astype(np.float64) - render(black, view).color
    sums, weights = gather_colour(splats, view, picture)
    colours = splats.sh[:, 0].astype(np.float64) * SH_C0 + 0.5
    assert (colours * sums).sum() == pytest.approx((shown * picture).sum(), rel=1e-4)
    # The weights are what a picture of ones gathers, and add up to the alpha of the picture.
    ones = gather_colour(splats, view, np.ones_like(picture))[0]
    np.testing.assert_allclose(ones[:, 0], weights, rtol=1e-5, atol=1e-7)
    assert weights.sum() == pytest.approx(render(splats, view).alpha.sum(), rel=1e-4)
    monkeypatch.setenv("VIEWTIME_THREADS", "1")
    np.testing.assert_array_equal(gather_colour(splats, view, picture)[0], sums)
    with pytest.raises(ValueError, match="picture"):
        gather_colour(splats, view, picture[1:])


def test_weights_draw_the_same_picture_in_any_colours():
    splats, view = random_gaussians(300, 0), camera()
    projected = project_gaussians(splats, view)
    kept, colours = weigh(projected), np.random.default_rng(1).random((300, 3), np.float32)
    shown = projected.render(BACKGROUND, colours)
    behind = kept.through[..., None] * BACKGROUND
    np.testing.assert_allclose(kept.show(colours) + behind, shown.color, atol=1e-5)
    np.testing.assert_allclose(1 - kept.through, shown.alpha, atol=1e-6)
    own = render(splats, view, background=BACKGROUND)
    np.testing.assert_array_equal(projected.render(BACKGROUND).color, own.color)
    with pytest.raises(ValueError, match="colours"):
        projected.render(BACKGROUND, colours[:5])


@pytest.mark.parametrize(
    "name, value, message",
    [("means", np.nan, r"means\[3\]"), ("scales", -1, r"scales\[3\]"), ("rotations", 0, "wxyz")],
)
def test_gaussians_that_cannot_be_drawn_are_named(name, value, message):
    splats = random_gaussians(5, 1)
    getattr(splats, name)[3] = value
    with pytest.raises(ValueError, match=message):
        render(splats, camera())
    splats = random_gaussians(5, 1)
    splats.opacities = splats.opacities[:4]
    with pytest.raises(ValueError, match=r"opacities has shape \(4,\); \(5,\)"):
        render(splats, camera())


def test_compiled_code_is_kept_where_the_package_cannot_be_written(tmp_path):
    """A read-only installation: numba must then cache elsewhere, or users wait each time."""
    source = Path(viewtime.gaussians.__file__).parents[1]
    package = tmp_path / "site"
    (package / "viewtime").mkdir(parents=True)
    (package / "viewtime/__init__.py").write_bytes((source / "__init__.py").read_bytes())
    shutil.copytree(
        source / "gaussians", package / "viewtime/gaussians", ignore=lambda *_: ["__pycache__"]
    )
    shutil.copytree(
        source.parent / "viewtime_formats",
        package / "viewtime_formats",
        ignore=lambda *_: ["__pycache__"],
    )
    # A file in the cache's place refuses even root, as a read-only folder refuses others.
    (package / "viewtime/gaussians/__pycache__").write_bytes(b"")
    code = (
        "from viewtime.gaussians.harmonics import values, _values; values([[0, 0, 1.0]], 1); "
        "print(len(_values.stats.cache_hits), _values.stats.cache_path)"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package), "HOME": str(tmp_path)}
    command = [sys.executable, "-B", "-c", code]
    for hits in ("0", "1"):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found, place = done.stdout.split()
        assert found == hits and not place.startswith(str(package))
