# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a virtual environment and installs the backend into it with pip, in a thread of its own.
It never leaves a half-made environment in use, and never starts without the person's consent."""

from __future__ import annotations

import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from . import BackendError
from .find import INSTALLED, venv_python
from .process import clean_environment, quiet

LINES_KEPT = 200
# Made first and removed last: a folder with it may be removed by us, whatever else it lacks.
OURS = ".viewtime-environment"


@dataclass(frozen=True)
class Order:
    """What to install, where.

    folder: of the virtual environment, made anew. package: "viewtime==1.2.3", or the path of a
    wheel, an sdist or a checkout. offline: nothing may be downloaded. dependencies: with torch and
    the rest; without them only the package itself. python: the interpreter to make the
    environment from.
    """

    folder: Path
    package: str
    offline: bool = False
    dependencies: bool = True
    index: str = ""
    python: str = sys.executable

    def commands(self) -> list[list[str]]:
        """What is run, one after the other."""
        inside = str(venv_python(self.folder))
        pip = [inside, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        pip += ["--progress-bar", "off"]
        if self.offline:
            pip += ["--no-index"]
            source = Path(self.package)
            if source.is_file():
                pip += ["--find-links", str(source.parent)]
        elif self.index:
            pip += ["--extra-index-url", self.index]
        if not self.dependencies:
            pip += ["--no-deps"]
        return [
            [self.python, "-I", "-m", "venv", str(self.folder)],
            [*pip, self.package],
            [inside, "-I", "-m", "viewtime", "--version"],
        ]


class Installer:
    """One installation in a thread. state: "running", "done", "failed" or "cancelled"."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.state, self.error = "running", ""
        self._lines: collections.deque[str] = collections.deque(maxlen=LINES_KEPT)
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="viewtime install", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def cancel(self) -> None:
        """Stop, and leave nothing behind; returns at once."""
        self._cancelled.set()
        with self._lock:
            if self._process is not None:
                _kill(self._process)

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it has ended; for scripts, which have no timer."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def lines(self, count: int) -> list[str]:
        """The last lines that were said."""
        with self._lock:
            return list(self._lines)[-count:]

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        folder = self.order.folder
        try:
            remove(folder)
            folder.mkdir(parents=True)
            (folder / OURS).touch()
            for command in self.order.commands():
                self._command(command)
            note = {"package": self.order.package, "python": self.order.python}
            (folder / INSTALLED).write_text(json.dumps(note), encoding="utf-8")
        except (BackendError, OSError) as error:
            try:
                remove(folder)
            except (BackendError, OSError) as left:
                self._say(f"{folder} could not be removed: {left}")
            self.error = str(error)
            self.state = "cancelled" if self._cancelled.is_set() else "failed"
            return
        self.state = "done"

    def _command(self, command: list[str]) -> None:
        if self._cancelled.is_set():
            raise BackendError("cancelled")
        self._say(
            "> " + " ".join(Path(command[0]).name if n == 0 else w for n, w in enumerate(command))
        )
        environment = clean_environment()
        if self.order.offline:
            # Neither variables nor configuration files may name a place to download from.
            environment = {k: v for k, v in environment.items() if not k.startswith("PIP_")}
            environment["PIP_CONFIG_FILE"] = os.devnull
        with self._lock:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=environment,
                cwd=os.path.expanduser("~"),
                **quiet(),
            )
            process = self._process
        if self._cancelled.is_set():
            _kill(process)
        assert process.stdout is not None
        for line in process.stdout:
            self._say(line.rstrip())
        code = process.wait()
        process.stdout.close()
        if self._cancelled.is_set():
            raise BackendError("cancelled")
        if code:
            raise BackendError(self._why(command, code))

    def _why(self, command: list[str], code: int) -> str:
        said = [line for line in self.lines(20) if line.strip()]
        errors = [line for line in said if "error" in line.lower()] or said
        last = errors[-1] if errors else "it said nothing"
        if "venv" in command or "ensurepip" in " ".join(said):
            return (
                f"{command[0]} cannot make a virtual environment ({last}); choose another Python "
                "of version 3.11 or later, or install its venv package"
            )
        return f"pip ended with code {code}: {last}"

    def _say(self, line: str) -> None:
        with self._lock:
            self._lines.append(line)


def _kill(process: subprocess.Popen[str]) -> None:
    """End it and what it started: pip builds packages in processes of its own."""
    if process.poll() is not None:
        return
    if os.name == "nt":
        process.kill()
    else:
        # It leads a group of its own, see `quiet`.
        os.killpg(process.pid, signal.SIGKILL)


def remove(folder: Path) -> None:
    """Remove an installation that we made. Raises BackendError for a folder that is not ours."""
    if not folder.exists():
        return
    if any(folder.iterdir()) and not (folder / OURS).is_file():
        raise BackendError(f"{folder} holds something that this extension did not make")
    # First of all what makes it count as an installation.
    (folder / INSTALLED).unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.name == OURS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (folder / OURS).unlink(missing_ok=True)
    folder.rmdir()
