# SPDX-License-Identifier: Apache-2.0
"""`viewtime doctor`: looks at this machine and says what to do about what is missing.
Never changes anything, never raises about what it finds, never uses the network."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

LOW_DISK_BYTES = 5 * 2**30
MIN_TORCH = (2, 11)
EXPECTED_MODELS = ("generator-small", "reconstructor-small")
STACK = (
    "numpy",
    "numba",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "fastapi",
    "uvicorn",
    "requests",
    "platformdirs",
    "av",
    "pillow",
    "OpenEXR",
    "torchmetrics",
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at. level: "ok", "warn" (works, but) or "fail" (does not work)."""

    name: str
    level: str
    found: str
    advice: str = ""


def examine(data: Path | None = None) -> list[Finding]:
    """Everything that matters for running jobs here. data: the backend's data folder."""
    return [
        _python(),
        _torch(),
        *_devices(),
        *_stack(),
        _torchvision(),
        *examine_models(),
        *_data_folder(data),
    ]


def as_json(findings: list[Finding]) -> str:
    """{"ok": bool, "findings": [{name, level, found, advice}]}"""
    ok = all(finding.level != "fail" for finding in findings)
    return json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=1)


def as_text(findings: list[Finding]) -> str:
    """One line for each finding, and below it what to do."""
    marks = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.level]}  {finding.name}: {finding.found}")
        if finding.advice:
            lines.append(f"        -> {finding.advice}")
    return "\n".join(lines)


def examine_models() -> list[Finding]:
    """The bundled models: present, and with the checksums that their cards state."""
    from viewtime.models.bundled import FOLDER

    there = {path.parent.name for path in FOLDER.glob("*/card.json")}
    findings = [examine_model(FOLDER / name) for name in sorted(there)]
    for name in EXPECTED_MODELS:
        if name not in there:
            kind = name.split("-")[0]
            advice = (
                "the captured route works without; for the generated route install a complete "
                f"Viewtime, or train one: viewtime train {kind}"
            )
            findings.append(Finding(f"model {name}", "warn", "absent", advice))
    return findings


def examine_model(folder: Path) -> Finding:
    """One folder of weights against the sha256 of each file in its card.json."""
    name = f"model {folder.name}"
    again = "install Viewtime again: the model is damaged or incomplete"
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        stated = dict(card["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return Finding(name, "fail", "its card.json states no checksums", again)
    weights = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.safetensors")}
    for file in sorted({*stated, *weights}):
        if file not in weights:
            return Finding(name, "fail", f"{file} is missing", again)
        if file not in stated:
            return Finding(name, "fail", f"{file} is not in its card", again)
        if stated[file] != hashlib.sha256(weights[file].read_bytes()).hexdigest():
            return Finding(name, "fail", f"{file}: sha256 differs from the card's", again)
    size = sum(path.stat().st_size for path in weights.values()) / 2**20
    return Finding(name, "ok", f"{len(weights)} file(s), {size:.1f} MiB, sha256 as in the card")


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable} on {platform.platform()}"
    return Finding("python", "ok", found)


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken install raises OSError, RuntimeError, ...
        return Finding(
            "torch",
            "warn",
            f"cannot be imported ({_first_line(error)})",
            "the captured route works without; for the generated route: pip install 'torch>=2.11'",
        )
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    found = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if version < MIN_TORCH:
        return Finding("torch", "fail", found, "pip install 'torch>=2.11'")
    return Finding("torch", "ok", found)


def _devices() -> list[Finding]:
    cores = f"{os.cpu_count()} cores ({platform.machine()})"
    findings = [Finding("cpu", "ok", cores)]
    try:
        import torch
    except Exception:
        return findings
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            capability = f"{properties.major}.{properties.minor}"
            findings.append(
                Finding(
                    f"cuda:{index}",
                    "ok",
                    f"{properties.name}, {memory:.0f} GiB, compute capability {capability}",
                )
            )
    elif torch.backends.mps.is_available():
        findings.append(Finding("mps", "ok", "Apple GPU"))
    elif shutil.which("nvidia-smi"):
        findings.append(
            Finding(
                "cuda",
                "warn",
                "an NVIDIA driver is here, but this torch cannot use it",
                "install the CUDA build of torch, see https://pytorch.org/get-started",
            )
        )
    else:
        findings.append(
            Finding("gpu", "ok", "none; jobs run on the CPU, which is slow at large sizes")
        )
    return findings


def _stack() -> list[Finding]:
    versions, missing = [], []
    for name in STACK:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    findings = [Finding("packages", "ok", ", ".join(versions) or "none")]
    if missing:
        findings.append(
            Finding(
                "missing packages", "fail", ", ".join(missing), f"pip install {' '.join(missing)}"
            )
        )
    return findings


def _torchvision() -> Finding:
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "ok", "absent, as it should be")
    return Finding(
        "torchvision",
        "warn",
        "is installed",
        "it breaks diffusers and torchmetrics on a CPU torch: pip uninstall torchvision",
    )


def _data_folder(data: Path | None) -> list[Finding]:
    if data is None:
        from viewtime.server.serve import default_data_folder

        data = default_data_folder()
    place = data.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    disk = Finding("free disk", "ok", f"{free / 2**30:.1f} GiB at {place}")
    if free < LOW_DISK_BYTES:
        disk = Finding(disk.name, "warn", disk.found, "free some space: a job may need gigabytes")
    if not os.access(place, os.W_OK):
        return [
            disk,
            Finding(
                "backend data",
                "fail",
                f"{data}: may not be written",
                "give another folder with --data",
            ),
        ]
    state = "exists" if data.is_dir() else "will be made at the first start"
    jobs = data / "jobs.sqlite"
    if jobs.is_file():
        state += f", job database of {jobs.stat().st_size / 2**20:.1f} MiB"
    return [disk, Finding("backend data", "ok", f"{data}: {state}")]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
