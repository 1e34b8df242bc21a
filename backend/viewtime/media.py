# SPDX-License-Identifier: Apache-2.0
"""Images, depth maps and videos as float32 arrays, with limits that a hostile file cannot pass.

Never imports an image or video library before a file is read, and never opens a network address.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewtime_formats.atomic import atomic_path
from viewtime_formats.capture import SKY_DEPTH
from viewtime_formats.errors import CaptureError
from viewtime_formats.headers import depth_size, image_size

Float32 = NDArray[np.float32]
PathLike = str | os.PathLike[str]

MAX_IMAGE_PIXELS = 1 << 27
"""The largest picture or depth map that is decoded (134 megapixels)."""
MAX_VIDEO_PIXELS = 4096 * 2304
"""The largest video frame that is decoded, unless the caller says otherwise."""
MAX_VIDEO_FRAMES = 100_000
VIDEO_FORMATS = "mov,mp4,matroska,webm"
_SKY_ON_DISK = 1e10  # as Cycles writes it
_VIDEO_NEED = "a video in an MP4, MOV, MKV or WebM file is needed"


def read_image(path: PathLike) -> Float32:
    """A PNG or EXR file as (H, W, 3) float32 display sRGB in [0, 1].

    A colour EXR is scene linear and becomes sRGB here; transparency is laid over black.
    Raises CaptureError for anything else, a broken file, or one over MAX_IMAGE_PIXELS.
    """
    path = Path(path)
    _check_pixels(path, image_size(path))
    if _is_exr(path):
        return linear_to_srgb(_exr_colour(path))
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode.startswith("I"):  # 16-bit grey; "RGB" would cut it off at 255
                grey = np.asarray(image, np.float32) / np.float32(65535)
                return np.repeat(grey[..., None], 3, axis=2)
            plain = image.convert("RGBA" if image.has_transparency_data else "RGB")
            pixels = np.asarray(plain, np.float32) / np.float32(255)
    except Exception as problem:  # pillow raises a dozen types, SyntaxError among them
        raise _broken(path, problem, "write the image again") from None
    return pixels if pixels.shape[2] == 3 else pixels[..., :3] * pixels[..., 3:]


def write_png(path: PathLike, image: Float32) -> None:
    """Write (H, W, 3) display sRGB in [0, 1] as an 8-bit PNG, atomically.

    Raises CaptureError for another shape, ViewtimeError when the disk refuses.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise CaptureError(f"{path}: an image of shape {image.shape}; (height, width, 3) is needed")
    pixels = (np.clip(np.nan_to_num(image), 0, 1) * 255 + 0.5).astype(np.uint8)
    with atomic_path(path, durable=False) as part:
        Image.fromarray(pixels).save(part, format="PNG", compress_level=3)


def read_depth(path: PathLike) -> Float32:
    """A depth map (EXR or NPY) as (H, W) float32 planar z: +inf is sky, NaN is unknown.

    On disk, 1e9 or more and infinity are sky; NaN, zero and below are unknown. Raises CaptureError.
    """
    path = Path(path)
    _check_pixels(path, depth_size(path))
    if _is_exr(path):
        depth = _exr_depth(path)
    else:
        depth = np.load(path, allow_pickle=False)
    with np.errstate(over="ignore"):  # a double beyond float32 is sky
        depth = np.array(depth, np.float32)
    depth[depth >= SKY_DEPTH] = np.inf
    depth[~(depth > 0)] = np.nan
    return depth


def write_depth(path: PathLike, depth: Float32) -> None:
    """Write (H, W) planar z as EXR (channel Z) or NPY, by the name's ending, atomically.

    Sky (+inf) becomes 1e10, unknown (NaN) 0. Raises CaptureError for another shape or ending,
    ViewtimeError when the disk refuses.
    """
    path = Path(path)
    if depth.ndim != 2 or not depth.size:
        raise CaptureError(f"{path}: depth of shape {depth.shape}; (height, width) is needed")
    values: Any = np.asarray(depth, np.float32)
    plain = np.nan_to_num(values, nan=0, posinf=_SKY_ON_DISK, neginf=0)
    if path.suffix == ".npy":
        with atomic_path(path, durable=False) as part, open(part, "wb") as file:
            np.save(file, plain)
    elif path.suffix == ".exr":
        with atomic_path(path, durable=False) as part:
            part.write_bytes(_exr_of_depth(plain))
    else:
        raise CaptureError(f"{path}: depth is written as .exr or .npy, not {path.suffix!r}")


