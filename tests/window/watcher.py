# SPDX-License-Identifier: Apache-2.0
"""Runs inside Blender's window: writes what Viewtime's state is, and which button lies under the
pointer. It presses nothing itself and does only what is asked for by name in a file."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import bpy

PACKAGE = "bl_ext.user_default.viewtime"
FOLDER = Path(os.environ["VIEWTIME_WINDOW_FOLDER"])
SECONDS = 0.05
TYPES = {"view": ("VIEW_3D", "WINDOW"), "sidebar": ("VIEW_3D", "UI"), "redo": ("VIEW_3D", "HUD")}
TYPES["timeline"] = ("DOPESHEET_EDITOR", "WINDOW")

seen: list[list[float]] = []  # [frame, checksum of the positions shown] of every frame change
renders = 0
answered = 0
answer: object = ""


def regions() -> dict[str, list[int]]:
    """Name to [left, top, width, height] in pixels of the first window, from its top left."""
    window = bpy.context.window_manager.windows[0]
    found = {}
    for name, (area_type, region_type) in TYPES.items():
        for area in window.screen.areas:
            if area.type == area_type:
                for region in area.regions:
                    if region.type == region_type:
                        top = window.height - region.y - region.height
                        found[name] = [region.x, top, region.width, region.height]
    return found


def timeline_places() -> list[int]:
    """Pixels from the window's left at which the timeline shows the scene's first and last frame"""
    scene, window = bpy.context.scene, bpy.context.window_manager.windows[0]
    for area in window.screen.areas:
        for region in area.regions:
            if (area.type, region.type) == TYPES["timeline"]:
                to = region.view2d.view_to_region
                frames = (scene.frame_start, scene.frame_end)
                return [region.x + to(frame, 0, clip=False)[0] for frame in frames]
    return []


def under(_argument: str) -> str:
    """The operator or the property of the button under the pointer, "" where there is none."""
    manager = bpy.context.window_manager
    window = manager.windows[0]
    for area in window.screen.areas:
        for region in area.regions:
            if area.type != "VIEW_3D" or region.type != "UI":
                continue
            with bpy.context.temp_override(window=window, area=area, region=region):
                for copy in (bpy.ops.ui.copy_python_command_button, data_path):
                    manager.clipboard = ""
                    try:
                        copy()
                    except RuntimeError:  # its poll says: no such button
                        continue
                    if manager.clipboard:
                        return manager.clipboard
    return ""


def data_path() -> None:
    bpy.ops.ui.copy_data_path_button(full_path=True)


def hide_meshes(_argument: str) -> str:
    """What was captured goes out of sight, so that pictures show splats alone."""
    hidden = [ob for ob in bpy.context.scene.objects if ob.type == "MESH"]
    for ob in hidden:
        ob.hide_render = True
        ob.hide_set(True)
    return str(len(hidden))


def small(_argument: str) -> str:
    """A render that does not take long."""
    scene = bpy.context.scene
    scene.render.resolution_x = scene.render.resolution_y = 320
    scene.cycles.samples = 8
    return ""


def call(argument: str) -> str:
    """Call one operator of Viewtime by name, as its button would, in the 3D view."""
    window = bpy.context.window_manager.windows[0]
    area = next(area for area in window.screen.areas if area.type == "VIEW_3D")
    with bpy.context.temp_override(window=window, area=area):
        name, _, words = argument.partition(" ")
        return str(getattr(bpy.ops.viewtime, name)("INVOKE_DEFAULT", **json.loads(words or "{}")))


def clipboard(_argument: str) -> str:
    return bpy.context.window_manager.clipboard


def from_camera(_argument: str) -> str:
    """Look through the scene's camera in the 3D view."""
    for area in bpy.context.window_manager.windows[0].screen.areas:
        if area.type == "VIEW_3D":
            area.spaces.active.region_3d.view_perspective = "CAMERA"
            area.spaces.active.overlay.show_relationship_lines = False
    return ""


def picture(path: str) -> list[float]:
    """Save the finished render; [mean, standard deviation] of its colours."""
    import numpy as np

    bpy.data.images["Render Result"].save_render(path)
    image = bpy.data.images.load(path)
    pixels = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(pixels)
    bpy.data.images.remove(image)
    colours = pixels.reshape(-1, 4)[:, :3]
    return [float(colours.mean()), float(colours.std())]


ASKED = {
    function.__name__: function
    for function in (under, hide_meshes, small, call, clipboard, from_camera, picture)
}


def shown() -> tuple[int, float]:
    """(splats, checksum of their positions) of the sequence objects in the scene."""
    import numpy as np

    count, checksum = 0, 0.0
    for ob in bpy.context.scene.objects:
        if ob.type == "POINTCLOUD" and ob.viewtime.sequence_id:
            positions = ob.data.attributes["position"].data
            values = np.empty(3 * len(positions), np.float32)
            positions.foreach_get("vector", values)
            count += len(positions)
            checksum += float(np.abs(values).sum())
    return count, checksum


def state() -> dict:
    scene, manager = bpy.context.scene, bpy.context.window_manager
    sidebar = next(
        region
        for area in manager.windows[0].screen.areas
        if area.type == "VIEW_3D"
        for region in area.regions
        if region.type == "UI"
    )
    settings = scene.viewtime
    count, checksum = shown()
    link = sys.modules[f"{PACKAGE}.link"]
    return {
        "windows": len(manager.windows),
        "regions": regions(),
        "timeline": timeline_places(),
        "tab": sidebar.active_panel_category if sidebar.width > 1 else "",
        "rig": [item.camera.name for item in settings.rig if item.camera],
        "times": settings.times,
        "capture_size": settings.capture_size,
        "capturing": settings.capture_message,
        "timed": settings.capture_speed.rendered_seconds,
        "backend": link.in_words(),
        "machine_ready": bool(link.known.machine.get("ready")),
        "estimates": len(link.known.estimates),
        "problem": link.known.problem,
        "job": settings.job_state,
        "job_message": settings.job_message,
        "progress": settings.job_progress,
        "picture": bool(sys.modules[f"{PACKAGE}.picture"].icon_ids()),
        "sequences": [ob.name for ob in scene.objects if ob.viewtime.sequence_id],
        "splats": count,
        "checksum": checksum,
        "frame": scene.frame_current,
        "seen": seen[-200:],
        "renders": renders,
        "bounces": scene.cycles.transparent_max_bounces,
    }


def tick() -> float:
    global answered, answer
    told: dict = {}
    try:
        question = FOLDER / "ask.json"
        if question.exists():
            asked = json.loads(question.read_text())
            question.unlink()
            answer = ASKED[asked["what"]](asked["argument"])
            answered = asked["number"]
        told = state()
    except Exception:  # what goes wrong here must be told, not end the timer
        told = {"error": traceback.format_exc()}
    told |= {"answered": answered, "answer": answer}
    part = FOLDER / "state.json.part"
    part.write_text(json.dumps(told))
    os.replace(part, FOLDER / "state.json")
    return SECONDS


@bpy.app.handlers.persistent
def frame_changed(scene, _depsgraph=None) -> None:
    seen.append([scene.frame_current, shown()[1]])


@bpy.app.handlers.persistent
def rendered(*_arguments) -> None:
    global renders
    renders += 1


bpy.app.handlers.frame_change_post.append(frame_changed)
bpy.app.handlers.render_complete.append(rendered)
bpy.app.timers.register(tick, first_interval=1.0, persistent=True)
