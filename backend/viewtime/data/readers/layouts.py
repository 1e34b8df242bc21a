# SPDX-License-Identifier: Apache-2.0
"""Which files and cameras a dataset's folder holds, one function per layout. Decodes no picture.

Each takes a scene's folder and returns its Views in the dataset's order.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewtime.data.readers import colmap, poses
from viewtime.data.readers.pictures import PICTURES, VIDEOS, View, by_number, files, folders
from viewtime_formats.errors import CaptureError
from viewtime_formats.fields import MAX_JSON_BYTES, Fields, inside
from viewtime_formats.headers import image_size
from viewtime_formats.rig import Camera, read_rig

_NVIDIA_ROOMS = ("mv_images", "dense/mv_images", "multiview_GT/multiview_GT", "multiview_GT")
_COLMAP_ROOMS = ("sparse/0", "sparse", "dense/sparse", "colmap/sparse/0", "dense/0/sparse", ".")


def nvidia(folder: Path) -> list[View]:
    """NVIDIA Dynamic Scene: mv_images/TTTTT/camNN.jpg (or multiview_GT/TTTTTTTT/camNN.jpg): a
    folder per time with a picture per camera.

    Cameras from calibration/camNN/{intrinsic,extrinsic}.txt, else from poses_bounds.npy beside the
    pictures: a row per camera, or k rows per camera one after the other (the round-robin clip of
    12 x k frames). Without either the cameras are unknown.
    """
    room = next(folder / name for name in _NVIDIA_ROOMS if (folder / name).is_dir())
    times = [time for time in folders(room) if files(time, PICTURES)]
    if not times:
        raise CaptureError(f"{room}: holds no folder of pictures per time")
    names = [path.stem for path in files(times[0], PICTURES)]
    rows = []
    for time in times:
        found = {path.stem: path for path in files(time, PICTURES)}
        missing = [name for name in names if name not in found]
        if missing:
            raise CaptureError(f"{time}: has no picture of {missing[0]}, {times[0]} has one")
        rows.append(found)
    cameras = _nvidia_cameras(folder, room, names, times[0])
    return [
        View(name, tuple(row[name] for row in rows), cameras=(cameras[n],) if cameras else ())
        for n, name in enumerate(names)
    ]


def _nvidia_cameras(folder: Path, room: Path, names: list[str], time: Path) -> list[Camera]:
    calibration = folder / "calibration"
    if calibration.is_dir():
        pictures = {path.stem: path for path in files(time, PICTURES)}
        return [
            poses.calibrated_camera(calibration / name, name, picture_size(pictures[name]))
            for name in names
        ]
    bounds = next(
        (p for p in (room.parent / "poses_bounds.npy", folder / "poses_bounds.npy") if p.is_file()),
        None,
    )
    if bounds is None:
        return []
    cameras = poses.llff_cameras(bounds)
    each, rest = divmod(len(cameras), len(names))
    if rest or not each:
        raise CaptureError(
            f"{bounds}: has {len(cameras)} rows for {len(names)} cameras; one each, or the same "
            "number for each, is needed"
        )
    chosen = []
    centres = np.array([camera.center for camera in cameras])
    reach = float(np.linalg.norm(np.ptp(centres, axis=0))) or 1.0
    for n, name in enumerate(names):
        own = cameras[n * each : (n + 1) * each]
        apart = max(float(np.linalg.norm(camera.center - own[0].center)) for camera in own)
        if apart > 0.05 * reach:
            raise CaptureError(
                f"{bounds}: rows {n * each} to {(n + 1) * each - 1} should be one camera ({name}) "
                f"but lie {apart:.3g} apart in a rig {reach:.3g} wide; read it without this file"
            )
        chosen.append(renamed(own[0], name))
    return chosen


def n3dv(folder: Path) -> list[View]:
    """Neural 3D Video: camNN.mp4 and poses_bounds.npy, whose rows follow the videos' names."""
    videos = [path for path in files(folder, VIDEOS) if path.stem.startswith("cam")]
    path = folder / "poses_bounds.npy"
    cameras = poses.llff_cameras(path, [video.stem for video in videos])
    if len(cameras) != len(videos):
        raise CaptureError(f"{path}: has {len(cameras)} rows for {len(videos)} cam*.mp4")
    return [View(v.stem, video=v, cameras=(camera,)) for v, camera in zip(videos, cameras)]


def llff(folder: Path) -> list[View]:
    """LLFF: images/ (or the largest images_N/) and poses_bounds.npy, rows by the pictures' names.
    A still scene: every picture is a view."""
    found = _picture_folder(folder)
    pictures = sorted(files(found, PICTURES), key=lambda path: path.name)
    path = folder / "poses_bounds.npy"
    cameras = poses.llff_cameras(path, [picture.stem for picture in pictures])
    if len(cameras) != len(pictures):
        raise CaptureError(f"{path}: has {len(cameras)} rows, {found} {len(pictures)} pictures")
    return [View(p.stem, (p,), cameras=(camera,)) for p, camera in zip(pictures, cameras)]


