# SPDX-License-Identifier: Apache-2.0
"""The main job, played in real Blender: scene, rig, capture, backend, splats, render, export.
Runs under Blender's own interpreter and meets the backend over HTTP alone; never imports torch."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTENSION = "bl_ext.user_default.viewtime"
VIEWS, TIMES, SIZE, FRAMES = 6, 9, 256, (1, 33)
FRAME_STEP = (FRAMES[1] - FRAMES[0]) // (TIMES - 1)
ARC_DEGREES = 75
SPLAT_SAMPLES = 6
HELD_OUT_TIMES = (0, 4, 8)


class Stages:
    """Wall seconds by stage, told while they pass; Blender's own chatter goes to a log file.

    Cycles writes some thirty lines a frame to the process's standard output, from C, so the file
    descriptor itself is turned aside; what is for people goes through `say`.
    """

    def __init__(self, log: Path) -> None:
        self.seconds: dict[str, float] = {}
        self._terminal = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._log = log.open("w", encoding="utf-8")
        os.dup2(self._log.fileno(), 1)

    def say(self, text: str) -> None:
        print(text, file=self._terminal, flush=True)

    @contextmanager
    def stage(self, name: str, what: str):
        self.say(f"-- {what}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)
        self.say(f"   {self.seconds[name]:.1f} s")

    def close(self) -> None:
        """Give the standard output back."""
        sys.stdout.flush()
        os.dup2(self._terminal.fileno(), 1)
        self._log.close()


def build_extension(backend_python: Path) -> Path:
    """The extension zip, built by the backend's interpreter (Blender's has no build tools)."""
    answer = subprocess.run(
        [str(backend_python), str(ROOT / "tools" / "build_extension.py")],
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(answer.stdout.strip().splitlines()[-1])


def install_extension(archive: Path) -> None:
    """Install the zip as a user would: through Blender's own extension installer."""
    import bpy

    bpy.ops.extensions.package_install_files(
        repo="user_default", filepath=str(archive), enable_on_install=False
    )
    # Enabling within the same clock tick as the installation can miss it: Python remembers what
    # a folder holds by the folder's time.
    importlib.invalidate_caches()
    bpy.ops.preferences.addon_enable(module=EXTENSION)
    if EXTENSION not in bpy.context.preferences.addons:
        raise SystemExit(f"demo: Blender did not enable {EXTENSION} from {archive}")


