# SPDX-License-Identifier: Apache-2.0
"""What `viewtime run` and `viewtime generate` share: their arguments, and RunOptions of them.
Never decides what a value means; RunOptions does that."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from viewtime.cli.terminal import add_threads


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a command's parser."""
    parser.add_argument("capture", type=Path, help="Capture folder")
    parser.add_argument("out", type=Path, help="output folder: new, empty, or of an earlier run")
    parser.add_argument(
        "--size", type=int,
        help="height in pixels to work at (default: the capture's own, or the generator's)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-prior", action="store_true", help="generate without reprojection")
    parser.add_argument(
        "--generator", default="bundled", help="bundled, a folder, or a model that was downloaded"
    )
    parser.add_argument(
        "--depth-noise",
        type=float,
        default=0.0,
        help="relative error of the capture's depth: 0 from a renderer, about 0.01 from photos",
    )
    parser.add_argument("--device", default="auto", help='"auto", "cpu" or "cuda:N"')
    add_threads(parser)

    steps = parser.add_argument_group("the generator's steps")
    steps.add_argument("--steps", type=int, help="how many (default: the model's own)")
    steps.add_argument(
        "--solver",
        help="euler, or unipc, which Wan's checkpoints come with (default: as the checkpoint says)",
    )  # fmt: skip
    steps.add_argument(
        "--shift", type=float,
        help="spends more of them where there is most noise: 1 is evenly, 3 for Wan at 480 lines, "
        "5 at 720 (default: as the checkpoint says)",
    )  # fmt: skip
    steps.add_argument("--guidance", type=float, help="of the prompt (default: the model's own)")
    steps.add_argument(
        "--negative-prompt", default="", metavar="TEXT", help="what guidance leads away from"
    )

    steps.add_argument(
        "--references", metavar="HOW",
        help="how they enter the model: added to what is noised, or clean in its place, for "
        "checkpoints with a timestep per token such as Wan2.2-TI2V-5B (default: the model's own)",
    )  # fmt: skip

    big = parser.add_argument_group("big grids and big models")
    big.add_argument(
        "--window", metavar="VxT",
        help="views x times made at once, such as 8x29; the windows after the first go on from "
        "what was made (default: the whole grid)",
    )  # fmt: skip
    big.add_argument(
        "--overlap", metavar="VxT",
        help="views x times that a window shares with the one before (default: a quarter of it)",
    )  # fmt: skip
    big.add_argument(
        "--offload", default="none",
        help="block or leaf: keep weights in the computer's memory and bring them to the GPU "
        "block by block, or layer by layer (default none)",
    )  # fmt: skip
    big.add_argument(
        "--compile", action="store_true", help="torch.compile; takes minutes, then steps are faster"
    )
    big.add_argument(
        "--cache", metavar="CHANGE",
        help="skip most of a step when its first block changes less than this, such as 0.05; off "
        "computes all (default off)",
    )  # fmt: skip


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments as RunOptions has them. Raises OptionError."""
    return {
        "size": arguments.size,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "use_prior": not arguments.no_prior,
        "generator": arguments.generator,
        "depth_noise": arguments.depth_noise,
        "device": arguments.device,
        "guidance": arguments.guidance,
        "solver": arguments.solver,
        "shift": arguments.shift,
        "negative_prompt": arguments.negative_prompt,
        "window": arguments.window,
        "overlap": arguments.overlap,
        "offload": arguments.offload,
        "compile": arguments.compile,
        "cache": _threshold(arguments.cache),
        "references": arguments.references,
        "memory_budget_gb": arguments.memory_gb,
    }


def _threshold(text: str | None) -> float | None:
    if text is None or text == "off":
        return None
    try:
        return float(text)
    except ValueError as error:
        from viewtime.options import OptionError

        raise OptionError(f'cache is {text!r}; a number above 0, or "off", is needed') from error
