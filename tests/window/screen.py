# SPDX-License-Identifier: Apache-2.0
"""A screen without a monitor, Blender's window on it, and a hand that clicks and types.
It finds buttons by what Blender says lies under the pointer, never by remembered places."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 1280, 1900
PROGRAMS = ("blender", "Xvfb", "xdotool", "import")
ROW = 9  # pixels from one look to the next; a button is 20 high


class Failure(Exception):
    """A step did nothing, or the wrong thing; the message says what was waited for."""


def programs_missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Screen:
    """Xvfb and Blender, from start to end."""

    def __init__(self, out: Path, blend: Path, environment: dict[str, str]) -> None:
        self.out, self.number, self.count = out, 0, 0
        self.last = (WIDTH, 180)
        display = next(n for n in range(90, 200) if not Path(f"/tmp/.X{n}-lock").exists())
        self.environment = {
            **environment,
            "DISPLAY": f":{display}",
            "LIBGL_ALWAYS_SOFTWARE": "1",
            "VIEWTIME_WINDOW_FOLDER": str(out),
        }
        size = f"{WIDTH}x{HEIGHT}x24"
        command = ["Xvfb", f":{display}", "-screen", "0", size, "+extension", "GLX", "-nolisten"]
        with (out / "xvfb.log").open("w") as log:
            self.xvfb = subprocess.Popen([*command, "tcp"], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not Path(f"/tmp/.X11-unix/X{display}").exists():
            if time.monotonic() > deadline or self.xvfb.poll() is not None:
                raise Failure(f"Xvfb did not start: see {out}/xvfb.log")
            time.sleep(0.05)
        geometry = ["--window-geometry", "0", "0", str(WIDTH), str(HEIGHT)]
        with (out / "blender.log").open("w") as log:
            self.blender = subprocess.Popen(
                ["blender", str(blend), *geometry, "-P", str(HERE / "watcher.py")],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def close(self) -> None:
        for process in (self.blender, self.xvfb):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    # ---- what is there ----

    def state(self) -> dict[str, Any]:
        if self.blender.poll() is not None:
            raise Failure(f"Blender ended with {self.blender.returncode}: see blender.log")
        try:
            state = json.loads((self.out / "state.json").read_text())
        except FileNotFoundError:
            return {}
        if "error" in state:
            raise Failure(f"inside Blender: {state['error']}")
        return state

    def wait(
        self, what: str, holds: Callable[[dict[str, Any]], Any], seconds: float = 30.0
    ) -> dict[str, Any]:
        """The first state for which it holds. Raises Failure, naming what was waited for."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.state()
            if state and holds(state):
                return state
            if time.monotonic() > deadline:
                state.pop("seen", None)
                raise Failure(f"{what}: not so after {seconds:g} s. The state is {state}")
            time.sleep(0.05)

    def ask(self, what: str, argument: str = "", seconds: float = 60.0) -> Any:
        """Have the watcher do one named thing; its answer."""
        self.number += 1
        number = self.number
        part = self.out / "ask.json.part"
        part.write_text(json.dumps({"number": number, "what": what, "argument": argument}))
        os.replace(part, self.out / "ask.json")
        return self.wait(f"an answer to '{what}'", lambda s: s["answered"] == number, seconds)[
            "answer"
        ]

    # ---- the hand ----

    def xdotool(self, *words: object) -> None:
        subprocess.run(["xdotool", *map(str, words)], env=self.environment, check=True)

    def move(self, x: int, y: int) -> None:
        # Two moves: a button becomes active when the pointer arrives and stays a moment.
        self.xdotool("mousemove", x - 1, y, "sleep", 0.03, "mousemove", x, y)

    def click(self, x: int, y: int, times: int = 1) -> None:
        self.move(x, y)
        time.sleep(0.15)
        for _ in range(times):
            self.xdotool("mousedown", 1, "sleep", 0.06, "mouseup", 1, "sleep", 0.06)

    def drag(self, x: int, y: int, to_x: int, steps: int = 8) -> None:
        self.move(x, y)
        self.xdotool("sleep", 0.3, "mousedown", 1, "sleep", 0.2)
        for i in range(steps + 1):
            self.xdotool("mousemove", x + (to_x - x) * i // steps, y, "sleep", 0.25)
        self.xdotool("mouseup", 1)

    def key(self, keys: str) -> None:
        self.xdotool("key", keys)

    def over_view(self) -> None:
        """The pointer into the 3D view, away from every button."""
        x, y, width, height = self.state()["regions"]["view"]
        self.move(x + width // 4, y + height // 2)
        time.sleep(0.3)

    # ---- buttons of the sidebar ----

    def find(self, name: str, across: Sequence[float] = (0.35,)) -> tuple[int, int]:
        """The place of the button whose operator or data path holds `name`.

        across: where to look, as parts of the sidebar's width; a negative number is pixels from
        its right edge. Rows near the last button are looked at first. Raises Failure.
        """
        for wheel in (None, 5, 5, 4, 4, 4):  # as it is, further down, back up
            if wheel:
                self.scroll(wheel, 12)
            left, top, width, height = self.state()["regions"]["sidebar"]
            columns = [int(left + (a * width if a >= 0 else width + a)) for a in across]
            rows = range(top + 8, top + height - 8, ROW)
            for y in sorted(rows, key=lambda y: abs(y - self.last[1])):
                for x in columns:
                    self.move(x, y)
                    if name in str(self.ask("under")):
                        self.last = (x, y)
                        return x, y
        raise Failure(f"no button '{name}' was found in the sidebar")

    def scroll(self, wheel: int, clicks: int) -> None:
        """Turn the wheel over the sidebar: 4 is up, 5 is down."""
        left, top, _width, height = self.state()["regions"]["sidebar"]
        self.move(left + 90, top + height // 2)
        self.xdotool("click", "--repeat", clicks, "--delay", 40, wheel)
        time.sleep(0.8)

    def press(self, name: str, across: Sequence[float] = (0.35,)) -> None:
        self.click(*self.find(name, across))

    def type_into(self, name: str, text: str) -> None:
        """Double click a field, and type."""
        self.click(*self.find(name, (0.7,)), times=2)
        time.sleep(0.3)
        self.xdotool("key", "ctrl+a", "type", text)
        self.key("Return")

    def open_above(self, name: str, wanted: str) -> None:
        """Click the header that lies above the button `name`, until the panel shows `wanted`."""
        x, y = self.find(name, (0.7,))
        for rows in (27, 32, 38, 22, 45, 52):
            self.click(self.state()["regions"]["sidebar"][0] + 90, y - rows)
            time.sleep(0.4)
            try:
                self.find_below(wanted, y - rows, 160)
                return
            except Failure:
                continue
        raise Failure(f"no header above '{name}' opened a panel with '{wanted}'")

    def find_below(self, name: str, y: int, pixels: int) -> tuple[int, int]:
        left, _top, width, _height = self.state()["regions"]["sidebar"]
        for row in range(y, y + pixels, ROW):
            self.move(left + int(0.7 * width), row)
            if name in str(self.ask("under")):
                self.last = (left + int(0.7 * width), row)
                return self.last
        raise Failure(f"'{name}' is not within {pixels} pixels below {y}")

    # ---- pictures ----

    def shot(self, name: str) -> Path:
        self.count += 1
        time.sleep(1.2)  # panels that open, and tooltips that go
        path = self.out / f"{self.count:02d}_{name}.png"
        subprocess.run(["import", "-window", "root", str(path)], env=self.environment, check=True)
        print(f"   {path.name}", flush=True)
        return path
