# SPDX-License-Identifier: Apache-2.0
"""Differentiable pictures against an independent float64 torch formula: values and gradients."""

from __future__ import annotations

import math
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from torch import Tensor

from viewtime.gaussians import CameraTensors, GaussianTensors, render, tensors
from viewtime_formats.gaussians import Gaussians
from viewtime_formats.rig import Camera

WIDTH, HEIGHT = 37, 29  # no multiple of the tiles
NAMES = ("means", "scales", "rotations", "opacities", "colours")


def cameras(count: int = 2) -> CameraTensors:
    """Turned cameras with unequal focal lengths and an off-centre principal point."""
    rng = np.random.default_rng(5)
    made = []
    for c in range(count):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        turn *= np.sign(np.linalg.det(turn))
        lens = np.array([[41.0, 0, 17.3], [0, 38.0, 15.9], [0, 0, 1]])
        pose = np.concatenate([turn, [[0.3], [-0.2], [4.0]]], axis=1)
        made.append(Camera(f"c{c}", WIDTH, HEIGHT, lens, pose))
    return CameraTensors.of(made)


def splats(count: int, degree: int | None, seed: int = 0, opaque: float = 1.0) -> GaussianTensors:
    """Random Gaussians, thin and round, small and large, with quaternions of any length; degree
    None gives plain colours. float32 values, held in float64."""
    rng = np.random.default_rng(seed)
    harmonics = (count, 3) if degree is None else (count, (degree + 1) ** 2, 3)
    arrays = (
        rng.normal(size=(count, 3)) * (1.2, 1.2, 1.5),
        np.exp(rng.uniform(-4.5, -1.0, (count, 3))),
        rng.normal(size=(count, 4)),
        rng.uniform(0.05, opaque, count),
        rng.normal(size=harmonics) * 0.4,
    )
    return leaves(GaussianTensors(*(torch.tensor(a.astype(np.float32)).double() for a in arrays)))


def leaves(g: GaussianTensors, dtype: torch.dtype = torch.float64) -> GaussianTensors:
    fields = (getattr(g, name) for name in NAMES)
    return GaussianTensors(*(f.detach().to(dtype).clone().requires_grad_() for f in fields))


def legendre(degree: int, direction: Tensor) -> Tensor:
    """Real spherical harmonics (N, K): associated Legendre polynomials from their definition by
    derivatives, and cos, sin of m phi as Re, Im of (x + iy)^m; Condon-Shortley phase kept."""
    x, y, z = direction.unbind(-1)
    columns = []
    for n in range(degree + 1):
        rodrigues = np.polynomial.Polynomial([-1, 0, 1]) ** n / (2**n * math.factorial(n))
        for m in range(-n, n + 1):
            k = abs(m)
            slope = rodrigues.deriv(n + k).coef if n + k else rodrigues.coef
            polynomial = sum(float(c) * z**e for e, c in enumerate(slope))
            wave = torch.complex(x, y) ** k
            part = (
                torch.ones_like(z) if m == 0 else math.sqrt(2) * (wave.real if m > 0 else wave.imag)
            )
            norm = (2 * n + 1) / (4 * math.pi) * math.factorial(n - k) / math.factorial(n + k)
            columns.append((-1) ** k * math.sqrt(norm) * polynomial * part)
    return torch.stack(columns, -1)


