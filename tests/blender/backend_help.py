# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the backend's life share: a small real capture, waiting, looking at processes.
It starts nothing."""

from __future__ import annotations

import importlib
import os
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

VIEWS, SIZE = 3, 32


def write_png(path: Path, pixels: np.ndarray) -> None:
    """(H, W, 3) uint8 as PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def write_capture(folder: Path, times: int) -> Path:
    """A textured wall 2 units away, seen by three cameras side by side at every time."""
    formats = importlib.import_module("viewtime_formats.capture")
    rigs = importlib.import_module("viewtime_formats.rig")
    folder.mkdir()
    intrinsics = np.array([[SIZE, 0, SIZE / 2], [0, SIZE, SIZE / 2], [0, 0, 1.0]])
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    cameras = []
    for view in range(VIEWS):
        shifted = x + 2 * view
        pixels = np.stack([shifted * 5, y * 7, (shifted * y) % 251], -1).astype(np.uint8)
        write_png(folder / f"{view}.png", pixels)
        np.save(folder / f"{view}.npy", np.full((SIZE, SIZE), 2.0, np.float32))
        pose = np.hstack([np.eye(3), [[-0.125 * view], [0], [0]]])
        cameras.append(rigs.Camera(f"view {view}", SIZE, SIZE, intrinsics, pose))
    cells = [
        formats.Cell(view, t, f"{view}.png", f"{view}.npy")
        for view in range(VIEWS)
        for t in range(times)
    ]
    formats.write_capture(
        folder,
        views=VIEWS,
        times=times,
        width=SIZE,
        height=SIZE,
        cells=cells,
        rig=rigs.Rig(tuple(cameras)),
    )
    return folder


def until(condition: Callable[[], object], seconds: float = 20.0) -> object:
    """Wait for a truth about another process; fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)
    return value


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    if os.name == "nt":
        listing = subprocess.run(["tasklist", "/FI", f"PID eq {pid}"], capture_output=True)
        return str(pid).encode() in listing.stdout
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip() not in ("",) and not state.stdout.strip().startswith("Z")
