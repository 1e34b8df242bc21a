# SPDX-License-Identifier: Apache-2.0
"""Made data for the tests of the formats. It holds no assertion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings

from viewtime_formats import Camera, Gaussians, Rig

settings.register_profile("viewtime", deadline=None, max_examples=80, derandomize=True)
settings.load_profile("viewtime")


def gaussians_of(count: int, degree: int = 0, seed: int = 0) -> Gaussians:
    random = np.random.default_rng(seed)
    rotations = random.normal(size=(count, 4))
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    return Gaussians(
        random.normal(size=(count, 3)).astype(np.float32),
        random.uniform(1e-3, 0.1, (count, 3)).astype(np.float32),
        rotations.astype(np.float32),
        random.uniform(0.01, 0.99, count).astype(np.float32),
        random.normal(size=(count, (degree + 1) ** 2, 3)).astype(np.float32),
    )


def rig_of(views: int, width: int = 8, height: int = 6) -> Rig:
    cameras = []
    for v in range(views):
        angle = 0.3 * v
        c, s = np.cos(angle), np.sin(angle)
        pose = np.array([[c, 0, s, 0.1 * v], [0, 1, 0, -0.2], [-s, 0, c, 4]])
        matrix = np.array([[9.5, 0, width / 2], [0, 9.25, height / 2 + 0.25], [0, 0, 1]])
        cameras.append(Camera(f"cam {v}", width, height, matrix, pose))
    return Rig(tuple(cameras))


@pytest.fixture(scope="session")
def make_gaussians():
    return gaussians_of


@pytest.fixture(scope="session")
def make_rig():
    return rig_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder per module, which hypothesis may use for many examples."""
    return tmp_path_factory.mktemp("formats")