def formula(
    g: GaussianTensors, view: Tensor, lens: Tensor, background: Tensor, dilation: float, near: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour, alpha, depth of one camera: all splats at all pixels, by autograd, in g's type."""
    turn, shift = view[:3, :3].to(g.means), view[:3, 3].to(g.means)
    lens = lens.to(g.means)
    focal, middle = lens.diagonal()[:2], lens[:2, 2]
    p = g.means @ turn.T + shift
    keep = torch.argsort(p[:, 2].detach(), stable=True)
    keep = keep[p[keep, 2] > near]
    p, z = p[keep], p[keep, 2:]
    centres = focal * p[:, :2] / z + middle
    q = g.rotations[keep] / g.rotations[keep].norm(dim=-1, keepdim=True)
    w, vector = q[:, :1, None], q[:, 1:]
    skew = torch.zeros(len(q), 3, 3).to(q)
    for row, column, axis, sign in ((0, 1, 2, -1), (0, 2, 1, 1), (1, 2, 0, -1)):
        skew[:, row, column], skew[:, column, row] = sign * vector[:, axis], -sign * vector[:, axis]
    rotation = torch.eye(3).to(q) + 2 * w * skew + 2 * skew @ skew
    size = torch.tensor([WIDTH, HEIGHT]).to(q)
    low, high = -middle / focal - 0.15 * size / focal, (size - middle) / focal + 0.15 * size / focal
    tangent = torch.minimum(torch.maximum(p[:, :2] / z, low), high)
    jacobian = torch.cat([torch.diag_embed(focal / z), (-focal * tangent / z)[..., None]], -1)
    root = jacobian @ turn @ rotation @ torch.diag_embed(g.scales[keep])
    conic = torch.linalg.inv(root @ root.mT + dilation * torch.eye(2).to(q))
    if g.colours.ndim == 2:
        shades = g.colours[keep]
    else:
        seen = g.means[keep] + turn.T @ shift
        degree = math.isqrt(g.colours.shape[1]) - 1
        basis = legendre(degree, seen / seen.norm(dim=-1, keepdim=True))
        shades = (torch.einsum("nk,nkc->nc", basis, g.colours[keep]) + 0.5).clamp(min=0)
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    offset = torch.stack([x, y], -1).to(q) - centres[:, None, None]
    power = 0.5 * torch.einsum("nhwi,nij,nhwj->nhw", offset, conic, offset)
    alpha = (g.opacities[keep, None, None] * torch.exp(-power)).clamp(max=0.999)
    alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
    after = torch.cumprod(1 - alpha.detach(), 0)
    # Finished before the first splat that would leave 1e-4 or less, and whatever comes behind it.
    alpha = torch.where(after > 1e-4, alpha, 0.0)
    through = torch.cumprod(torch.cat([torch.ones_like(alpha[:1]), 1 - alpha]), 0)
    weight = through[:-1] * alpha
    colour = torch.einsum("nhw,nc->hwc", weight, shades) + through[-1][..., None] * background
    total = 1 - through[-1]
    depth = (weight * z[:, :, None]).sum(0) / torch.where(total > 0, total, 1.0)
    return colour, total, torch.where(total > 0, depth, torch.inf)


def compare(g: GaussianTensors, dilation: float = 0.3, near: float = 0.01, views: int = 2) -> None:
    """Values and gradients of `render` in float32 lie as near to the float64 formula as the same
    formula in float32 does, up to twice the error and a little."""
    view = cameras(views)
    rng = torch.Generator().manual_seed(1)
    weights = [torch.randn(views, HEIGHT, WIDTH, n, generator=rng).double() for n in (3, 1, 1)]

    def judge(shown, dtype):
        seen = torch.where(shown[2].isfinite(), shown[2], 0.0)
        parts = (shown[0], shown[1][..., None], seen[..., None])
        return sum((part * weight.to(dtype)).sum() for part, weight in zip(parts, weights))

    results = []
    for kind in ("exact", "stock", "ours"):
        dtype = torch.float64 if kind == "exact" else torch.float32
        given = leaves(g, dtype)
        background = torch.tensor([0.2, 0.5, 0.9], dtype=dtype, requires_grad=True)
        if kind == "ours":
            picture = render(given, view, background=background, dilation=dilation, near=near)
            shown = (picture.color, picture.alpha, picture.depth)
        else:
            each = [
                formula(given, pose, lens, background, dilation, near)
                for pose, lens in zip(view.viewmats, view.intrinsics)
            ]
            shown = tuple(torch.stack(part) for part in zip(*each))
        judge(shown, dtype).backward()
        grads = [getattr(given, name).grad for name in NAMES] + [background.grad]
        results.append([*shown, *grads])
    for name, exact, stock, ours in zip(
        ("colour", "alpha", "depth", *NAMES, "background"), *results
    ):
        torch.testing.assert_close(ours.isfinite(), exact.isfinite())
        finite = exact.isfinite()
        exact, stock, ours = (
            torch.where(finite, x.detach().double(), 0.0) for x in (exact, stock, ours)
        )
        allowed = 2 * (stock - exact).abs().max() + 2e-5 * exact.abs().max() + 1e-6
        error = (ours - exact).abs().max()
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"
        assert exact.abs().max() > 0, f"{name} was never asked for"


@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3])
def test_pictures_and_gradients_follow_the_float64_formula(degree):
    compare(splats(60, degree, seed=10 + (degree or 0)))


