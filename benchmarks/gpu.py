# SPDX-License-Identifier: Apache-2.0
"""Measures everything that has a goal on a GPU, on one CUDA GPU, into one report.

    python3 benchmarks/gpu.py [--only attention generator reconstructor] [--out benchmarks/results]

Three groups of sections: attention (the kernels, checked before they are timed: under eight
minutes), generator (sampling, the big forward pass, training: about eight) and reconstructor
(about five). Where a command may only run for ten minutes, run one group a command with --only:
what the report of that day and device holds of the others stays. It wants torch 2.11 or later with
CUDA, triton 3.6 or later and numba; the generator wants diffusers; this package need not be
installed.

It writes gpu-<device>-<date>.md and .json into --out, anew after each section, so that what was
measured is kept if a later section fails. A group that hangs is ended after its limit. It never
changes the GPU's settings. `--dry-run` runs every line on the CPU at tiny sizes, so that slips are
found where no GPU is; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for _folder in ("backend", "kernels", "tests/kernels", "benchmarks"):
    sys.path.insert(0, str(ROOT / _folder))

import gpu_attention  # noqa: E402
import gpu_generator  # noqa: E402
import gpu_reconstructor  # noqa: E402
import report  # noqa: E402
import torch  # noqa: E402
from gpu_common import Run  # noqa: E402

Section = Callable[[Run], list[str]]


@dataclass(frozen=True)
class Group:
    """limit: seconds, after which it counts as hung. A section takes the Run, may add to run.data,
    and returns the lines of its part of the page. keys: what they add."""

    limit: float
    keys: tuple[str, ...]
    sections: tuple[Section, ...]


GROUPS = {
    "attention": Group(
        470,
        ("ceilings", "correctness", "speed", "flex"),
        (
            gpu_attention.ceilings,
            gpu_attention.correctness,
            gpu_attention.speed_576,
            gpu_attention.speed_2304,
            gpu_attention.goals,
        ),
    ),
    "generator": Group(
        540,
        ("sampling", "forward", "training"),
        (gpu_generator.sampling, gpu_generator.forward, gpu_generator.training),
    ),
    "reconstructor": Group(
        420,
        ("reconstruction", "drawing"),
        (gpu_reconstructor.reconstruction, gpu_reconstructor.drawing),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(GROUPS), default=tuple(GROUPS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--check", metavar="BACKEND", help="check one backend alone; print JSON")
    parser.add_argument("--seconds", type=float, default=120, help="with --check: when to stop")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/gpu.py needs a CUDA GPU and a torch built for CUDA; "
            f"torch {torch.__version__} finds no GPU here. --dry-run tries the script on the CPU."
        )
    device = torch.device("cpu" if options.dry_run else "cuda")
    run = Run(device, options.dry_run, time.monotonic())
    if options.check:
        faulthandler.dump_traceback_later(GROUPS["attention"].limit, exit=True)
        made = gpu_attention.check(options.check, run, options.seconds)
        print(json.dumps(made))
        return

    name = "dry-run" if run.dry else torch.cuda.get_device_name(device)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    today = datetime.date.today().isoformat()
    stem = options.out / f"gpu-{slug}-{today}"
    run.data |= earlier(stem, options.only)
    state = state_of(run, name)
    print("\n".join(f"- {line}" for line in state), flush=True)
    for group in options.only:
        run.began = time.monotonic()
        page: dict[str, list[str]] = {}
        run.data["pages"][group] = {"state": state, "seconds": 0.0, "sections": page}
        faulthandler.dump_traceback_later(GROUPS[group].limit, exit=True)
        for section in GROUPS[group].sections:
            try:
                lines = section(run)
            except Exception as error:  # the other sections are worth their time
                lines = [f"**{section.__name__} failed: {report.in_words(error)}**"]
                run.data.setdefault("failed", []).append(section.__name__)
            print("\n" + "\n".join(lines), flush=True)
            page[section.__name__] = lines
            run.data["pages"][group]["seconds"] = time.monotonic() - run.began
            write(stem, text_of(run, name, today), run)
        faulthandler.cancel_dump_traceback_later()
    print(f"\nwritten: {stem}.md and .json")
    if run.data.get("failed"):
        raise SystemExit(f"these sections failed: {', '.join(run.data['failed'])}")


def earlier(stem: Path, again: Sequence[str]) -> dict[str, Any]:
    """What the report of this day and device holds of the groups that are not run again."""
    path = Path(f"{stem}.json")
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    pages = {k: v for k, v in data.get("pages", {}).items() if k not in again}
    stale = {"failed", *(key for group in again for key in GROUPS[group].keys)}
    return {**{k: v for k, v in data.items() if k not in stale}, "pages": pages}


def text_of(run: Run, name: str, today: str) -> list[str]:
    """The page: each group under what it was measured on, in the order of GROUPS."""
    text = [f"# Measured on {name}, {today}"]
    if run.dry:
        text += ["", "**A dry run on the CPU at tiny sizes: no figure here means anything.**"]
    for group in GROUPS:
        page = run.data["pages"].get(group)
        if page is None:
            text += ["", f"# {group.capitalize()}: not run"]
            continue
        text += ["", f"# {group.capitalize()}", "", *(f"- {line}" for line in page["state"])]
        text.append(f"- took {page['seconds']:.0f} s")
        for lines in page["sections"].values():
            text += ["", *lines]
    return text


def state_of(run: Run, name: str) -> list[str]:
    """What the figures were measured on, a line each."""
    import triton

    lines = [f"torch {torch.__version__}, triton {triton.__version__}, commit {report.commit()}"]
    if not run.dry:
        properties = torch.cuda.get_device_properties(run.device)
        lines.insert(
            0,
            f"{name}: sm_{properties.major}{properties.minor}, "
            f"{properties.multi_processor_count} multiprocessors, "
            f"{properties.total_memory / 2**30:.0f} GiB; CUDA {torch.version.cuda}, "
            f"cuDNN {torch.backends.cudnn.version()}",
        )
    return lines


def write(stem: Path, text: list[str], run: Run) -> None:
    """Both files, each whole or not at all."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in (
        (".md", "\n".join(text) + "\n"),
        (".json", json.dumps(run.data, indent=1) + "\n"),
    ):
        part = Path(f"{stem}{suffix}.part")
        part.write_text(content, encoding="utf-8")
        part.replace(f"{stem}{suffix}")


if __name__ == "__main__":
    main()
