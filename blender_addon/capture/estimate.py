# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a capture will take and how much disk, from what the last one on this machine took.
It never guesses a render's time: without a measurement there is none."""

from __future__ import annotations

import platform
import statistics
import zlib

import bpy

from .cells import engine_name
from .render import Measured

# Bytes of a pixel on disk where nothing was measured: PNG of a rendered picture, ZIP EXR of depth.
IMAGE_BYTES, DEPTH_BYTES = 1.6, 2.2
READ_SECONDS = 0.1


def machine() -> str:
    """A mark of this machine that gives nothing away about it."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def engine_mark(scene: bpy.types.Scene, engine: str, samples: int, depth: bool) -> str:
    """What must be the same for a measurement to hold: engine, samples, depth."""
    name = "VIEWPORT" if engine == "VIEWPORT" else engine_name(scene, engine)
    if name == "CYCLES" and hasattr(scene, "cycles"):
        name += f" {samples or scene.cycles.samples}"
    elif "EEVEE" in name:
        name += f" {samples or scene.eevee.taa_render_samples}"
    return name + (" depth" if depth else "")


def remember(
    scene: bpy.types.Scene, measured: Measured, engine: str, samples: int, depth: bool
) -> None:
    """Keep in the scene what a capture took. The first of several rendered frames, which may
    compile shaders, does not count."""
    speed = scene.viewtime.capture_speed
    speed.machine = machine()
    if measured.rendered:
        later = measured.rendered[1:] or measured.rendered
        speed.engine = engine_mark(scene, engine, samples, depth)
        speed.pixels = measured.pixels
        speed.rendered_seconds = statistics.median(later)
        if measured.depth_bytes:
            speed.depth_bytes = measured.depth_bytes / measured.pixels / len(measured.rendered)
    if measured.decoded:
        speed.read_seconds = statistics.median(measured.decoded)
    frames = len(measured.rendered) + len(measured.decoded)
    if frames:
        speed.image_bytes = measured.image_bytes / measured.pixels / frames


def seconds(
    scene: bpy.types.Scene, rendered: int, read: int, pixels: int, mark: str
) -> float | None:
    """Estimated seconds of a capture; None where rendering was never measured as it will be now.

    rendered, read: frames of each kind. pixels: of one frame. mark: engine_mark().
    """
    speed = scene.viewtime.capture_speed
    here = speed.machine == machine()
    total = read * (speed.read_seconds if here and speed.read_seconds else READ_SECONDS)
    if rendered:
        if not here or speed.engine != mark or not speed.pixels or not speed.rendered_seconds:
            return None
        # Fewer pixels save less than their share: preparing the scene costs the same.
        total += rendered * speed.rendered_seconds * max(pixels / speed.pixels, 0.5)
    return total


def disk_bytes(scene: bpy.types.Scene, frames: int, with_depth: int, pixels: int) -> float:
    """Estimated bytes on disk of `frames` pictures, `with_depth` of them with depth."""
    speed = scene.viewtime.capture_speed
    colour = speed.image_bytes or IMAGE_BYTES
    return pixels * (frames * colour + with_depth * (speed.depth_bytes or DEPTH_BYTES))
