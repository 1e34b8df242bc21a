# SPDX-License-Identifier: Apache-2.0
"""The steps of the window test in the order of work. Each presses, waits until Blender's state and
the disk say that it worked, and takes a picture; none asks Viewtime to do what a button does."""

from __future__ import annotations

import json
import time
from pathlib import Path

from screen import Failure, Screen

VIEWS, TIMES, SIZE = 4, 5, 96
F12 = "96"  # its key code: by its name, xdotool holds Alt as well
FILE_BROWSER = [(300, 1600), (640, 1500), (640, 950), (640, 400)]  # one lies in it
ARC_COUNT = 67  # pixels below the top of "Rig on an Arc": the number of cameras
RENDER_WINDOW = (300, 200)  # a place in it: from the left, up from the bottom of the 3D view
WIDER = 190  # pixels by which the sidebar is dragged


def play(screen: Screen) -> None:
    for step in (open_tab, rig, reference, capture, backend, cancel, generate, look):
        tell(step.__name__, step, screen)
    for step in (scrub, render, export, farm, preferences):
        tell(step.__name__, step, screen)


def tell(name: str, step, screen: Screen) -> None:
    started = time.monotonic()
    print(f"== {name}", flush=True)
    step(screen)
    print(f"   ok, {time.monotonic() - started:.0f} s", flush=True)


def open_tab(screen: Screen) -> None:
    screen.wait("Blender's window", lambda s: s.get("regions"), 90)
    before = screen.state()["regions"]["view"][3]
    screen.over_view()
    screen.key("ctrl+space")
    screen.wait("the 3D view alone", lambda s: s["regions"]["view"][3] > before)
    screen.over_view()
    screen.key("n")
    state = screen.wait("the sidebar", lambda s: s["regions"]["sidebar"][2] > 50)
    left, top, width, _height = state["regions"]["sidebar"]
    for y in range(top + 30, top + 600, 25):
        screen.click(left + width - 9, y)
        time.sleep(0.3)
        if screen.state()["tab"] == "Viewtime":
            break
    screen.wait("the tab Viewtime", lambda s: s["tab"] == "Viewtime", 5)
    widen(screen)
    screen.ask("small")
    screen.ask("from_camera")
    screen.over_view()
    screen.shot("tab")


def widen(screen: Screen) -> None:
    """Drag the sidebar's edge, so that its sentences have room."""
    for inside in (6, 7, 5, 8, 4):
        left, top, width, _height = screen.state()["regions"]["sidebar"]
        screen.drag(left + inside, top + 300, left + inside - WIDER)
        time.sleep(0.5)
        if screen.state()["regions"]["sidebar"][2] > width + 50:
            return
    raise Failure("the sidebar did not become wider")


