# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of splats and what is uploaded for them, on plain arrays: no picture is drawn."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def order(viewtime: str):
    return importlib.import_module(f"{viewtime}.display.order")


@pytest.fixture
def data(viewtime: str):
    return importlib.import_module(f"{viewtime}.display.cloud_data")


def test_the_fast_order_differs_from_the_exact_one_by_its_step_alone(order):
    places = np.random.default_rng(0).normal(size=(20000, 3)).astype(np.float32)
    forward = np.array([0.6, -0.3, 0.7], np.float32)
    depth = places @ forward
    exact = depth[order.far_to_near(places, forward)]
    assert (np.diff(exact) <= 0).all()
    fast = order.far_to_near_fast(places, forward)
    assert np.array_equal(np.sort(fast), np.arange(len(places)))
    step = (depth.max() - depth.min()) / 65535
    assert np.diff(depth[fast]).max() <= step * 1.01


@pytest.mark.parametrize(
    "places",
    [np.zeros((0, 3)), np.zeros((5, 3)), np.array([[np.nan] * 3, [1, 0, 0], [0, 0, 0], [2, 0, 0]])],
)
def test_odd_clouds_have_an_order_of_all_their_splats(order, places):
    found = order.far_to_near_fast(places.astype(np.float32), np.array([1, 0, 0], np.float32))
    assert sorted(found) == list(range(len(places)))
    if np.isnan(places).any():
        assert list(found).index(3) < list(found).index(1)


@pytest.mark.parametrize("count", [0, 3, 5, 9])
def test_an_old_order_serves_another_number_of_splats(order, count):
    fitted = order.fitted(np.array([4, 2, 0, 1, 3]), count)
    assert sorted(fitted) == list(range(count))
    assert [i for i in fitted if i < min(count, 5)] == [i for i in [4, 2, 0, 1, 3] if i < count]


def test_the_sorter_gives_each_view_its_newest_order_and_its_thread_ends(order):
    sorter = order.Sorter()
    rng = np.random.default_rng(1)
    places = [rng.normal(size=(5000, 3)).astype(np.float32) for _ in range(4)]
    forward = np.array([0, 0, 1], np.float32)
    assert sorter.order("a") is None
    for stamp, place in enumerate(places):
        sorter.ask("a", stamp, place, forward)
        sorter.ask("b", stamp, place, -forward)
    sorter.join()
    assert not sorter.busy
    for key, sign in (("a", 1), ("b", -1)):
        stamp, found = sorter.order(key)
        assert stamp == 3
        assert np.array_equal(found, order.far_to_near_fast(places[3], sign * forward))
    finished = sorter.finished
    sorter.ask("a", 3, places[3], forward)  # asked before: nothing to do
    assert not sorter.busy and sorter.finished == finished
    for key in range(100):
        sorter.ask(key, 0, places[0][:10], forward)
    sorter.join()
    assert sum(sorter.order(key) is not None for key in range(100)) <= 24
    sorter.forget()
    assert sorter.order("a") is None


def test_a_share_of_the_splats_is_stable_and_nested(data):
    half = data.stable_subset(100_000, 0.5)
    assert abs(len(half) - 50_000) < 1000
    assert np.array_equal(half[half < 60_000], data.stable_subset(60_000, 0.5))
    assert set(data.stable_subset(100_000, 0.1)) < set(half)
    assert len(data.stable_subset(1000, 1.0)) == 1000
    # Random: no stripes along the order in the file.
    assert np.abs(np.bincount(half // 1000, minlength=100) - 500).max() < 100


def test_textures_hold_every_number_where_the_shader_looks(data):
    rng = np.random.default_rng(2)
    count = 3000
    splats = data.Splats(
        *(rng.normal(size=(count, k)).astype(np.float32) for k in (3, 3, 4, 4)),
        tuple(rng.normal(size=(count, 3)).astype(np.float32) for _ in range(8)),
    )
    staging: dict = {}
    for _ in range(2):  # the second time into the arrays of the first
        packed = data.pack(splats, staging)
    assert all(array.shape[1] == data.WIDTH for array in packed.values())
    numbers = {name: array.reshape(-1) for name, array in packed.items()}
    for n in (0, 2729, 2730, count - 1):  # 8192 / 3 lies between
        assert np.array_equal(numbers["position"][3 * n : 3 * n + 3], splats.position[n])
        assert np.array_equal(numbers["scale"][3 * n : 3 * n + 3], splats.scale[n])
        assert np.array_equal(numbers["rotation"][4 * n : 4 * n + 4], splats.rotation[n])
        assert np.array_equal(numbers["base"][4 * n : 4 * n + 4], splats.base[n])
        for k in range(8):
            place = 3 * (k * count + n)
            assert np.array_equal(numbers["rest"][place : place + 3], splats.rest[k][n])
    order = data.pack_order(np.arange(9000)[::-1])
    assert order.shape == (2, data.WIDTH) and order.reshape(-1)[8999] == 0


def test_clouds_of_any_origin_are_read(data):
    import bpy

    cloud = bpy.data.pointclouds.new("foreign")
    try:
        empty = data.read(cloud)
        assert len(empty) == 0 and empty.rest == ()
    finally:
        bpy.data.pointclouds.remove(cloud)
    fake = SimpleNamespace(attributes=_Attributes(2))
    found = data.read(fake)
    assert found.scale.shape == (2, 3) and (found.rotation[:, 0] == 1).all()


class _Attributes(dict):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def domain_size(self, _domain: str) -> int:
        return self.count
