"""Model cards: what is no JSON object of the right form is refused, naming the key."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from nnpcalc.cards import WeightsError, describe, parse_json
from nnpcalc.potential import Potential
from nnpcalc.weights import (
    load_card,
    load_potential,
)
from small_model import CONFIG, edit_card


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "one JSON object"),
        (b'{"a": 1, "a": 2}', "key 'a' twice"),
        (b'{"a": NaN}', "not a finite"),
        (b'{"a": 1e999}', "not a finite"),
        (b'{"a": -Infinity}', "not a finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a":' * 20 + b"1" + b"}" * 20, "deeper"),
        (b'{"a":' * 50_000, "deeper"),
        (b'{"a": "' + b"x" * 1_000_000 + b'"}', "bytes"),
    ],
)
def test_hostile_json(text: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        parse_json(text, "the card")


def test_json_as_deep_as_allowed() -> None:
    assert parse_json(b'{"a":' * 16 + b"1" + b"}" * 16, "the card")["a"]


def test_cards_describe_the_potential(small_potential: Potential, small_model: Path) -> None:
    card = load_card("small")
    assert {key: card[key] for key in describe(small_potential)} == describe(small_potential)
    assert card["terms"] == [{"name": "atomic_energies"}, {"name": "zbl", "reach": 0.9}]
    for file, digest in card["sha256"].items():
        assert hashlib.sha256((small_model / file).read_bytes()).hexdigest() == digest
    assert sorted(path.name for path in small_model.iterdir()) == [
        "card.json",
        "model.pt",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", "transformer"),
        ("architecture", 7),
        ("architecture", "nnpcalc.models.tensornet"),
        ("dtype", "float16"),
        ("cutoff", 5.0),
        ("cutoff", -1),
        ("cutoff", True),
        ("elements", []),
        ("elements", [1, 6]),
        ("elements", [1, 6, 8, 1000]),
        ("elements", ["H"]),
        ("charges", [0.5]),
        ("charges", [True]),
        ("multiplicities", [0]),
        ("scale", "1"),
        ("terms", [{"name": "os.system"}]),
        ("terms", ["zbl"]),
        ("terms", [{"name": "zbl", "reach": 0.9, "extra": 1}]),
        ("terms", [{"name": "zbl", "reach": "0.9"}]),
        ("sha256", {}),
        ("sha256", "0" * 64),
        ("sha256", {"model.safetensors": None}),
        ("config", {**CONFIG, "chanels": 8}),
        ("config", {**CONFIG, "channels": "8"}),
        ("config", {**CONFIG, "layers": 10**9}),
        ("config", {**CONFIG, "layers": None}),
        ("config", []),
    ],
)
def test_cards_that_are_wrong(small_model: Path, key: str, value: Any) -> None:
    edit_card(small_model, lambda card: card.update({key: value}))
    with pytest.raises(WeightsError):
        load_potential("small")


@pytest.mark.parametrize("key", ["architecture", "config", "cutoff", "charges", "sha256", "terms"])
def test_cards_that_lack_a_key(small_model: Path, key: str) -> None:
    edit_card(small_model, lambda card: card.pop(key))
    with pytest.raises(WeightsError, match=key):
        load_potential("small")