@pytest.mark.parametrize("dilation", [0.01, 1.0])
def test_dilation_is_what_it_says(dilation):
    compare(splats(40, 0, seed=3), dilation=dilation)


def test_opaque_crowds_end_early_and_alike():
    g = splats(300, 0, seed=4)
    g = GaussianTensors(
        g.means, g.scales * 3, g.rotations, (g.opacities * 3).clamp(max=1), g.colours
    )
    compare(leaves(g), views=1)


def test_thin_tiny_and_huge_splats():
    g = splats(40, 1, seed=6, opaque=0.8)
    scales = g.scales.detach().clone()
    scales[:10, 0] *= 1e-4
    scales[10:20] = 1e-7
    scales[20:24] = 30.0
    scales[24:28, 1] = 20.0
    compare(leaves(GaussianTensors(g.means, scales, g.rotations, g.opacities, g.colours)))


def test_beside_behind_and_at_the_near_plane():
    """Splats far outside the picture reach into it; those behind or too near count for nothing."""
    g, view = splats(40, 0, seed=7, opaque=0.7), cameras(1)
    rays = torch.randn(40, 3, generator=torch.Generator().manual_seed(2)).double()
    rays[:, 2] = torch.linspace(-1, 3, 40)
    rays[:12, :2] *= 3
    rays[35:, :2] *= 4
    turn, shift = view.viewmats[0, :3, :3], view.viewmats[0, :3, 3]
    g = leaves(
        GaussianTensors((rays - shift) @ turn, g.scales * 2, g.rotations, g.opacities, g.colours)
    )
    compare(g, near=0.3, views=1)
    render(g, view, near=0.3).color.sum().backward()
    hidden = rays[:, 2] <= 0.3
    assert 5 < hidden.sum() < 35 and not g.means.grad[hidden].any()


def test_gradients_are_finite_differences():
    g, view = splats(12, 2, seed=8, opaque=0.9), cameras(1)
    # Smooth, because alpha starts at 1/255: with a rough weight the edges' steps would drown it.
    y, x = torch.meshgrid(torch.arange(HEIGHT) / 7, torch.arange(WIDTH) / 9, indexing="ij")
    weight = torch.stack([x.cos(), y.sin(), (x + y).cos()], -1)

    def loss(given: GaussianTensors) -> Tensor:
        return (render(given, view, dilation=0.3).color * weight).double().sum()

    loss(g).backward()
    steps = {"means": 0.02, "scales": 0.01, "rotations": 0.1, "opacities": 0.02, "colours": 0.1}
    for name, step in steps.items():
        field = getattr(g, name)
        uphill = field.grad / field.grad.norm()
        sides = []
        for sign in (1, -1):
            moved = {n: getattr(g, n).detach() for n in NAMES}
            moved[name] = moved[name] + sign * step * uphill
            sides.append(float(loss(GaussianTensors(**moved))))
        slope = (sides[0] - sides[1]) / (2 * step)
        assert float(field.grad.norm()) == pytest.approx(slope, rel=0.06), name


