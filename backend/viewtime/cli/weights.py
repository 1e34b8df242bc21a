# SPDX-License-Identifier: Apache-2.0
"""`viewtime models`: what models there are, whose terms they come under, and their download."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from viewtime.cli.terminal import ProgressLine, command


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "models", _list, "list models, show their cards, download them")
    actions = parser.add_subparsers(metavar="ACTION")
    show = command(actions, "show", _show, "the card of one model")
    show.add_argument("name", help="as `viewtime models` lists it")
    fetch = command(actions, "download", _download, "download a model's safetensors")
    fetch.add_argument("name", help="as `viewtime models` lists it")
    fetch.add_argument("--to", type=Path, help="folder (default: the hub's own cache)")
    fetch.add_argument(
        "--accept-licence", action="store_true", help="say that you have read and accept its terms"
    )


def _list(_: argparse.Namespace) -> int:
    from viewtime import doctor
    from viewtime.models import open_weights

    print("Bundled")
    for finding in doctor.examine_models():
        print(f"  {finding.name}: {finding.found}")
    print("To download (viewtime models download NAME)")
    for card in open_weights.CARDS:
        use = "" if card.commercial else ", non-commercial"
        print(f"  {card.name}: {card.what} ({card.licence}{use})")
        print(f"    {card.repo}, {open_weights.pinned_as_text(card)}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from viewtime.models import open_weights

    print(open_weights.card_as_text(open_weights.card(arguments.name)))
    return 0


def _download(arguments: argparse.Namespace) -> int:
    from viewtime.models import open_weights
    from viewtime.models.download import download

    card = open_weights.card(arguments.name)
    if not arguments.accept_licence:
        print(open_weights.card_as_text(card))
        print("\nTo accept these terms and download, add --accept-licence")
        return 1
    with ProgressLine(sys.stderr) as line:
        folder = download(
            card,
            arguments.to,
            on_file=lambda done, total, name: line.write(f"download {done}/{total}: {name}"),
        )
    print(f"{card.name} -> {folder}")
    return 0