def colmap_scene(folder: Path) -> list[View]:
    """A COLMAP scene (Tanks & Temples, DL3DV): sparse/0 and images/. A still scene: every
    registered picture that is there is a view; the others are left out."""
    model = colmap_model(folder)
    assert model is not None
    found = _picture_folder(folder)
    views = []
    for camera in colmap.read_model(model):
        picture = inside(found, camera.name, f"{model}: an image", CaptureError)
        if picture.is_file():
            views.append(View(camera.name, (picture,), cameras=(camera,)))
    if not views:
        raise CaptureError(f"{found}: holds none of the pictures that {model} names")
    return views


def colmap_model(folder: Path) -> Path | None:
    """Where in a scene's folder its COLMAP model is, or None."""
    rooms = (folder / room for room in _COLMAP_ROOMS)
    return next((room for room in rooms if colmap.has_model(room)), None)


def _picture_folder(folder: Path) -> Path:
    rooms = [folder / "images", folder / "input"]
    rooms += [p for p in folders(folder) if p.name.startswith("images_")]  # images_2 before _8
    rooms += [folder / "dense" / "images"]
    for room in rooms:
        if files(room, PICTURES) or (
            room.is_dir() and any(files(r, PICTURES) for r in folders(room))
        ):
            return room
    raise CaptureError(f"{folder}: has no images folder with PNG or JPEG pictures")


def transforms(folder: Path) -> list[View]:
    """Renders with a transforms.json (or transforms_train.json), as of Objaverse and NeRF.

    frames: file_path, transform_matrix (camera-to-world, OpenGL axes), and, for a dynamic scene,
    time. Frames of one "view" are one camera, ordered by these names; without that field frames of
    one pose are, in the order of the file. Intrinsics:
    fl_x, fl_y, cx, cy, w, h in pixels from the corner, or camera_angle_x; each for all or per
    frame. depth_file_path: planar z, an EXR or NPY.
    """
    path = next(p for p in transforms_files(folder) if p.is_file())
    root = Fields(read_object(path), str(path), CaptureError)
    groups: dict[tuple[str, str], list[tuple[float, Path, Path | None, Camera]]] = {}
    for n, item in enumerate(root.sequence("frames", 1_000_000)):
        frame = Fields(item, f"{path}: frames[{n}]", CaptureError)
        pose = frame.array("transform_matrix", (4, 4))
        picture = _named(folder, frame, "file_path", PICTURES)
        view = frame.obj.get("view")
        key = ("pose", (pose.round(6) + 0.0).tobytes().hex())
        if view is not None:
            key = ("view", str(view))
        time = 0.0 if frame.obj.get("time") is None else frame.number("time", -1e9, 1e9)
        depth = None
        if frame.obj.get("depth_file_path") is not None:
            depth = _named(folder, frame, "depth_file_path", (".exr", ".npy"))
        camera = _transforms_camera(frame, root, pose, picture)
        groups.setdefault(key, []).append((time, picture, depth, camera))
    if not groups:
        raise CaptureError(f"{path}: frames is empty")
    moments = sorted({frame[0] for frames in groups.values() for frame in frames})
    views = []
    labelled = all(what == "view" for what, _ in groups)
    order = sorted(groups, key=lambda key: by_number(Path(key[1]))) if labelled else list(groups)
    for n, key in enumerate(order):
        (what, label), found = key, groups[key]
        found.sort(key=lambda frame: frame[0])
        name = label if what == "view" else f"{n:03d}"
        if [frame[0] for frame in found] != moments:
            raise CaptureError(
                f"{path}: view {name} has {len(found)} frames, the scene {len(moments)} times; "
                "every view needs one frame at every time"
            )
        depths = tuple(frame[2] for frame in found if frame[2] is not None)
        cameras = tuple(renamed(frame[3], name) for frame in found)
        pictures = tuple(frame[1] for frame in found)
        whole = depths if len(depths) == len(found) else ()
        views.append(View(name, pictures, cameras=cameras, depths=whole))
    return views


def transforms_files(folder: Path) -> list[Path]:
    return [folder / "transforms.json", folder / "transforms_train.json"]


def _transforms_camera(frame: Fields, root: Fields, pose: NDArray[Any], picture: Path) -> Camera:
    def either(key: str, default: float | None = None) -> float | None:
        for fields in (frame, root):
            if fields.obj.get(key) is not None:
                return fields.number(key, -1e6, 1e6)
        return default

    width, height = either("w"), either("h")
    if width is None or height is None:
        width, height = picture_size(picture)
    focal = either("fl_x")
    if focal is None:
        angle = either("camera_angle_x")
        if angle is None or not 0 < angle < math.pi:
            root.fail("camera_angle_x", "an angle in radians, or fl_x in pixels, is needed")
        focal = 0.5 * width / math.tan(0.5 * angle)
    focal_y = either("fl_y", focal)
    middle = either("cx", width / 2), either("cy", height / 2)
    size = round(width), round(height)
    return poses.pinhole(
        frame.where,
        "camera",
        size,
        (focal, focal_y),
        middle,
        poses.from_opengl(frame.where, pose),
    )


