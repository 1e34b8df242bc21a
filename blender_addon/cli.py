# SPDX-License-Identifier: GPL-3.0-or-later
"""Viewtime's words on Blender's command line: blender -b x.blend --command viewtime export ...
It never opens windows, never saves the .blend, and answers a failure with one line and exit 2.

The same from Python: cli.main(["export", "--out", "folder"]) returns the exit status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import bpy

from viewtime_formats import ViewtimeError

from . import playback
from .export import export_ply, sequence_object

CLASSES: tuple = ()
_FAILED = 2
_command: object | None = None


class _Parser(argparse.ArgumentParser):
    """argparse that answers in one line, and raises instead of ending Blender's process."""

    def error(self, message: str) -> NoReturn:
        raise ViewtimeError(f"{message} (see: --command {self.prog} --help)")


def main(argv: Sequence[str]) -> int:
    """Run one command; 0, or 2 with one line on stderr."""
    try:
        arguments = _parser().parse_args(list(argv))
        return arguments.run(arguments)
    except SystemExit as finished:  # --help
        return int(finished.code or 0)
    except ViewtimeError as error:
        print(f"viewtime: {error}", file=sys.stderr)
        return _FAILED


def export(argv: Sequence[str]) -> int:
    """main(["export", ...]) without the first word."""
    return main(["export", *argv])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="viewtime", description="Viewtime on Blender's command line")
    commands = parser.add_subparsers(dest="command", required=True)
    ply = commands.add_parser("export", help="write a splat sequence as numbered 3DGS PLY files")
    ply.add_argument("--object", help="sequence object; may be left out when there is only one")
    ply.add_argument("--out", required=True, type=Path, help="folder for NAME.0001.ply and so on")
    ply.add_argument(
        "--frames",
        type=_frames,
        metavar="A:B",
        help="first and last scene frame (default: the whole sequence)",
    )
    ply.set_defaults(run=_export)
    return parser


def _frames(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return int(first), int(last or first)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, as in 1:24") from None


def _export(arguments: argparse.Namespace) -> int:
    # The add-on may have been enabled after the file was opened.
    playback.refresh_all()
    ob = sequence_object(arguments.object)
    written = export_ply(bpy.context.scene, ob, arguments.out.resolve(), arguments.frames)
    print(f"{len(written)} PLY files in {arguments.out}: {written[0].name} to {written[-1].name}")
    return 0


def register() -> None:
    global _command
    _command = bpy.utils.register_cli_command("viewtime", main)


def unregister() -> None:
    global _command
    if _command is not None:
        bpy.utils.unregister_cli_command(_command)
        _command = None