def test_arrays_and_tensors_give_the_same_picture_and_one_camera_no_extra_axis(monkeypatch):
    g, view = splats(50, 3, seed=9), cameras(1)
    unit = g.rotations / g.rotations.norm(dim=-1, keepdim=True)
    arrays = Gaussians(
        *(t.detach().float().numpy() for t in (g.means, g.scales, unit, g.opacities, g.colours))
    )
    camera = Camera("c0", WIDTH, HEIGHT, view.intrinsics[0].numpy(), view.viewmats[0, :3].numpy())
    monkeypatch.setenv("VIEWTIME_THREADS", "1")
    plain = render(arrays, camera, background=(0.1, 0.2, 0.3))
    monkeypatch.setenv("VIEWTIME_THREADS", "3")
    tensors = render(GaussianTensors.of(arrays), camera, background=(0.1, 0.2, 0.3))
    for name in ("color", "alpha", "depth"):
        assert getattr(tensors, name).shape == getattr(plain, name).shape
        np.testing.assert_allclose(getattr(tensors, name), getattr(plain, name), atol=1e-6)
    both = render(arrays, [camera, camera])
    assert both.color.shape == (2, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(both.alpha[0], both.alpha[1])


def test_gradients_do_not_depend_on_the_threads(monkeypatch):
    grads = []
    for threads in ("1", "3"):
        monkeypatch.setenv("VIEWTIME_THREADS", threads)
        g = splats(200, 1, seed=2)
        render(g, cameras(), dilation=0.3).color.square().sum().backward()
        grads.append([getattr(g, name).grad for name in NAMES])
    for one, many in zip(*grads):
        torch.testing.assert_close(one, many, rtol=0, atol=0)


def test_no_gaussians_leave_the_background_and_its_gradient():
    g = leaves(GaussianTensors(*(getattr(splats(1, 0), name)[:0] for name in NAMES)))
    background = torch.tensor([0.2, 0.4, 0.6], requires_grad=True)
    shown = render(g, cameras(), background=background)
    shown.color.sum().backward()
    torch.testing.assert_close(shown.color[1, 3, 4], background.detach())
    torch.testing.assert_close(background.grad, torch.full((3,), 2.0 * WIDTH * HEIGHT))
    assert shown.depth.isinf().all() and not shown.alpha.any()


@pytest.mark.parametrize(
    "name, row, value, message",
    [
        ("means", 3, math.nan, r"means\[3\] is .*nan.*finite"),
        ("scales", 2, -0.1, r"scales\[2\] is .*-0\.1.*linear"),
        ("rotations", 1, 0.0, r"rotations\[1\] is .*wxyz"),
        ("opacities", 4, 3.0, r"opacities\[4\] is \[3\.\].*no logits"),
        ("colours", 0, math.inf, r"colours\[0\] is .*inf.*finite"),
    ],
)
def test_what_cannot_be_drawn_is_named(name, row, value, message):
    fields = {n: getattr(splats(6, 1), n).detach().clone() for n in NAMES}
    fields[name][row] = value
    with pytest.raises(ValueError, match=message):
        render(GaussianTensors(**fields), cameras())


def test_shapes_types_and_cameras_that_do_not_fit_are_refused():
    g, view = splats(6, 0), cameras()
    fields = {n: getattr(g, n).detach() for n in NAMES}
    for change, message in (
        ({"scales": fields["scales"][:4]}, r"scales has shape \(4, 3\); \(6, 3\)"),
        ({"colours": fields["colours"].expand(6, 7, 3)}, "7 coefficients"),
        ({"opacities": torch.ones(6, dtype=torch.int64)}, "opacities is torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            render(GaussianTensors(**(fields | change)), view)
    poses = view.viewmats.clone().requires_grad_()
    with pytest.raises(ValueError, match="detach"):
        render(g, CameraTensors(poses, view.intrinsics, WIDTH, HEIGHT))
    with pytest.raises(ValueError, match="background"):
        render(g, view, background=(0.0, 1.0))
    with pytest.raises(ValueError, match="one size"):
        CameraTensors.of(
            [
                Camera("a", 4, 4, np.eye(3), np.eye(4)[:3]),
                Camera("b", 4, 5, np.eye(3), np.eye(4)[:3]),
            ]
        )
    with pytest.raises(ValueError, match="viewmats"):
        render(g, CameraTensors(view.viewmats[:, :3], view.intrinsics, WIDTH, HEIGHT))


@pytest.mark.parametrize("degree", [None, 0, 2])
def test_gsplat_is_asked_by_its_documented_names(degree, monkeypatch):
    """Its arguments must bind, and its three results become our picture: here the float64 formula
    stands in for the GPU."""
    gsplat = pytest.importorskip("gsplat")
    view, g = cameras(), splats(40, degree, seed=21, opaque=0.9)

    def instead(**asked):
        assert asked["render_mode"] == "RGB+D" and asked["near_plane"] == 0.02
        assert asked["sh_degree"] == degree and asked["eps2d"] == 0.3
        assert asked["colors"].ndim == (2 if degree is None else 3)
        given = GaussianTensors(
            asked["means"], asked["scales"], asked["quats"], asked["opacities"], asked["colors"]
        )
        shown = [
            formula(given, pose, lens, torch.zeros(3), asked["eps2d"], asked["near_plane"])
            for pose, lens in zip(asked["viewmats"], asked["Ks"])
        ]
        colour, alpha, depth = (torch.stack(part) for part in zip(*shown))
        summed = torch.where(alpha > 0, depth, 0.0) * alpha
        return torch.cat([colour, summed[..., None]], -1), alpha[..., None], {}

    double = create_autospec(gsplat.rasterization, side_effect=instead)
    monkeypatch.setattr(gsplat, "rasterization", double)
    colours = g.colours[:, None] if degree is None else g.colours
    out = tensors._on_cuda(g, colours.float(), view, 0.3, 0.02)
    assert double.call_count == 1
    torch.testing.assert_close(
        out, tensors._on_cpu(g, colours.float(), view, 0.3, 0.02), atol=1e-3, rtol=1e-3
    )


def test_values_on_a_device_are_judged_as_arrays_are():
    g = splats(6, 1)
    tensors.check_on_device(g, g.colours.float(), 0.3, 0.01)
    g.scales.detach()[2, 1] = -0.1
    with pytest.raises(ValueError, match=r"scales\[2\].*linear"):
        tensors.check_on_device(g, g.colours.float(), 0.3, 0.01)
    with pytest.raises(ValueError, match="near is 0"):
        tensors.check_on_device(splats(6, 1), g.colours.float(), 0.3, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA and gsplat")
@pytest.mark.parametrize("degree", [None, 0, 3])
def test_gsplat_on_the_gpu_agrees_with_our_own(degree):
    pytest.importorskip("gsplat")
    view = cameras()
    there = CameraTensors(view.viewmats.cuda(), view.intrinsics.cuda(), WIDTH, HEIGHT)
    g = splats(80, degree, seed=20, opaque=0.95)
    results = []
    for device, seen in (("cpu", view), ("cuda", there)):
        moved = (getattr(g, name).detach().float().to(device).requires_grad_() for name in NAMES)
        given = GaussianTensors(*moved)
        shown = render(given, seen, background=(0.2, 0.5, 0.9), dilation=0.3)
        depth = torch.where(shown.alpha > 0.1, shown.depth, 0.0)
        (shown.color.square().sum() + shown.alpha.square().sum() + 0.1 * depth.sum()).backward()
        parts = (shown.color, shown.alpha, depth, *(getattr(given, name).grad for name in NAMES))
        results.append([part.detach().cpu() for part in parts])
    for cpu, cuda in zip(*results):
        assert (cpu - cuda).abs().max() <= 2e-3 * cpu.abs().max()
