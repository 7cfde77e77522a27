"""Model cards: the JSON beside the weights that says what a model is and how to build it.

Nothing here reads or writes files; `nnpcalc.weights` does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from nnpcalc.models import ARCHITECTURES, build_core
from nnpcalc.potential import Potential
from nnpcalc.terms import D3, ZBL, AtomicEnergies, Coulomb, StateEnergy, SystemEnergy

#: Terms a card may name: their class and the constructor arguments, which are attributes too.
TERMS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "atomic_energies": (AtomicEnergies, ()),  # the energies themselves are among the weights
    "zbl": (ZBL, ("reach",)),
    "state_energy": (StateEnergy, ("charge", "charge_squared", "unpaired_electrons")),
    "system_energy": (SystemEnergy, ("energy",)),
    "coulomb": (
        Coulomb,
        ("damping", "radius", "open_systems", "periodic", "cutoff", "alpha", "accuracy"),
    ),
    "d3": (D3, ("elements", "s8", "a1", "a2", "s6", "cutoff")),  # its tables are among the weights
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
MAX_JSON_BYTES = 1_000_000
MAX_JSON_DEPTH = 16
#: No size in a configuration comes near this; above it, building the network is what hurts.
MAX_CONFIG_INTEGER = 4096

#: What every card holds, with the type of it.
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "architecture": str,
    "config": dict,
    "terms": list,
    "scale": (int, float),
    "dtype": str,
    "cutoff": (int, float),
    "elements": list,
    "conditions_on": list,
    "charges": list,
    "multiplicities": list,
}


class WeightsError(ValueError):
    """A model that cannot be found, read or trusted; the text says what to do."""


def parse_json(data: bytes, origin: str) -> dict[str, Any]:
    """Decode a JSON object from bytes that nobody vouches for.

    Args:
        data: the file's bytes, UTF-8.
        origin: what to call it in an error.

    Raises:
        WeightsError: over `MAX_JSON_BYTES` or `MAX_JSON_DEPTH`, not JSON, not an object, with a key
            given twice or a number that is not finite.
    """
    if len(data) > MAX_JSON_BYTES:
        raise WeightsError(f"{origin} has {len(data)} bytes of JSON, more than {MAX_JSON_BYTES}")

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in items:
            if key in result:
                raise WeightsError(f"{origin} gives the key {key!r} twice")
            result[key] = value
        return result

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise WeightsError(f"{origin} holds {text}, which is not a finite number")
        return value

    try:
        value = json.loads(
            data.decode(), object_pairs_hook=unique, parse_float=finite, parse_constant=finite
        )
    except RecursionError:
        raise WeightsError(f"{origin} is nested deeper than {MAX_JSON_DEPTH} levels") from None
    except WeightsError:
        raise
    except ValueError as error:  # also UnicodeDecodeError
        raise WeightsError(f"{origin} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{origin} must hold one JSON object, not a {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return value
    raise WeightsError(f"{origin} is nested deeper than {MAX_JSON_DEPTH} levels")


def check_card(card: dict[str, Any], origin: str) -> None:
    """Refuse a card that lacks what every model needs, or holds it in a wrong form.

    Raises:
        WeightsError: names the key.
    """
    for key, kind in REQUIRED.items():
        if key not in card:
            raise WeightsError(f"{origin} lacks {key!r}; a card needs {', '.join(REQUIRED)}")
        if not isinstance(card[key], kind) or isinstance(card[key], bool):
            raise WeightsError(f"{origin}: {key!r} is a {type(card[key]).__name__}: {card[key]!r}")
    for key in ("elements", "charges", "multiplicities"):
        if not card[key] or any(type(value) is not int for value in card[key]):
            raise WeightsError(f"{origin}: {key!r} must be a list of whole numbers: {card[key]!r}")
    if any(not 1 <= number <= 118 for number in card["elements"]):
        raise WeightsError(f"{origin}: elements must lie in 1..118: {card['elements']}")
    if any(multiplicity < 1 for multiplicity in card["multiplicities"]):
        raise WeightsError(f"{origin}: multiplicities start at 1: {card['multiplicities']}")
    if card["dtype"] not in DTYPES:
        raise WeightsError(f"{origin}: dtype must be one of {', '.join(DTYPES)}: {card['dtype']!r}")
    if not 0.0 < card["cutoff"] < math.inf:
        raise WeightsError(f"{origin}: cutoff must be a positive length in Å: {card['cutoff']}")
    for term in card["terms"]:
        if not isinstance(term, dict) or term.get("name") not in TERMS:
            raise WeightsError(
                f"{origin}: unknown term {term!r}; a term is an object with the name of one of "
                f"{', '.join(TERMS)}"
            )
    _check_sizes(card["config"], origin)


def _check_sizes(value: Any, origin: str) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_sizes(item, origin)
    elif isinstance(value, int) and abs(value) > MAX_CONFIG_INTEGER:
        raise WeightsError(f"{origin}: {value} in config is above {MAX_CONFIG_INTEGER}")


def describe(potential: Potential) -> dict[str, Any]:
    """The part of a card that follows from the potential itself: how to build it again.

    Raises:
        WeightsError: its core or a term is none of `ARCHITECTURES` and `TERMS`.
    """
    core: Any = potential.core
    names = [name for name, kind in ARCHITECTURES.items() if type(core) is kind]
    if not names:
        raise WeightsError(
            f"the core {type(core).__name__} is not in nnpcalc.models.ARCHITECTURES: add it there"
        )
    description = {
        "architecture": names[0],
        "config": asdict(core.config),
        "terms": [_describe_term(term) for term in potential.terms],
        "scale": potential.scale,
        "dtype": str(potential.dtype).removeprefix("torch."),
        "cutoff": potential.cutoff,
        "elements": potential.elements,
        "conditions_on": core.conditions_on,
    }
    # A round trip turns tuples into lists, as they will be when the card is read again.
    result: dict[str, Any] = json.loads(json.dumps(description))
    return result


def _describe_term(term: nn.Module) -> dict[str, Any]:
    for name, (kind, arguments) in TERMS.items():
        if type(term) is kind:
            return {"name": name, **{key: getattr(term, key) for key in arguments}}
    raise WeightsError(
        f"the term {type(term).__name__} is not in nnpcalc.cards.TERMS: add it there"
    )


def build_from_card(card: dict[str, Any], origin: str, device: str = "cpu") -> Potential:
    """The potential a card describes, with random weights, in the card's dtype.

    On the device "meta" it has every name, shape and dtype and allocates nothing. The caller's
    random numbers, default dtype and default device neither change nor matter.

    Raises:
        WeightsError: the configuration is not one of the architecture.
    """
    check_card(card, origin)
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            core = build_core(card["architecture"], card["config"])
            terms = tuple(_build_term(term) for term in card["terms"])
            potential = Potential(core, terms, scale=float(card["scale"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{origin}: {card['architecture']} cannot be built: {error}") from error
    found = describe(potential.to(DTYPES[card["dtype"]]))
    for key in ("cutoff", "elements", "conditions_on"):
        if found[key] != card[key]:
            raise WeightsError(
                f"{origin}: {key} is {card[key]} in the card and {found[key]} in its config"
            )
    return potential


def _build_term(term: dict[str, Any]) -> nn.Module:
    kind, arguments = TERMS[term["name"]]
    settings = {key: value for key, value in term.items() if key != "name"}
    if set(settings) != set(arguments):
        raise ValueError(
            f"the term {term['name']} takes {_words(arguments)}, not {_words(sorted(settings))}"
        )
    module: nn.Module = kind({}) if kind is AtomicEnergies else kind(**settings)
    return module


def _words(names: Sequence[str]) -> str:
    return ", ".join(names) or "no setting"
