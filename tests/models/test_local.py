# SPDX-License-Identifier: Apache-2.0
"""Names of generators to folders on this machine. Nothing here reaches a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from viewtime.models import ModelError, bundled_path, local, open_weights
from viewtime.models.pins import Pin

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "Wan2.1-T2V-1.3B"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub; puts files of a repository's commit there, as a download does."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repo: str, commit: str, *names: str) -> Path:
        at = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        folder = at / "snapshots" / commit
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
        (at / "refs").mkdir(exist_ok=True)
        (at / "refs" / "main").write_text(commit)
        return folder

    return put


@pytest.fixture
def card(monkeypatch):
    """The card pins a commit and one file."""
    pinned = replace(
        open_weights.card(CARD), pin=Pin(COMMIT, {"transformer/config.json": "0" * 64})
    )
    cards = tuple(pinned if c.name == CARD else c for c in open_weights.GENERATORS)
    monkeypatch.setattr(open_weights, "CARDS", cards)
    monkeypatch.setattr(local, "GENERATORS", cards)
    return pinned


@pytest.mark.parametrize("name", [CARD, CARD.lower(), "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"])
def test_a_card_is_found_by_name_and_by_hub_id_at_the_commit_it_pins(cache, card, name):
    folder = cache(card.repo, COMMIT, "transformer/config.json")
    cache(card.repo, "f" * 40, "transformer/config.json")  # what main has moved on to
    assert local.generator_folder(name) == folder


def test_a_card_that_is_not_downloaded_names_the_command_that_does(cache, card):
    command = f"run `viewtime models download {CARD} --accept-licence`"
    with pytest.raises(ModelError, match=command):
        local.generator_folder(CARD)
    cache(card.repo, "f" * 40, "transformer/config.json")  # another commit is not that one
    with pytest.raises(ModelError, match=command):
        local.generator_folder(card.repo)


def test_half_a_download_is_told_from_a_whole_one(cache, card):
    cache(card.repo, COMMIT, "model_index.json")
    with pytest.raises(ModelError, match=r"transformer/config.json: not downloaded yet: run .*on"):
        local.generator_folder(CARD)


def test_any_other_hub_id_is_found_once_it_is_downloaded(cache):
    with pytest.raises(ModelError, match="not whole in the cache .*: run `hf download some/one`"):
        local.generator_folder("some/one")
    folder = cache("some/one", COMMIT, "config.json")
    assert local.generator_folder("some/one") == folder


def test_folders_come_first_and_what_is_neither_is_refused(cache, tmp_path, monkeypatch):
    assert local.generator_folder("bundled") == bundled_path("generator-small")
    monkeypatch.chdir(tmp_path)
    (tmp_path / CARD).mkdir()
    assert local.generator_folder(CARD) == Path(CARD)
    for wrong in ("nowhere", "/no/such", tmp_path / "absent"):
        with pytest.raises(ModelError, match=f"{wrong}: no such folder; .*bundled, {CARD}, "):
            local.generator_folder(wrong)
    with pytest.raises(ModelError, match="'VGGT-1B', which is a reconstructor"):
        local.generator_folder("VGGT-1B")


def test_a_generator_loads_by_its_name(cache, card):
    from viewtime.generator import load_generator
    from viewtime.generator.load import save_generator
    from viewtime.generator.model import GeneratorConfig, ViewTimeTransformer, new_transformer

    transformer = new_transformer(layers=1, heads=1, head_dim=24, ffn=32)
    model = ViewTimeTransformer(transformer, GeneratorConfig(t_max=8))
    save_generator(cache(card.repo, COMMIT, "model_index.json"), model)
    generator = load_generator(CARD)
    assert generator.model.config.t_max == 8 and generator.name == CARD
