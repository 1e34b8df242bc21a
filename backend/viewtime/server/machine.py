# SPDX-License-Identifier: Apache-2.0
"""What this machine offers to a job: devices, models, options. Asked in a process of its own.
Never makes a request wait for torch: until the answer is there, it says so."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from viewtime.options import RunOptions

FORMATS = {"viewtime.generator": "generators", "viewtime.reconstructor": "reconstructors"}
LOOK_SECONDS = 120.0
# torch is imported here and nowhere else in the server's reach: it takes seconds and 200 MB.
LOOK = """
import json
try:
    import torch
    devices = [
        {"id": f"cuda:{n}", "name": torch.cuda.get_device_name(n),
         "memory_bytes": torch.cuda.get_device_properties(n).total_memory}
        for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    print(json.dumps({"torch": torch.__version__, "problem": "", "devices": devices}))
except Exception as error:
    words = " ".join((str(error) or type(error).__name__).split())[:300]
    print(json.dumps({"torch": "", "problem": words, "devices": []}))
"""


class Machine:
    """Looks once, when first asked. data: the data folder, whose models/ may hold more models."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._found: dict[str, Any] | None = None
        self._closed = False

    def described(self) -> dict[str, Any]:
        """{"ready", "torch", "problem", "devices", "options", "generators", "reconstructors"}.

        ready is false, and devices hold no GPU, until torch has answered. problem: why torch
        cannot be imported, "" when it can. options: names that a job may set. Returns at once.
        """
        with self._lock:
            if self._process is None and not self._closed:
                self._look()
            found = self._found or {"torch": "", "problem": "", "devices": []}
            ready = self._found is not None
        devices = [{"id": "cpu", "name": "CPU", "memory_bytes": None}, *found["devices"]]
        options = [field.name for field in dataclasses.fields(RunOptions)]
        return {**found, "ready": ready, "devices": devices, "options": options, **self._models()}

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()

    def _look(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", LOOK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        threading.Thread(target=self._wait, name="viewtime-machine", daemon=True).start()

    def _wait(self) -> None:
        process = self._process
        assert process is not None
        try:
            text, _ = process.communicate(timeout=LOOK_SECONDS)
            found = json.loads(text.splitlines()[-1])
        except (subprocess.TimeoutExpired, ValueError, IndexError):
            process.kill()
            words = "looking for torch ended without an answer; see viewtime doctor"
            found = {"torch": "", "problem": words, "devices": []}
        with self._lock:
            self._found = found

    def _models(self) -> dict[str, list[dict[str, str]]]:
        """Names to give as a job's generator or reconstructor, and what they are."""
        bundled = [{"id": "bundled", "name": "Bundled"}]
        models = {kind: list(bundled) for kind in FORMATS.values()}
        for path in sorted((self._data / "models").glob("*/config.json")):
            try:
                kind = FORMATS.get(json.loads(path.read_text(encoding="utf-8")).get("format"))
            except (OSError, ValueError, AttributeError):
                continue
            if kind is not None:
                models[kind].append({"id": str(path.parent), "name": path.parent.name})
        return models