def _named(folder: Path, frame: Fields, key: str, endings: tuple[str, ...]) -> Path:
    """The file that a field names, with or without its ending, inside the scene's folder."""
    text = frame.text(key, limit=1000).removeprefix("./")
    path = inside(folder, text, f"{frame.where}: {key}", CaptureError)
    choices = [path] if path.suffix.lower() in endings else []
    choices += [path.with_name(path.name + ending) for ending in endings]
    for choice in choices:
        if choice.is_file():
            return choice
    raise CaptureError(f"{frame.where}: {key} is {text!r}; there is no such file in {folder}")


def kubric(folder: Path) -> list[View]:
    """Kubric: a folder per camera with rgba_NNNNN.png and metadata.json; or metadata_NAME.json
    beside the folders NAME; or one camera's folder itself."""
    views = []
    for path, room in kubric_files(folder):
        pictures = [p for p in files(room, PICTURES) if p.stem.startswith(("rgba_", "rgb_"))]
        if not pictures:
            raise CaptureError(f"{room}: holds no rgba_*.png")
        cameras = poses.kubric_cameras(path, read_object(path), room.name)
        if len(cameras) not in (1, len(pictures)):
            raise CaptureError(
                f"{path}: has {len(cameras)} camera positions, {room} {len(pictures)} pictures"
            )
        views.append(View(room.name, tuple(pictures), cameras=cameras))
    return views


def kubric_files(folder: Path) -> list[tuple[Path, Path]]:
    """(metadata file, folder of its pictures) for each camera of a Kubric scene."""
    rooms = folders(folder)
    found = [(room / "metadata.json", room) for room in rooms]
    found += [(folder / f"metadata_{room.name}.json", room) for room in rooms]
    found += [(folder / "metadata.json", folder)]
    return [
        (path, room)
        for path, room in found
        if path.is_file() and any(p.stem.startswith("rgb") for p in files(room, PICTURES))
    ]


def estate(path: Path) -> list[View]:
    """RealEstate10K: NAME.txt of cameras, pictures named by its timestamps. Every line whose
    picture is there is a view of a still scene; the others are left out."""
    pictures = {p.stem: p for room in estate_rooms(path) for p in files(room, PICTURES)}
    by_time = {int(stem): p for stem, p in pictures.items() if stem.isdecimal()}
    views = []
    for time, camera in poses.estate_cameras(path):
        if int(time) in by_time:
            views.append(View(time, (by_time[int(time)],), cameras=(camera,)))
    if not views:
        raise CaptureError(f"{path}: none of its frames is there as TIMESTAMP.png or .jpg")
    return views


def estate_rooms(path: Path) -> list[Path]:
    """Where the frames of a camera file may lie: beside it, in NAME/, in frames/ in place of
    cameras/."""
    mirrored = [
        path.parents[n]
        / "frames"
        / path.parent.relative_to(path.parents[n] / "cameras")
        / path.stem
        for n in range(1, min(4, len(path.parents)))
        if path.is_relative_to(path.parents[n] / "cameras")
    ]
    beside = [path.parent / path.stem, path.parent, path.parent / "frames", path.parent / "images"]
    return [room for room in [*mirrored, *beside] if room.is_dir()]


def cameras(folder: Path) -> list[View]:
    """Any multi-camera folder: a video per camera, or a folder of pictures per camera; by name.

    rig.json (viewtime_formats.rig), if there, gives their cameras: by name where all names agree,
    else in its order.
    """
    videos = files(folder, VIDEOS)
    views = [View(video.stem, video=video) for video in videos]
    if not views:
        views = [
            View(room.name, tuple(files(room, PICTURES)))
            for room in folders(folder)
            if files(room, PICTURES)
        ]
    path = folder / "rig.json"
    if not path.is_file():
        return views
    rig = read_rig(path).cameras
    if len(rig) != len(views):
        raise CaptureError(f"{path}: has {len(rig)} cameras, {folder} has {len(views)}")
    named = {camera.name: camera for camera in rig}
    if named.keys() == {view.name for view in views}:
        rig = tuple(named[view.name] for view in views)
    return [
        View(view.name, view.pictures, view.video, (camera,)) for view, camera in zip(views, rig)
    ]


def read_object(path: Path) -> Any:
    """The JSON in a file. Raises CaptureError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CaptureError(f"{path}: is larger than {MAX_JSON_BYTES >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        reason = " ".join(str(problem).split())[:120]
        raise CaptureError(f"{path}: is not valid JSON ({reason})") from None


def renamed(camera: Camera, name: str) -> Camera:
    return replace(camera, name=name)


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture from its header."""
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return image_size(path)
    from PIL import Image

    try:
        with Image.open(path, formats=["JPEG"]) as image:
            return image.size
    except Exception as problem:  # pillow raises a dozen types
        raise CaptureError(f"{path}: cannot be read ({problem}); a JPEG is needed") from None