def rig(screen: Screen) -> None:
    screen.press("viewtime.rig_arc", (0.25,))
    screen.wait("a rig of 8", lambda s: len(s["rig"]) == 8)
    screen.over_view()
    for _ in range(4):  # "Rig on an Arc", in the 3D view's corner: its header opens it
        left, top, width, height = screen.state()["regions"]["redo"]
        if height > 60:
            break
        screen.click(left + 20, top + height // 2)
        time.sleep(1.5)
    screen.shot("rig_arc")
    screen.click(left + int(width * 0.7), top + ARC_COUNT, times=2)
    time.sleep(0.3)
    screen.xdotool("key", "ctrl+a", "type", str(VIEWS))
    screen.key("Return")
    screen.wait(f"a rig of {VIEWS}", lambda s: len(s["rig"]) == VIEWS)
    screen.over_view()
    screen.shot("rig")


def reference(screen: Screen) -> None:
    screen.type_into("viewtime.times", str(TIMES))
    screen.wait("the number of times", lambda s: s["times"] == TIMES)
    screen.open_above("viewtime.prompt", "viewtime.capture_size")
    screen.type_into("viewtime.capture_size", str(SIZE))
    screen.wait("the size", lambda s: s["capture_size"] == SIZE)
    screen.press("viewtime.capture_probe")
    screen.wait("the time of one frame", lambda s: s["timed"] > 0, 120)
    screen.over_view()
    screen.shot("reference")


def capture(screen: Screen) -> None:
    screen.press("viewtime.capture(")
    screen.wait("the capture's begin", lambda s: s["capturing"], 20)
    screen.over_view()
    screen.shot("capturing")
    screen.wait("the capture's end", lambda s: not s["capturing"], 240)
    folder = screen.out / "viewtime" / "capture"
    cells = json.loads((folder / "capture.json").read_text())["cells"]
    if len(cells) != VIEWS + TIMES - 1:
        raise Failure(f"{folder} holds {len(cells)} frames, not {VIEWS + TIMES - 1}")
    screen.over_view()
    screen.shot("captured")


def backend(screen: Screen) -> None:
    screen.press("viewtime.backend_start", (-60, -75, -45))
    screen.wait("a running backend", lambda s: "running" in s["backend"], 60)
    screen.wait("what the machine is", lambda s: s["machine_ready"], 120)
    screen.wait("an estimate", lambda s: s["estimates"], 60)
    screen.over_view()
    screen.shot("estimate")


def cancel(screen: Screen) -> None:
    screen.press("viewtime.generate(")
    screen.wait("a running job", lambda s: s["job"] == "running", 90)
    place = screen.find("viewtime.cancel(", (-40, -55, -30))
    if screen.state()["job"] != "running":
        raise Failure("the job ended before it could be cancelled")
    screen.click(*place)
    clicked = time.monotonic()
    screen.wait("the job's cancellation", lambda s: s["job"] == "cancelled", 10)
    print(f"   cancelled {time.monotonic() - clicked:.1f} s after the click", flush=True)
    left = [path for path in (screen.out / "viewtime").rglob("run*") if path.exists()]
    if left:
        raise Failure(f"the cancelled job left behind: {left}")
    if screen.state()["sequences"]:
        raise Failure("the cancelled job left an object in the scene")
    screen.over_view()
    screen.shot("cancelled")


def generate(screen: Screen) -> None:
    screen.press("viewtime.generate(")
    screen.wait("a running job", lambda s: s["job"] == "running", 90)
    screen.over_view()
    screen.wait("a picture of the grid, or the end", lambda s: s["picture"] or done(s), 300)
    time.sleep(1.0)
    screen.shot("generating")
    state = screen.wait("the job's end", done, 900)
    if state["job"] != "succeeded":
        raise Failure(f"the job ended as {state['job']}: {state['job_message']}")
    screen.wait("splats in the scene", lambda s: s["splats"] > 100, 20)
    steps = sorted((screen.out / "viewtime" / "run" / "splats").rglob("*"))
    if len([path for path in steps if path.is_file()]) <= TIMES:
        raise Failure(f"too few files of splats: {steps}")
    screen.over_view()
    screen.shot("generated")


def done(state: dict) -> bool:
    return state["job"] in ("succeeded", "failed", "interrupted", "cancelled")


def look(screen: Screen) -> None:
    """Splats alone, and the panels about how they are drawn."""
    screen.ask("hide_meshes")
    screen.over_view()
    screen.key("n")
    time.sleep(2)
    screen.shot("splats")
    screen.key("n")
    screen.wait("the sidebar", lambda s: s["regions"]["sidebar"][2] > 50)
    screen.press("viewtime.prepare_render")
    screen.wait("enough transparent bounces", lambda s: s["bounces"] >= 128)
    screen.over_view()
    time.sleep(1)
    screen.shot("result")


def scrub(screen: Screen) -> None:
    screen.key("ctrl+space")
    state = screen.wait("the timeline", lambda s: "timeline" in s["regions"])
    top, (first, last) = state["regions"]["timeline"][1], state["timeline"]
    before = len(state["seen"])
    screen.drag(first, top + 10, last, steps=16)
    time.sleep(1)
    state = screen.state()
    frames = {frame for frame, _ in state["seen"][before:]}
    pictures = {round(checksum, 1) for _, checksum in state["seen"][before:]}
    if len(frames) < 3 or len(pictures) < 2:
        raise Failure(f"scrubbing showed the frames {frames} with {len(pictures)} sets of splats")
    screen.shot("scrubbed")


def render(screen: Screen) -> None:
    before = screen.state()["renders"]
    screen.over_view()
    screen.key(F12)
    screen.wait("the render's end", lambda s: s["renders"] > before, 300)
    time.sleep(1.5)
    screen.shot("render_window")
    mean, deviation = screen.ask("picture", str(screen.out / "render.png"))
    if deviation < 0.05:
        raise Failure(f"the render shows nothing: mean {mean:.3f}, deviation {deviation:.3f}")
    screen.move(RENDER_WINDOW[0], screen.state()["regions"]["view"][3] - RENDER_WINDOW[1])
    screen.key("Escape")
    screen.wait("the main window alone", lambda s: s["windows"] == 1, 10)


def export(screen: Screen) -> None:
    screen.over_view()
    screen.key("ctrl+s")
    before = screen.state()["regions"]["view"][3]
    screen.key("ctrl+space")
    screen.wait("the 3D view alone", lambda s: s["regions"]["view"][3] > before)
    screen.press("viewtime.export_ply(")
    folder = screen.out / "viewtime" / "ply"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.ply"))) < TIMES:
        if time.monotonic() > deadline:
            raise Failure(f"no PLY files in {folder}")
        time.sleep(0.2)
    screen.over_view()
    screen.shot("exported")
    screen.press("viewtime.export_command(")
    time.sleep(0.5)
    line = screen.ask("clipboard")
    if "viewtime export" not in line:
        raise Failure(f"the clipboard holds {line!r}, not the command")


def farm(screen: Screen) -> None:
    screen.scroll(5, 40)
    x, y = screen.find("viewtime.export_command(", (0.7,))
    left = screen.state()["regions"]["sidebar"][0]
    for below in (36, 30, 42, 25):  # the header of "Render Farm"
        screen.click(left + 90, y + below)
        time.sleep(0.5)
        screen.scroll(5, 40)
        x, y = screen.find("viewtime.export_command(", (0.7,))
        try:
            place = screen.find_below("viewtime.export_farm(", y + 20, 200)
            break
        except Failure:
            continue
    else:
        raise Failure("the panel Render Farm did not open")
    screen.over_view()
    screen.shot("farm")
    screen.click(*place)
    screen.wait("the file browser", lambda s: s["windows"] == 2, 20)
    job = screen.out / "toys_export.json"
    for x, y in FILE_BROWSER * 2:
        time.sleep(1)
        screen.move(x, y)
        screen.key("Return")
        time.sleep(1)
        if job.exists():
            break
    else:
        raise Failure(f"the file browser wrote no {job.name}")
    if "specificationVersion" not in json.loads(job.read_text()):
        raise Failure(f"{job.name} is no OpenJD template")
    screen.wait("the main window alone", lambda s: s["windows"] == 1, 10)


def preferences(screen: Screen) -> None:
    screen.ask("call", "preferences_show")
    screen.wait("the preferences", lambda s: s["windows"] == 2, 10)
    time.sleep(2)
    screen.shot("preferences")
    if not Path(screen.out / "toys.blend").exists():
        raise Failure("the .blend is gone")