def linear_to_srgb(linear: NDArray[Any]) -> Float32:
    """Scene-linear values to display sRGB, clipped to [0, 1] (NaN becomes 0); same shape."""
    values: Any = np.asarray(linear, np.float32)
    x = np.clip(np.nan_to_num(values, nan=0, posinf=1), 0, 1)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055).astype(np.float32)


def resize_image(image: Float32, width: int, height: int) -> Float32:
    """(H, W, 3) to (height, width, 3): the mean over each new pixel, cubic when enlarging."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return np.asarray(image, np.float32)
    smaller = height * width < image.shape[0] * image.shape[1]
    method = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    planes = [
        np.asarray(
            Image.fromarray(np.asarray(image[..., c], np.float32)).resize((width, height), method)
        )
        for c in range(image.shape[2])
    ]
    return np.clip(np.stack(planes, axis=2), 0, 1)


def resize_depth(depth: Float32, width: int, height: int) -> Float32:
    """(H, W) to (height, width) by the nearest pixel: means across an edge would be in mid-air."""
    rows = ((np.arange(height) + 0.5) * (depth.shape[0] / height)).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * (depth.shape[1] / width)).astype(np.intp)
    return np.ascontiguousarray(depth[rows[:, None], columns])


def read_video(
    path: PathLike, max_frames: int = MAX_VIDEO_FRAMES, max_pixels: int = MAX_VIDEO_PIXELS
) -> tuple[Float32, float]:
    """All frames of a video as (T, H, W, 3) float32 display sRGB in [0, 1], and its frame rate.

    Raises CaptureError for what is no video (a text file named .mp4), for more than `max_frames`
    frames or `max_pixels` pixels per frame, and for a stream that breaks off or changes size.
    """
    frames: list[NDArray[np.uint8]] = []
    with open_video(path, max_pixels) as (decoded, fps):
        for frame in decoded:
            if len(frames) == max_frames:
                raise CaptureError(f"{path}: has more than {max_frames} frames; cut it shorter")
            frames.append(frame)
    out = np.empty((len(frames), *frames[0].shape), np.float32)
    for t, frame in enumerate(frames):
        np.divide(frame, np.float32(255), out=out[t])
    return out, fps


@contextmanager
def open_video(
    path: PathLike, max_pixels: int = MAX_VIDEO_PIXELS
) -> Iterator[tuple[Iterator[NDArray[np.uint8]], float]]:
    """Open a video safely: yields its frames, (H, W, 3) uint8 upright, one by one, and its rate.

    Only the whitelisted containers are tried, so that a playlist or script under a video's name
    cannot make the decoder open other files. Raises CaptureError, also while frames are taken.
    """
    path = Path(path)
    with _video_stream(path, max_pixels) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate or Fraction(24)
        yield _decoded(container, stream, path), float(rate)


def count_frames(path: PathLike) -> int:
    """How many frames a video holds, counted without decoding them. Raises CaptureError."""
    import av

    path = Path(path)
    with _video_stream(path, MAX_VIDEO_PIXELS) as (container, stream):
        try:
            return sum(1 for packet in container.demux(stream) if packet.size)
        except (av.FFmpegError, ValueError) as problem:
            raise CaptureError(
                f"{path}: is damaged ({_line(str(problem))}); encode it again"
            ) from None


@contextmanager
def _video_stream(path: Path, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    import av

    if not path.is_file():
        raise CaptureError(f"{path}: there is no such file; {_VIDEO_NEED}")
    options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(str(path.absolute()), options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise CaptureError(f"{path}: is no video ({_line(reason)}); {_VIDEO_NEED}") from None
    with container:
        if not container.streams.video:
            raise CaptureError(f"{path}: holds no video stream; {_VIDEO_NEED}")
        stream = container.streams.video[0]
        size = stream.codec_context.width, stream.codec_context.height
        if size[0] * size[1] > max_pixels:
            raise CaptureError(
                f"{path}: has {size[0]} x {size[1]} pixels per frame; at most {max_pixels} pixels "
                "are read, scale it down"
            )
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        yield container, stream


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[NDArray[np.uint8]]:
    import av

    count, size = 0, None
    try:
        for frame in _whole_frames(container, stream):
            pixels = frame.to_ndarray(format="rgb24")
            quarter_turns = round(frame.rotation / 90)  # phones store upright clips lying down
            if quarter_turns:
                pixels = np.ascontiguousarray(np.rot90(pixels, quarter_turns))
            if size is not None and pixels.shape != size:
                raise CaptureError(
                    f"{path}: frame {count} has {pixels.shape[1]} x {pixels.shape[0]} pixels, the "
                    f"first has {size[1]} x {size[0]}; one size is needed"
                )
            size = pixels.shape
            count += 1
            yield pixels
    except (av.FFmpegError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise CaptureError(
            f"{path}: cannot be decoded after {count} frames ({_line(reason)}); encode it again"
        ) from None
    if not count:
        raise CaptureError(f"{path}: holds no frame that can be decoded; {_VIDEO_NEED}")


def _whole_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames; a packet that the file's end has cut raises ValueError."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError("the file is truncated")
        yield from packet.decode()


def _exr_of_depth(depth: Float32) -> bytes:
    """The bytes of an uncompressed one-channel EXR. Ours, because OpenEXR's writer says nothing
    when the disk is full and leaves a short file."""
    height, width = depth.shape
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = [
        ("channels", "chlist", b"Z\0" + struct.pack("<iB3xii", 2, 0, 1, 1) + b"\0"),
        ("compression", "compression", b"\0"),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    ]
    head = struct.pack("<2I", 20000630, 2)
    for name, kind, value in attributes:
        head += f"{name}\0{kind}\0".encode() + struct.pack("<i", len(value)) + value
    head += b"\0"
    rows = np.empty(height, [("y", "<i4"), ("bytes", "<i4"), ("z", "<f4", (width,))])
    rows["y"], rows["bytes"], rows["z"] = np.arange(height), 4 * width, depth
    first = len(head) + 8 * height
    offsets = first + rows.itemsize * np.arange(height, dtype="<u8")
    return head + offsets.tobytes() + rows.tobytes()


def _exr_channels(path: Path) -> dict[str, Any]:
    """Every channel of every part, by its full name."""
    import OpenEXR

    try:
        file = OpenEXR.File(str(path), separate_channels=True)
        channels: dict[str, Any] = {}
        # OpenEXR prints a warning about a truncated part and goes on without it.
        if len(file.parts) < max(len(OpenEXR.File(str(path), header_only=True).parts), 1):
            raise ValueError("its pixels are truncated or damaged")
        for part in file.parts:
            for name, channel in part.channels.items():
                channels.setdefault(name, np.asarray(channel.pixels))
                prefix = str(part.header.get("name", ""))
                channels.setdefault(f"{prefix}.{name}", channels[name])
    except Exception as problem:
        raise _broken(path, problem, "render it again") from None
    return channels


def _exr_colour(path: Path) -> Float32:
    channels = _exr_channels(path)
    layers = [name[:-1] for name in channels if name == "R" or name.endswith(".R")]
    layers = [layer for layer in layers if {layer + "G", layer + "B"} <= channels.keys()]
    if not layers:
        names = ", ".join(sorted(channels))[:120]
        raise CaptureError(f"{path}: has no R, G and B channels (it has {names})")
    # The plain image first, then the render, then whatever other pass there is.
    layer = min(layers, key=lambda name: (name != "", "Combined" not in name))
    return np.stack([channels[layer + c] for c in "RGB"], axis=2).astype(np.float32)


def _exr_depth(path: Path) -> NDArray[Any]:
    channels = _exr_channels(path)

    def rank(name: str) -> int:
        last = name.rpartition(".")[2]
        found = [last == "Z", last.startswith("Depth"), "Depth" in name, last == "Y", last == "V"]
        return found.index(True) if True in found else len(found)

    name = min(channels, key=rank)
    if rank(name) == 5 and not name.endswith("Z"):
        names = ", ".join(sorted(channels))[:120]
        raise CaptureError(f"{path}: has no depth channel (Z, Depth, Y or V; it has {names})")
    return channels[name]


def _is_exr(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x76\x2f\x31\x01"


def _check_pixels(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1 or width * height > MAX_IMAGE_PIXELS:
        raise CaptureError(
            f"{path}: claims {width} x {height} pixels; 1 to {MAX_IMAGE_PIXELS} are read"
        )


def _broken(path: Path, problem: Exception, advice: str) -> CaptureError:
    return CaptureError(f"{path}: is broken ({_line(str(problem))}); {advice}")


def _line(text: str) -> str:
    return " ".join(text.split())[:120]
