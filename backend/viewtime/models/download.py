# SPDX-License-Identifier: Apache-2.0
"""Downloads other people's weights through huggingface_hub, and remembers what exactly came.

Safetensors, configs and tokenizers alone; never a pickle, and nothing that a card does not name.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from viewtime.models.bundled import ModelError
from viewtime.models.open_weights import OpenWeights
from viewtime_formats.atomic import write_json

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model")
RECORD = "viewtime-download.json"
"""Written beside the files: repository, commit, and the sha256 of every file. The commit pins the
model where its card pins none: a later download into the folder asks for that very commit."""

OnFile = Callable[[int, int, str], None]


def download(
    card: OpenWeights,
    folder: Path | None,
    *,
    on_file: OnFile | None = None,
    tries: int = 5,
    pause: float = 2.0,
) -> Path:
    """Fetch a model file by file, each retried; the folder it lies in.

    folder: None for the hub's own cache. on_file(done, total, name) before each file. pause:
    seconds before the second try, doubled before each further one. Interrupted, it goes on where
    it was. The commit is the card's; where the card pins none, that of the first download into the
    folder.

    Raises:
        ModelError: when the hub cannot be reached, refuses, holds no safetensors, or what came is
            not what the card says, or what came the first time.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    earlier = _pinned(folder, card)
    if card.revision and earlier not in (None, card.revision):
        raise ModelError(
            f"{folder} holds commit {earlier} of {card.repo}, the card pins {card.revision}: "
            "choose another folder"
        )
    pinned = card.revision or earlier
    api = HfApi()

    def attempt(call: Callable[[], object], what: str) -> object:
        wait = pause
        for number in range(1, tries + 1):
            try:
                return call()
            except GatedRepoError as error:
                raise ModelError(
                    f"{card.name}: accept its terms at {card.url} and log in first"
                ) from error
            except RepositoryNotFoundError as error:
                raise ModelError(f"{card.name}: {card.url} is not there") from error
            except (HfHubHTTPError, OSError) as error:
                if number == tries:
                    reason = str(error).splitlines()[0]
                    raise ModelError(
                        f"{card.name}: {what} failed {tries} times, at last: {reason}"
                    ) from error
                time.sleep(wait)
                wait *= 2
        raise AssertionError("unreachable")

    info = attempt(lambda: api.model_info(card.repo, revision=pinned), "asking for its files")
    commit = str(info.sha)  # type: ignore[attr-defined]
    names = sorted(
        sibling.rfilename
        for sibling in info.siblings or ()  # type: ignore[attr-defined]
        if any(Path(sibling.rfilename).match(pattern) for pattern in WANTED)
    )
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(f"{card.name}: {card.url} holds no .safetensors files")
    if absent := sorted(set(card.sha256) - set(names)):
        raise ModelError(f"{card.name}: {card.url} at {commit} has no {absent[0]}")
    sums: dict[str, str] = {}
    root = folder
    for number, name in enumerate(names):
        if on_file is not None:
            on_file(number + 1, len(names), name)
        fetch = partial(hf_hub_download, card.repo, name, revision=commit, local_dir=folder)
        path = Path(str(attempt(fetch, name)))
        sums[name] = _sha256(path)
        if sums[name] != card.sha256.get(name, sums[name]):
            raise ModelError(
                f"{path}: not the file that its card pins: sha256 {sums[name]}, must be "
                f"{card.sha256[name]}; remove it and download again"
            )
        if root is None:
            root = path.parents[len(Path(name).parts) - 1]
    assert root is not None
    if folder is not None:
        _check_same(folder, sums)
        write_json(folder / RECORD, {"repo": card.repo, "commit": commit, "sha256": sums})
    return root


def _pinned(folder: Path | None, card: OpenWeights) -> str | None:
    """The commit of an earlier download into the folder, None when there was none."""
    if folder is None or not (folder / RECORD).is_file():
        return None
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record.get("repo") != card.repo:
        raise ModelError(
            f"{folder} holds {record.get('repo')}, not {card.repo}: choose another folder"
        )
    return str(record["commit"])


def _check_same(folder: Path, sums: dict[str, str]) -> None:
    if not (folder / RECORD).is_file():
        return
    before = json.loads((folder / RECORD).read_text(encoding="utf-8"))["sha256"]
    for name, value in before.items():
        if sums.get(name) != value:
            raise ModelError(f"{folder / name}: not the file that was downloaded first (sha256)")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
