#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One door to the project for people and machines: sets up both environments, then runs a job.
Needs nothing but Python's standard library; never touches anything outside this folder but
Debian's package manager, and that only when Blender's own system libraries are absent."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BACKEND_VENV = ROOT / ".venv"
# Shared libraries that Blender links and that a bare Debian or Ubuntu lacks.
SYSTEM_PACKAGES = (
    "libx11-6 libxrender1 libxxf86vm1 libxfixes3 libxi6 libxkbcommon0 libsm6 libice6 libgl1 "
    "libgomp1 libegl1"
).split()


class SetupError(Exception):
    """Set-up cannot go on; the message says what the person can do."""


@dataclass(frozen=True)
class Blender:
    """One Blender as a Python module: its suite, its environment, its pins, its only Python."""

    suite: str
    venv: Path
    pins: Path
    python: tuple[int, int]


# Each bpy wheel exists for one Python alone. The first is the minimum, and the one that the demo
# runs in.
BLENDERS = (
    Blender("blender", ROOT / ".venv-blender", ROOT / "requirements/blender.txt", (3, 11)),
    Blender(
        "blender-5.0", ROOT / ".venv-blender-5.0", ROOT / "requirements/blender-5.0.txt", (3, 11)
    ),
    Blender(
        "blender-5.2", ROOT / ".venv-blender-5.2", ROOT / "requirements/blender-5.2.txt", (3, 13)
    ),
)
SUITES = ("lint", "types", "imports", "backend", *(blender.suite for blender in BLENDERS))


def venv_python(venv: Path) -> Path:
    """The interpreter inside a virtual environment, on any platform."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(command: list[str | Path], **kwargs) -> None:
    """Run a command, echo it, and raise CalledProcessError when it fails."""
    print("+", " ".join(str(part) for part in command), flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, **kwargs)


def find_python(blender: Blender) -> Path:
    """A Python interpreter of exactly the minor version that this Blender needs."""
    version = blender.python
    if sys.version_info[:2] == version:
        return Path(sys.executable)
    name = f"{version[0]}.{version[1]}"
    probes: list[list[str]] = [[f"python{name}"]]
    if os.name == "nt":
        probes.insert(0, ["py", f"-{name}"])
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    probes += [[str(path)] for path in sorted(pyenv.glob(f"{name}*/bin/python"))]
    for probe in probes:
        if shutil.which(probe[0]) is None:
            continue
        answer = subprocess.run(
            [*probe, "-c", "import sys; print(sys.executable); print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
        )
        lines = answer.stdout.split("\n")
        if answer.returncode == 0 and lines[1].split() == [str(part) for part in version]:
            return Path(lines[0])
    raise SetupError(
        f"Python {name} was not found: Blender {blender_version(blender)} as a module needs it. "
        f"Install Python {name} and run this command again."
    )


def blender_version(blender: Blender) -> str:
    for line in blender.pins.read_text().splitlines():
        if line.startswith("bpy=="):
            return line.removeprefix("bpy==")
    raise SetupError(f"{blender.pins.relative_to(ROOT)} names no bpy version")


def debian_install(packages: list[str]) -> bool:
    """Install Debian packages when this is Debian and we are allowed to; False otherwise."""
    if shutil.which("apt-get") is None:
        return False
    prefix: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None or subprocess.run(["sudo", "-n", "true"]).returncode:
            return False
        prefix = ["sudo", "-n"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-q"], ["install", "-y", "-q", *packages]):
        if subprocess.run([*prefix, "apt-get", *arguments], env=environment).returncode:
            return False
    return True


def make_venv(venv: Path, python: Path) -> None:
    if venv_python(venv).exists():
        return
    has_venv = [str(python), "-c", "import ensurepip, venv"]
    if subprocess.run(has_venv, capture_output=True).returncode:
        asked = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        package = f"python{version}-venv"
        if not debian_install([package]):
            raise SetupError(f"Python's venv module is incomplete: install {package} first.")
    run([python, "-m", "venv", venv])
    run([venv_python(venv), "-m", "pip", "install", "-q", "--upgrade", "pip"])


def fingerprint(*files: Path) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def setup_backend() -> Path:
    """The backend's environment, made or brought up to date. Returns its interpreter."""
    python = venv_python(BACKEND_VENV)
    pins = ROOT / "requirements" / "backend.txt"
    stamp, wanted = BACKEND_VENV / "viewtime.stamp", fingerprint(ROOT / "pyproject.toml", pins)
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print("Setting up the backend's environment (a few minutes the first time)", flush=True)
    make_venv(BACKEND_VENV, Path(sys.executable))
    pip: list[str | Path] = [python, "-m", "pip", "install", "-q", "--retries", "10"]
    # torch goes first: whatever else wants torch then finds it and pulls no second build.
    run([*pip, "torch==2.13.0"])
    run([*pip, "-c", pins, "hatchling", "editables"])
    run([*pip, "-c", pins, "--no-build-isolation", "-e", ".[dev]"])
    stamp.write_text(wanted)
    return python


