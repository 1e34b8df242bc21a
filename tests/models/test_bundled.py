# SPDX-License-Identifier: Apache-2.0
"""The bundled models and their cards."""

from __future__ import annotations

import hashlib
import json

import pytest
from safetensors.numpy import save_file

from viewtime import models
from viewtime.models import ModelError, bundle, bundled

CARD = {
    "what": "a test", "licence": "Apache-2.0", "training_data": "none", "command": "none",
    "limits": "all",
}  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    for module in (bundle, bundled):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "bundled")
    return tmp_path


def weights(folder, numbers=3):
    import numpy as np

    (folder / "part").mkdir(parents=True)
    save_file({"x": np.zeros(numbers, np.float32)}, folder / "part" / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "log.txt").write_text("stays behind")
    return folder


def test_every_bundled_model_has_a_true_card_and_is_small():
    total = 0
    for name in models.bundled_names():
        card, folder = models.read_card(name), models.bundled_path(name)
        assert card["name"] == name and card["licence"] == "Apache-2.0"
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.safetensors")}
        assert files.keys() == card["files"].keys()
        for key, path in files.items():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == card["files"][key]
            assert path.stat().st_size <= bundle.MAX_FILE_BYTES
            total += path.stat().st_size
    assert 0 < total <= bundle.MAX_TOTAL_BYTES


def test_bundling_copies_weights_and_configs_and_states_checksums(elsewhere):
    target = bundle.bundle(weights(elsewhere / "run"), "small", CARD)
    assert models.bundled_names() == ["small"] and models.bundled_path("small") == target
    assert list(models.read_card("small")["files"]) == ["part/model.safetensors"]
    assert not (target / "log.txt").exists()


def test_what_is_too_big_or_badly_described_is_not_bundled(elsewhere, monkeypatch):
    run = weights(elsewhere / "run", numbers=1000)
    with pytest.raises(ModelError, match="lacks limits"):
        bundle.bundle(run, "small", {k: v for k, v in CARD.items() if k != "limits"})
    monkeypatch.setattr(bundle, "MAX_FILE_BYTES", 4000)
    with pytest.raises(ModelError, match="model.safetensors: 4.* bytes, at most 4000"):
        bundle.bundle(run, "small", CARD)
    monkeypatch.setattr(bundle, "MAX_FILE_BYTES", 5000)
    monkeypatch.setattr(bundle, "MAX_TOTAL_BYTES", 6000)
    bundle.bundle(run, "small", CARD)
    bundle.bundle(run, "small", CARD)  # again is no second copy
    with pytest.raises(ModelError, match="would take 8.* bytes, at most 6000"):
        bundle.bundle(run, "other", CARD)


def test_unknown_names_and_lacking_cards_are_named(elsewhere):
    with pytest.raises(ModelError, match=r"no bundled model named 'x' \(there are: none\)"):
        models.bundled_path("x")
    bundle.bundle(weights(elsewhere / "run"), "small", CARD)
    card = models.bundled_path("small") / "card.json"
    card.write_text(json.dumps({**CARD, "name": "small"}))
    with pytest.raises(ModelError, match="card.json: the card lacks files"):
        models.read_card("small")
