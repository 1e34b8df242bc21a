# SPDX-License-Identifier: Apache-2.0
"""Writes small folders in the layouts of the public datasets, all of one scene and one rig.

V cameras at (v, 0, 5), upright, look down -z of the world (OpenGL's identity): the point (1, .5, 0)
lands at pixel (40 - 20 v, 5) of the 40 x 30 picture. The picture of (v, t) has colour(v, t).
"""

import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, FOCAL = 40, 30, 100.0
POINT = np.array([1.0, 0.5, 0.0])


def colour(v: int, t: int) -> np.ndarray:
    return np.array([20 + 40 * v, 30 + 20 * t, 200], np.uint8)


def place(v: int) -> list[float]:
    return [float(v), 0.0, 5.0]


def frame(v: int, t: int) -> np.ndarray:
    return np.broadcast_to(colour(v, t), (HEIGHT, WIDTH, 3)).copy()


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=100)


def video(path: Path, v: int, times: int) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        for t in range(times):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame(v, t), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def poses_bounds(path: Path, views: int, each: int = 1, wobble: float = 0.0) -> None:
    rows = []
    for v in range(views):
        for k in range(each):
            # Axes of an OpenGL camera that looks down -z: down, right, backward.
            columns = [[0, -1, 0], [1, 0, 0], [0, 0, 1], place(v), [HEIGHT, WIDTH, FOCAL]]
            columns[3][0] += wobble * k
            rows.append([*np.array(columns, float).T.ravel(), 1.0, 100.0])
    np.save(path, np.array(rows))


def opengl(v: int) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = place(v)
    return pose


def nvidia(folder: Path, views: int, times: int) -> None:
    for t in range(times):
        for v in range(views):
            save(folder / "multiview_GT" / f"{t + 1:08d}" / f"cam{v + 1:02d}.jpg", frame(v, t))
    for v in range(views):
        room = folder / "calibration" / f"cam{v + 1:02d}"
        room.mkdir(parents=True)
        np.savetxt(room / "intrinsic.txt", [[FOCAL, 0, 20], [0, FOCAL, 15], [0, 0, 1]])
        np.savetxt(room / "extrinsic.txt", [place(v), [1, 0, 0], [0, -1, 0], [0, 0, -1]])


def nvidia_dense(folder: Path, views: int, times: int) -> None:
    for t in range(times):
        for v in range(views):
            save(folder / "dense" / "mv_images" / f"{t:05d}" / f"cam{v + 1:02d}.jpg", frame(v, t))
    poses_bounds(folder / "dense" / "poses_bounds.npy", views, each=2)


def n3dv(folder: Path, views: int, times: int) -> None:
    for v in range(views):
        video(folder / f"cam{v:02d}.mp4", v, times)
    poses_bounds(folder / "poses_bounds.npy", views)


def transforms(folder: Path, views: int, times: int) -> None:
    frames = []
    for v in range(views):
        for t in range(times):
            name = f"view_{v:03d}/{t:04d}"
            save(folder / f"{name}.png", frame(v, t))
            np.save(folder / f"{name}.npy", np.full((HEIGHT, WIDTH), 5.0 + t, np.float32))
            frames.append(
                {"file_path": f"./{name}", "depth_file_path": f"{name}.npy", "view": v, "time": t,
                 "transform_matrix": opengl(v).tolist()}
            )  # fmt: skip
    angle = 2 * np.arctan(WIDTH / 2 / FOCAL)
    (folder / "transforms.json").write_text(
        json.dumps({"camera_angle_x": float(angle), "frames": frames[::-1]})
    )


def kubric(folder: Path, views: int, times: int, moving: float = 0.0) -> None:
    for v in range(views):
        room = folder / f"camera_{v}"
        for t in range(times):
            save(room / f"rgba_{t:05d}.png", frame(v, t))
        camera = {
            "focal_length": 50.0,
            "sensor_width": 20.0,  # 100 pixels of focal length at 40 pixels of width
            "positions": [[v + moving * t, 0.0, 5.0] for t in range(times)],
            "quaternions": [[2.0, 0.0, 0.0, 0.0]] * times,
        }
        (room / "metadata.json").write_text(
            json.dumps({"camera": camera, "metadata": {"resolution": [WIDTH, HEIGHT]}})
        )


