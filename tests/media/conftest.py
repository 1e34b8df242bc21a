# SPDX-License-Identifier: Apache-2.0
"""A made clip and a writer for it, for the tests of media. It holds no assertion."""

from __future__ import annotations

import av
import numpy as np
import pytest


def _write_video(path, frames, rate=12, container_options=None):
    """frames (T, H, W, 3) uint8 as H.264."""
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _ramp(times=6, height=48, width=64):
    """Frames whose left half is grey of level 30 t; the right half is red."""
    frames = np.zeros((times, height, width, 3), np.uint8)
    frames[:, :, : width // 2] = (30 * np.arange(times))[:, None, None, None]
    frames[:, :, width // 2 :, 0] = 200
    return frames


@pytest.fixture(scope="session")
def write_video():
    return _write_video


@pytest.fixture(scope="session")
def ramp():
    return _ramp