def held_out_cameras(scene) -> list:
    """Cameras half-way between neighbours of the rig, for pictures that the job never sees."""
    import bpy
    from mathutils import Vector

    rig = [slot.camera for slot in scene.viewtime.rig]
    cameras = []
    for i in (0, len(rig) // 2 - 1, len(rig) - 2):
        left, right = rig[i].matrix_world, rig[i + 1].matrix_world
        data = rig[i].data.copy()
        camera = bpy.data.objects.new(f"held_out.{i}", data)
        rotation = left.to_quaternion().slerp(right.to_quaternion(), 0.5)
        camera.matrix_world = rotation.to_matrix().to_4x4()
        camera.location = Vector(left.translation).lerp(Vector(right.translation), 0.5)
        scene.collection.objects.link(camera)
        cameras.append(camera)
    bpy.context.view_layer.update()
    return cameras


def capture(scene, folder: Path, what: set[str]) -> None:
    import bpy

    bpy.ops.viewtime.capture(
        folder=str(folder),
        what=what,
        frame_start=FRAMES[0],
        frame_end=FRAMES[1],
        times=TIMES,
        freeze_time=0,
    )


def beside(folder: Path) -> str:
    """The folder relative to the .blend, so that the result may be moved as a whole."""
    import bpy

    return bpy.path.relpath(str(folder))


def run_job(scene, route: str, out: Path) -> None:
    """Press Generate and wait, as the command line does; raises when the job fails."""
    import bpy

    scene.viewtime.output_folder = beside(out)
    scene.viewtime.route = route
    bpy.ops.viewtime.generate(wait=True)
    if scene.viewtime.job_state != "succeeded":
        raise SystemExit(
            f"demo: the {route} job ended {scene.viewtime.job_state}: {scene.viewtime.job_message}"
        )


def cancelled_job(scene, out: Path) -> float:
    """Submit a job, cancel it at its first sign of work; returns the seconds until it ended."""
    from importlib import import_module

    import bpy

    session = import_module(f"{EXTENSION}.session")
    scene.viewtime.output_folder = beside(out)
    scene.viewtime.route = "CAPTURED"
    bpy.ops.viewtime.generate(wait=False)
    deadline = time.monotonic() + 60
    while not scene.viewtime.job_progress and time.monotonic() < deadline:
        session.pump(0.05)
    asked = time.monotonic()
    bpy.ops.viewtime.cancel()
    seconds = time.monotonic() - asked
    if scene.viewtime.job_state != "cancelled":
        raise SystemExit(
            f"demo: the cancelled job ended {scene.viewtime.job_state}: "
            f"{scene.viewtime.job_message}"
        )
    if out.exists():
        raise SystemExit(f"demo: the cancelled job left {out} behind")
    return seconds


def render_splats(scene, objects: list, folder: Path) -> None:
    """Hide what was modelled, show what was made, and render it through the scene's own engine."""
    import bpy

    folder.mkdir(parents=True, exist_ok=True)
    meshes = [ob for ob in scene.objects if ob.type in {"MESH", "CURVE", "META"}]
    bpy.ops.viewtime.prepare_render()
    samples, denoised = scene.cycles.samples, scene.cycles.use_denoising
    # Splats are made of edges: a denoiser smears them.
    scene.cycles.samples, scene.cycles.use_denoising = SPLAT_SAMPLES, False
    for ob in meshes:
        ob.hide_render = True
    scene.render.resolution_x = scene.render.resolution_y = SIZE
    scene.render.resolution_percentage = 100
    for shown in objects:
        for ob in objects:
            ob.hide_render = ob is not shown
        for frame in (FRAMES[0], (FRAMES[0] + FRAMES[1]) // 2):
            scene.frame_set(frame)
            scene.render.filepath = str(folder / f"{shown.name}.{frame:04d}.png")
            bpy.ops.render.render(write_still=True)
    for ob in [*meshes, *objects]:
        ob.hide_render = False
    scene.cycles.samples, scene.cycles.use_denoising = samples, denoised


def scrub(scene, ob) -> list[int]:
    """Walk the timeline and count the splats that Blender shows at each timestep."""
    import bpy

    counts = []
    for frame in range(FRAMES[0], FRAMES[1] + 1, FRAME_STEP):
        scene.frame_set(frame)
        bpy.context.view_layer.update()
        counts.append(len(ob.data.points))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend-python", type=Path, required=True)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if out.exists() and any(out.iterdir()):
        if not (out / ".viewtime-demo").exists():
            print(f"demo: {out} holds something else; choose an empty folder", file=sys.stderr)
            return 2
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / ".viewtime-demo").write_text("made by: python3 dev.py demo\n")
    # Blender reads this once, at import: the demo leaves the user's own Blender settings alone.
    resources = tempfile.TemporaryDirectory(prefix="viewtime-blender-")
    os.environ["BLENDER_USER_RESOURCES"] = resources.name
    os.environ["VIEWTIME_BACKEND_PYTHON"] = str(arguments.backend_python)
    with resources:
        play(out, arguments.backend_python)
    return 0


def play(out: Path, backend_python: Path) -> None:
    """The whole job; raises SystemExit with one line where a step fails."""
    stages = Stages(out / "blender.log")
    started = time.monotonic()
    with stages.stage("install", "build the extension and install it into Blender"):
        archive = build_extension(backend_python)
        import bpy

        install_extension(archive)
        sys.path.insert(0, str(ROOT / "examples"))
        import make_scene
    with stages.stage("scene", "open the example scene"):
        bpy.context.preferences.filepaths.save_version = 0  # no scene.blend1 beside the result
        scene = make_scene.build()
        blend = out / "scene.blend"
        bpy.ops.wm.save_as_mainfile(filepath=str(blend), compress=True)
        scene = bpy.context.scene
        preferences = bpy.context.preferences.addons[EXTENSION].preferences
        preferences.backend_python = str(backend_python)
        preferences.data_dir = str(out / "backend")
        scene.viewtime.capture_size = SIZE
    with stages.stage("rig", "make the rig"):
        bpy.ops.viewtime.rig_arc(count=VIEWS, degrees=ARC_DEGREES)
    captures = out / "captures"
    with stages.stage("capture_references", "capture the fixed-view clip, the freeze-time frames"):
        capture(scene, captures / "references", {"FIXED", "FREEZE", "DEPTH"})
    with stages.stage("capture_grid", "capture the full grid with depth"):
        capture(scene, captures / "grid", {"GRID", "DEPTH"})
    with stages.stage("capture_held_out", "render held-out cameras, which no job sees"):
        capture_held_out(scene, captures / "held_out")
    with stages.stage("backend", "start the backend"):
        bpy.ops.viewtime.backend_start()
    with stages.stage("cancel", "submit a job and cancel it"):
        scene.viewtime.capture_folder = beside(captures / "grid")
        cancel_seconds = cancelled_job(scene, out / "jobs" / "cancelled")
        stages.say(f"   ended {cancel_seconds:.2f} s after the cancel, nothing left behind")
    with stages.stage("job_captured", "captured geometry: splats from pixels, depth and cameras"):
        scene.viewtime.capture_folder = beside(captures / "grid")
        run_job(scene, "CAPTURED", out / "jobs" / "captured")
    with stages.stage("job_generated", "generated: fill the grid, then lift it"):
        scene.viewtime.capture_folder = beside(captures / "references")
        run_job(scene, "GENERATED", out / "jobs" / "generated")
    with stages.stage("import", "scrub the imported sequences"):
        objects = [ob for ob in scene.objects if ob.type == "POINTCLOUD" and ob.viewtime.folder]
        counts = {ob.name: scrub(scene, ob) for ob in objects}
        for name, per_step in counts.items():
            stages.say(f"   {name}: {per_step} splats by timestep")
    with stages.stage("render_splats", "render the splats in Blender"):
        render_splats(scene, objects, out / "renders")
    with stages.stage("save", "save the .blend"):
        scene.frame_set(FRAMES[0])
        bpy.ops.wm.save_as_mainfile(filepath=str(blend), compress=True)
        bpy.ops.viewtime.backend_stop()
    with stages.stage("export", "export numbered PLY files with the farm's command line"):
        export_ply(blend, objects, out / "ply")
    (out / "demo.json").write_text(
        json.dumps(
            {
                "seconds": stages.seconds,
                "cancel_seconds": round(cancel_seconds, 3),
                "splats_by_timestep": counts,
                "blend_bytes": blend.stat().st_size,
                "blender": bpy.app.version_string,
                "seconds_before_evaluation": round(time.monotonic() - started, 1),
            },
            indent=1,
        )
    )
    stages.close()
    print("-- compare with what Blender rendered", flush=True)
    subprocess.run([str(backend_python), "-m", "viewtime.evaluation.demo", str(out)], check=True)


def capture_held_out(scene, folder: Path) -> None:
    """Truth at the held-out cameras, as a Capture of its own whose views are those cameras."""
    from importlib import import_module

    render = import_module(f"{EXTENSION}.capture.render")
    render.render_cells(
        scene,
        held_out_cameras(scene),
        [FRAMES[0] + FRAME_STEP * t for t in HELD_OUT_TIMES],
        folder,
        depth=False,
    )


def export_ply(blend: Path, objects: list, folder: Path) -> None:
    """One Blender process for each object, as a farm would start it."""
    for ob in objects:
        answer = subprocess.run(
            [
                sys.executable,
                str(ROOT / "examples" / "farm_export.py"),
                str(blend),
                "--object",
                ob.name,
                "--out",
                str(folder / ob.name),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        if answer.returncode:
            raise SystemExit(f"demo: the export of {ob.name} failed\n{answer.stderr}")


if __name__ == "__main__":
    # Blender 4.5 as a module can hang in its own exit handlers: see farm_export.leave.
    from farm_export import leave

    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code)