def llff(folder: Path, views: int, times: int) -> None:
    for v in range(views):
        save(folder / "images_2" / f"IMG_{v:03d}.JPG", frame(v, 0)[::2, ::2])
        save(folder / "images_4" / f"IMG_{v:03d}.JPG", frame(v, 0)[::4, ::4])
    poses_bounds(folder / "poses_bounds.npy", views)


def colmap_text(folder: Path, views: int, times: int) -> None:
    room = folder / "sparse" / "0"
    room.mkdir(parents=True)
    (room / "cameras.txt").write_text(
        f"# a comment\n1 SIMPLE_RADIAL {WIDTH} {HEIGHT} {FOCAL} 20 15 0.0\n"
    )
    lines = ["# two lines per image"]
    for v in reversed(range(views)):
        save(folder / "images" / f"{v:03d}.png", frame(v, 0))
        # Half a turn about x takes OpenGL's axes to OpenCV's; t = -R c.
        lines += [f"{v + 1} 0 1 0 0 {-v} 0 5 1 {v:03d}.png", "" if v else "1.0 2.0 -1"]
    (room / "images.txt").write_text("\n".join(lines) + "\n")


def colmap_binary(folder: Path, views: int, times: int) -> None:
    room = folder / "sparse"
    room.mkdir(parents=True)
    lens = struct.pack("<QiiQQ4d", 1, 7, 1, WIDTH, HEIGHT, FOCAL, FOCAL, 20, 15)
    (room / "cameras.bin").write_bytes(lens)
    data = struct.pack("<Q", views)
    for v in range(views):
        save(folder / "images" / f"{v:03d}.png", frame(v, 0))
        data += struct.pack("<i7di", v, 0, 1, 0, 0, -v, 0, 5, 7) + f"{v:03d}.png\0".encode()
        data += struct.pack("<Q", 2) + struct.pack("<ddq", 1, 2, 3) * 2
    (room / "images.bin").write_bytes(data)


def estate(folder: Path, views: int, times: int) -> None:
    lines = ["https://example.org/video"]
    for v in range(views):
        save(folder / "clip" / f"{1000 + v}.jpg", frame(v, 0))
        pose = np.array([[1, 0, 0, -v], [0, -1, 0, 0], [0, 0, -1, 5]], float)
        inner = [FOCAL / WIDTH, FOCAL / HEIGHT, 0.5, 0.5, 0, 0]
        lines.append(" ".join(str(x) for x in [1000 + v, *inner, *pose.ravel()]))
    lines.append(lines[-1].replace(str(999 + views), "9999"))  # its frame is not there
    (folder / "clip.txt").write_text("\n".join(lines) + "\n")


def pictures(folder: Path, views: int, times: int) -> None:
    from viewtime_formats.rig import Camera, Rig, write_rig

    for v in range(views):
        for t in range(times):
            save(folder / f"cam{v}" / f"{8 + t}.png", frame(v, t))  # 10 comes after 9
    turn = np.diag([1.0, -1.0, -1.0])
    inner = np.array([[FOCAL, 0, 20], [0, FOCAL, 15], [0, 0, 1]])
    write_rig(
        folder / "rig.json",
        Rig(tuple(
            Camera(f"cam{v}", WIDTH, HEIGHT, inner,
                   np.concatenate([turn, -turn @ np.array(place(v))[:, None]], 1))
            for v in reversed(range(views))
        )),
    )  # fmt: skip


def videos(folder: Path, views: int, times: int) -> None:
    for v in range(views):
        video(folder / f"view{v}.mp4", v, times + v)


DYNAMIC = {
    "nvidia": nvidia,
    "nvidia dense": nvidia_dense,
    "n3dv": n3dv,
    "transforms": transforms,
    "kubric": kubric,
    "cameras": pictures,
}
STILL = {
    "llff": llff,
    "colmap": colmap_text,
    "colmap binary": colmap_binary,
    "realestate10k": estate,
}
