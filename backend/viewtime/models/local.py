# SPDX-License-Identifier: Apache-2.0
"""The folder that a generator's name means on this machine: bundled, a path, or in the hub's cache.

It never downloads anything and never reads weights.
"""

from __future__ import annotations

import re
from pathlib import Path

from viewtime.models.bundled import ModelError, bundled_path
from viewtime.models.download import WANTED
from viewtime.models.open_weights import GENERATORS, OpenWeights, find

BUNDLED_GENERATOR = "generator-small"


def generator_folder(name_or_path: str | Path) -> Path:
    """ "bundled"; a folder; the name or the hub id of a card, at the commit that it pins; or any
    other hub id, at the commit of its last download.

    Raises:
        ModelError: there is no such folder; says how to download what has a card.
    """
    name = str(name_or_path)
    if name == "bundled":
        return bundled_path(BUNDLED_GENERATOR)
    path = Path(name_or_path)
    if path.exists():
        return path
    card = None if isinstance(name_or_path, Path) else find(name)
    if card is not None and card not in GENERATORS:
        raise ModelError(f"generator is {name!r}, which is a reconstructor; {_known()} are needed")
    if card is None and (isinstance(name_or_path, Path) or not re.fullmatch(_HUB_ID, name)):
        raise ModelError(
            f"{name}: no such folder; a generator is a folder as diffusers saves, or one of "
            f"{_known()} once it is downloaded"
        )
    return _cached(name if card is None else card.repo, card)


_HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"


def _cached(repo: str, card: OpenWeights | None) -> Path:
    """A repository in the hub's cache, whole as far as its card says what it holds."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    get = f"hf download {repo}"
    if card is not None:
        get = f"viewtime models download {card.name} --accept-licence"
    try:
        found = snapshot_download(
            repo,
            revision=None if card is None else card.revision,
            allow_patterns=list(WANTED),
            local_files_only=True,
        )  # fmt: skip
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"{repo}: no such folder, and not whole in the cache of the hub: run `{get}`"
        ) from error
    folder = Path(found)
    absent = [] if card is None else [n for n in card.sha256 if not (folder / n).is_file()]
    if absent:
        raise ModelError(f"{folder / absent[0]}: not downloaded yet: run `{get}`, which goes on")
    return folder


def _known() -> str:
    return ", ".join(("bundled", *(card.name for card in GENERATORS)))