def setup_blender(blender: Blender = BLENDERS[0]) -> Path:
    """Blender's environment: bpy, and nothing of the backend. Returns its interpreter."""
    python = venv_python(blender.venv)
    stamp, wanted = blender.venv / "viewtime.stamp", fingerprint(blender.pins)
    if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
        found = find_python(blender)
        version = blender_version(blender)
        print(
            f"Setting up Blender {version} as a Python module (400 MB the first time)", flush=True
        )
        make_venv(blender.venv, found)
        run([python, "-m", "pip", "install", "-q", "--retries", "10", "-r", blender.pins])
        stamp.write_text(wanted)
    check_blender(python)
    return python


def check_blender(python: Path) -> None:
    """Import bpy once; where a system library is absent, install it or say which."""
    probe = [str(python), "-c", "import bpy; print(bpy.app.version_string)"]
    answer = subprocess.run(probe, capture_output=True, text=True)
    if answer.returncode == 0:
        return
    reason = (answer.stderr.strip().splitlines() or ["no message"])[-1]
    if "cannot open shared object file" in answer.stderr and debian_install(SYSTEM_PACKAGES):
        answer = subprocess.run(probe, capture_output=True, text=True)
        if answer.returncode == 0:
            return
        reason = (answer.stderr.strip().splitlines() or ["no message"])[-1]
    raise SetupError(
        f"Blender as a module does not start: {reason}\n"
        f"On Debian or Ubuntu: apt-get install {' '.join(SYSTEM_PACKAGES)}"
    )


def command_setup(_: argparse.Namespace) -> int:
    print(f"backend: {setup_backend()}\nblender: {setup_blender()}")
    return 0


def command_demo(arguments: argparse.Namespace) -> int:
    backend, blender = setup_backend(), setup_blender()
    started = time.monotonic()
    run(
        [
            blender,
            ROOT / "examples" / "demo.py",
            "--out",
            arguments.out.resolve(),
            "--backend-python",
            backend,
        ]
    )
    print(f"Demo finished in {time.monotonic() - started:.0f} s. Read {arguments.out}/summary.md")
    return 0


def command_build(_: argparse.Namespace) -> int:
    run([setup_backend(), ROOT / "tools" / "build_extension.py"])
    return 0


