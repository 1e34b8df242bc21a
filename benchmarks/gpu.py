# SPDX-License-Identifier: Apache-2.0
"""Checks and times the project's kernels on one CUDA GPU: one command, under eight minutes.

    python3 benchmarks/gpu.py [--out benchmarks/results]

It wants torch 2.11 or later with CUDA, and triton 3.6 or later; this package need not be installed.
It writes attention-<device>-<date>.md and .json into --out, anew after each section, so that what
was measured is kept if a later section fails. Whatever hangs is ended after LIMIT seconds.

Never changes the GPU's settings. `--dry-run` runs every line on the CPU at tiny sizes, so that
slips are found where no GPU is; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for _folder in ("kernels", "tests/kernels", "benchmarks"):
    sys.path.insert(0, str(ROOT / _folder))

import gpu_attention  # noqa: E402
import report  # noqa: E402
import torch  # noqa: E402

LIMIT = 470  # seconds, for everything


@dataclass
class Run:
    """What a section is given. data: what goes into the JSON file, by section."""

    device: torch.device
    dry: bool
    began: float
    data: dict[str, Any] = field(default_factory=dict)

    def left(self, until: float) -> float:
        """Seconds left until this many have passed since the start; 0 where they have."""
        return max(0.0, self.began + until - time.monotonic())


# A section takes the Run, may add to run.data, and returns the lines of its part of the page.
SECTIONS: list[Callable[[Run], list[str]]] = [
    gpu_attention.ceilings,
    gpu_attention.correctness,
    gpu_attention.speed_576,
    gpu_attention.speed_2304,
    gpu_attention.goals,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    device = torch.device("cpu" if options.dry_run else "cuda")
    run = Run(device, options.dry_run, time.monotonic())
    if options.check:
        made = gpu_attention.check(options.check, run, options.seconds)
        print(json.dumps(made))
        return

    name = "dry-run" if run.dry else torch.cuda.get_device_name(device)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    today = datetime.date.today().isoformat()
    stem = options.out / f"attention-{slug}-{today}"
    run.data["state"] = state = state_of(run, name)
    text = [f"# View-time attention on {name}, {today}", "", *(f"- {line}" for line in state)]
    if run.dry:
        text += ["", "**A dry run on the CPU at tiny sizes: no figure here means anything.**"]
    print("\n".join(text), flush=True)
    for section in SECTIONS:
        try:
            lines = section(run)
        except Exception as error:  # the other sections are worth their time
            lines = [f"**{section.__name__} failed: {report.in_words(error)}**"]
            run.data.setdefault("failed", []).append(section.__name__)
        print("\n" + "\n".join(lines), flush=True)
        text += ["", *lines]
        write(stem, text, run)
    text += ["", f"The whole run took {time.monotonic() - run.began:.0f} s."]
    write(stem, text, run)
    print(f"\n{text[-1]}\nwritten: {stem}.md and .json")
    faulthandler.cancel_dump_traceback_later()
    if run.data.get("failed"):
        raise SystemExit(f"these sections failed: {', '.join(run.data['failed'])}")


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
