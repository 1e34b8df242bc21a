#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The window test: installs the built extension in a real Blender window and presses through the
whole job, from rig to export, with a picture after each step. Not for CI; it needs no monitor.

    python3 tests/window/run.py --out OUT                with blender, Xvfb, xdotool, import on PATH
    python3 tests/window/run.py --tree TREE --out OUT    with those of a directory tree (as root)
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from screen import HERE, Failure, Screen, programs_missing
from steps import play

ROOT = HERE.parents[1]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, help="directory tree that holds Blender; needs root")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the pictures")
    parser.add_argument("--zip", type=Path, help="the extension; without it, one is built")
    parser.add_argument("--backend-python", type=Path, help="default: VIEWTIME_BACKEND_PYTHON")
    return parser.parse_args(argv)


def backend_python(given: Path | None) -> Path:
    chosen = given or os.environ.get("VIEWTIME_BACKEND_PYTHON") or ROOT / ".venv/bin/python"
    python = Path(chosen).absolute()
    if not python.exists():
        raise Failure(f"{python} does not exist: run python3 dev.py setup, or --backend-python")
    return python


def build(out: Path, python: Path) -> Path:
    command = [python, ROOT / "tools" / "build_extension.py", "--out", out / "dist"]
    answer = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if answer.returncode:
        raise Failure(f"the extension was not built: {answer.stderr.strip()}")
    return next((out / "dist").glob("viewtime-*.zip"))


def in_tree(tree: Path, out: Path, archive: Path, python: Path) -> int:
    """Run this script again inside the tree, in mount and process namespaces of its own: at their
    end nothing stays mounted and no process is left."""
    base = subprocess.run(
        [str(python), "-c", "import sys; print(sys.base_prefix)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    shared = [str(ROOT), str(python.parent.parent), base, str(out), str(archive.parent)]
    lines = ["set -e"]
    for folder in dict.fromkeys(shared):
        if not folder.startswith("/usr"):  # what the system has, the tree has as well
            place = shlex.quote(f"{tree}{folder}")
            lines.append(f"mkdir -p {place}; mount --bind {shlex.quote(folder)} {place}")
    tree_words = shlex.quote(str(tree))
    lines += [f"mount -t proc proc {tree_words}/proc", f"mount --rbind /dev {tree_words}/dev"]
    inner = ["/usr/bin/python3", str(HERE / "run.py"), "--out", str(out), "--zip", str(archive)]
    inner += ["--backend-python", str(python)]
    clean = ["env", "-i", "HOME=/root", "PATH=/usr/bin:/bin", "LANG=C.UTF-8"]
    clean += [f"{name}={os.environ[name]}" for name in os.environ if name.endswith("_NUM_THREADS")]
    lines.append("exec chroot " + shlex.join([str(tree), *clean, *inner]))
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c"]
    return subprocess.run([*alone, "\n".join(lines)]).returncode


def install(archive: Path, environment: dict[str, str]) -> None:
    """As a user does it, and as Blender's own tool does it."""
    command = ["blender", "--command", "extension", "install-file", "-r", "user_default", "-e"]
    answer = subprocess.run(
        [*command, str(archive)], env=environment, capture_output=True, text=True
    )
    if answer.returncode or "Traceback" in answer.stderr:
        raise Failure(f"the zip was not installed: {answer.stdout}{answer.stderr}")


def make_scene(blend: Path, environment: dict[str, str]) -> None:
    command = ["blender", "--background", "--factory-startup", "--python-exit-code", "1", "-P"]
    words = [*command, str(ROOT / "examples" / "make_scene.py"), "--", str(blend)]
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); "
    program += "sys.argv = sys.argv[sys.argv.index('--'):]"
    words[words.index("-P") : words.index("-P")] = ["--python-expr", program]
    answer = subprocess.run(words, env=environment, capture_output=True, text=True)
    if not blend.exists():
        raise Failure(f"the scene was not made: {answer.stdout}{answer.stderr}")


def main(argv: list[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    out = arguments.out.absolute()
    started = time.monotonic()
    try:
        if not arguments.zip:
            # The second run, inside a tree, finds the zip made and the folder begun.
            if out.exists() and any(out.iterdir()):
                raise Failure(f"{out} is not empty: choose a new folder")
            out.mkdir(parents=True, exist_ok=True)
        python = backend_python(arguments.backend_python)
        archive = arguments.zip.absolute() if arguments.zip else build(out, python)
        if arguments.tree:
            return in_tree(arguments.tree.absolute(), out, archive, python)
        if missing := programs_missing():
            raise Failure(f"not on PATH: {', '.join(missing)}")
        environment = {
            **os.environ,
            "BLENDER_USER_RESOURCES": str(out / "user"),
            "VIEWTIME_BACKEND_PYTHON": str(python),
            "NUMBA_CACHE_DIR": str(out / "numba"),
            "XDG_RUNTIME_DIR": str(out / "user"),
        }
        (out / "user").mkdir()
        install(archive, environment)
        make_scene(out / "toys.blend", environment)
        screen = Screen(out, out / "toys.blend", environment)
        try:
            play(screen)
        except Exception:
            screen.shot("failed")
            raise
        finally:
            screen.close()
            shutil.rmtree(out / "numba", ignore_errors=True)
    except Failure as failure:
        print(f"FAILED after {time.monotonic() - started:.0f} s: {failure}", file=sys.stderr)
        return 1
    print(f"passed in {time.monotonic() - started:.0f} s; look at the pictures in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
