# SPDX-License-Identifier: Apache-2.0
"""What earlier jobs of this data folder tell about the next one, and where their pictures lie.
Never decides what to keep; the store's rule does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from viewtime.estimate import measured_from_dict
from viewtime.server.store import Store

MOST = 50


def measured(store: Store) -> list[dict[str, Any]]:
    """What the newest successful jobs took, as viewtime.estimate.measured_from_dict reads it."""
    found = []
    for job in store.jobs():
        if job.state != "succeeded" or job.measured is None:
            continue
        try:
            measured_from_dict(job.measured)
        except (KeyError, TypeError):
            continue  # written by a version that measured other things
        found.append(job.measured)
    return found[:MOST]


def preview_path(data: Path, job_id: str) -> Path:
    """The file of a job's latest picture, whether it exists or not."""
    return data / "previews" / f"{job_id}.npy"