def command_test(arguments: argparse.Namespace) -> int:
    """Run the suites, all of them even when one fails, and say at the end which did.

    A newer Blender whose Python this computer lacks is left out, and the summary says so; the
    minimum Blender is never left out.
    """
    backend = setup_backend()
    suites = arguments.only or list(SUITES)
    extra = arguments.pytest
    commands: dict[str, list[list[str | Path]]] = {
        "lint": [
            [backend, "-m", "ruff", "check", "."],
            [backend, "-m", "ruff", "format", "--check", "."],
        ],
        "types": [[backend, "-m", "mypy"]],
        "imports": [[BACKEND_VENV / python_script("lint-imports"), "--config", "pyproject.toml"]],
        "backend": [[backend, "-m", "pytest", "tests", "--durations=8", *extra]],
    }
    left_out: dict[str, str] = {}
    for blender in BLENDERS:
        if blender.suite not in suites:
            continue
        try:
            python = setup_blender(blender)
        except SetupError as error:
            if blender is BLENDERS[0] or arguments.only:
                raise
            left_out[blender.suite] = str(error)
            continue
        commands[blender.suite] = [
            [python, "-m", "pytest", "tests/blender", "-o", "norecursedirs=", *extra]
        ]
    environment = {**os.environ, "VIEWTIME_BACKEND_PYTHON": str(backend), "PYTHONUTF8": "1"}
    # The backend's checks and Blender's have nothing in common: two cores do both at once.
    blenders = {blender.suite for blender in BLENDERS}
    lanes = [
        [(s, c) for s in suites for c in commands.get(s, ()) if (s in blenders) == with_blender]
        for with_blender in (False, True)
    ]
    lanes = [lane for lane in lanes if lane]
    with ThreadPoolExecutor(len(lanes)) as pool:
        run_lane = partial(run_suites, environment=environment, alone=len(lanes) == 1)
        outcomes = [outcome for done in pool.map(run_lane, lanes) for outcome in done]
    print()
    for suite, code, seconds in outcomes:
        print(f"{'ok    ' if code == 0 else 'FAILED'} {suite:11} {seconds:6.1f} s")
    for suite, reason in left_out.items():
        print(f"LEFT OUT {suite}: {reason}")
    return 1 if any(code for _, code, _ in outcomes) else 0


def run_suites(
    lane: list[tuple[str, list[str | Path]]], *, environment: dict[str, str], alone: bool
) -> list[tuple[str, int, float]]:
    """Run commands one after the other; suite, exit code and seconds of each.

    alone: let them write to the terminal as they go. Otherwise each one's output comes in one
    piece when it has ended, as another lane is writing too.
    """
    outcomes = []
    for suite, command in lane:
        title = f"== {suite}: {' '.join(str(part) for part in command[1:])}"
        print(f"\n{title}" if alone else f"{title} (started)", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment,
            stdout=None if alone else subprocess.PIPE,
            stderr=None if alone else subprocess.STDOUT,
        )
        seconds = time.monotonic() - started
        if not alone:
            text = done.stdout.decode("utf-8", "replace")
            print(f"\n{title}\n{text}\n-- {suite} took {seconds:.0f} s", flush=True)
        outcomes.append((suite, done.returncode, seconds))
    return outcomes


def command_window(arguments: argparse.Namespace) -> int:
    tree = ["--tree", arguments.tree.resolve()] if arguments.tree else []
    words = ["--out", arguments.out.resolve(), *tree, "--backend-python", setup_backend()]
    run([sys.executable, ROOT / "tests" / "window" / "run.py", *words])
    return 0


def python_script(name: str) -> str:
    return f"Scripts/{name}.exe" if os.name == "nt" else f"bin/{name}"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="the main job, from an animated scene to 4D splats")
    demo.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for the results")
    demo.set_defaults(run=command_demo)
    test = commands.add_parser("test", help="every check that CI runs")
    test.add_argument("--only", action="append", choices=SUITES, help="only this suite (repeat)")
    test.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    test.set_defaults(run=command_test)
    window = commands.add_parser("window", help="press through a real window (not in CI)")
    window.add_argument("--out", type=Path, required=True, help="new folder for the pictures")
    window.add_argument("--tree", type=Path, help="directory tree that holds Blender; needs root")
    window.set_defaults(run=command_window)
    commands.add_parser("setup", help="make both environments").set_defaults(run=command_setup)
    commands.add_parser("build", help="build the extension zip").set_defaults(run=command_build)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    if sys.version_info < (3, 11):
        print("dev.py needs Python 3.11 or newer", file=sys.stderr)
        return 2
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        return arguments.run(arguments)
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"dev.py: this command failed: {' '.join(error.cmd)}", file=sys.stderr)
        return error.returncode or 1


if __name__ == "__main__":
    sys.exit(main())
