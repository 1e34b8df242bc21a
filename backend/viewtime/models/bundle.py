# SPDX-License-Identifier: Apache-2.0
"""Puts trained weights among the bundled models, with a card that states their checksums.

It copies what a training left; it never changes weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from viewtime.models.bundled import CARD_FIELDS, FOLDER, ModelError
from viewtime_formats.atomic import write_json

MAX_FILE_BYTES = 16 << 20
MAX_TOTAL_BYTES = 24 << 20


def bundle(weights: Path, name: str, card: dict[str, Any]) -> Path:
    """Copy a folder of *.safetensors and *.json to the bundled models as `name`.

    card: what read_card() wants, but for "name" and "files", which are filled in. Raises
    ModelError when a file is over 16 MiB, all bundled models are over 24 MiB, or the card lacks
    a field.
    """
    files = sorted(p for p in weights.rglob("*") if p.suffix in (".safetensors", ".json"))
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(f"{weights}: no .safetensors weights")
    for path in files:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelError(f"{path}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES}")
    others = (p for p in FOLDER.rglob("*.safetensors") if p.relative_to(FOLDER).parts[0] != name)
    total = sum(path.stat().st_size for path in (*others, *files))
    if total > MAX_TOTAL_BYTES:
        raise ModelError(f"bundled models would take {total} bytes, at most {MAX_TOTAL_BYTES}")
    checksums = {
        path.relative_to(weights).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.suffix == ".safetensors"
    }
    card = {"name": name, **card, "files": checksums}
    missing = [field for field in CARD_FIELDS if field not in card]
    if missing:
        raise ModelError(f"the card of {name} lacks {', '.join(missing)}")
    target = FOLDER / name
    if target.exists():
        shutil.rmtree(target)
    for path in files:
        copy = target / path.relative_to(weights)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    write_json(target / "card.json", card)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description="bundle trained weights")
    parser.add_argument("weights", type=Path)
    parser.add_argument("name")
    parser.add_argument("card", type=Path, help="JSON: what, licence, training_data, ...")
    options = parser.parse_args()
    print(bundle(options.weights, options.name, json.loads(options.card.read_text("utf-8"))))


if __name__ == "__main__":
    main()
