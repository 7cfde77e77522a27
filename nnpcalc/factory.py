"""A new potential from names: architecture, elements, options and energy terms."""

from __future__ import annotations

import difflib
import inspect
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from nnpcalc.cards import TERMS
from nnpcalc.models import ARCHITECTURES, build_core
from nnpcalc.potential import Potential
from nnpcalc.state import element_symbol
from nnpcalc.terms import D3, AtomicEnergies, Coulomb, reference_tables

#: What an option may be, by the type of its default.
KINDS: dict[type, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a name",
    tuple: "a sequence",
}
NUMBERS = {element_symbol(number): number for number in range(1, 119)}


def build_potential(
    architecture: str,
    elements: Iterable[int | str] | None = None,
    *,
    terms: Iterable[str | Mapping[str, Any] | nn.Module] = (),
    atomic_energies: Mapping[int | str, float] | None = None,
    scale: float = 1.0,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Potential:
    """A potential with random weights, to be trained or tried out.

    Args:
        architecture: a name in `nnpcalc.models.ARCHITECTURES`, e.g. "painn".
        elements: symbols or atomic numbers it is to know; by default the architecture's own choice.
        terms: what is added to the network: names ("zbl", "coulomb", "d3"), names with settings
            ({"name": "zbl", "reach": 0.9}) or modules of `nnpcalc.terms`.
        atomic_energies: eV for each of the elements; adds that term.
        scale: eV per unit of the network's output.
        seed: of the weights; None goes on with torch's random numbers.
        dtype: torch.float32 or torch.float64, of the parameters.
        device: where the parameters go.
        options: fields of the architecture's Config, e.g. cutoff (Å), channels, layers.

    Raises:
        ValueError: an unknown name or option, or a value that cannot be; says what can.

    >>> potential = build_potential("painn", ["H", "C", "O"], channels=16, terms=["zbl"], seed=1)
    >>> potential.cutoff, potential.elements
    (5.0, (1, 6, 8))
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"models run in torch.float32 or torch.float64, not {dtype}")
    if not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale == 0.0:
        raise ValueError(f"scale must be a finite number other than 0, in eV: {scale!r}")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {architecture!r}{_hint(architecture, ARCHITECTURES)}; known are "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    values = _options(architecture, options)
    if elements is not None:
        values["elements"] = _elements(elements)
    if seed is None:
        core = build_core(architecture, values)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            core = build_core(architecture, values)
    known: Any = core.elements
    modules = [_term(term, known) for term in terms]
    if atomic_energies is not None:
        if any(isinstance(module, AtomicEnergies) for module in modules):
            raise ValueError("give atomic energies once: as atomic_energies or among the terms")
        modules.insert(0, AtomicEnergies(_energies(atomic_energies, known)))
    if any(isinstance(module, Coulomb) for module in modules) and not _has_charges(core):
        raise ValueError(
            f"a Coulomb term needs partial charges, which {architecture} does not have; "
            "aimnet2 and physnet do"
        )
    return Potential(core, tuple(modules), scale=float(scale)).to(device=device, dtype=dtype)


def _hint(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


# --- options -------------------------------------------------------------------------------------


def _options(architecture: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options with the types of their defaults."""
    defaults = {field.name: field.default for field in fields(ARCHITECTURES[architecture].Config)}
    for name in options:
        if name not in defaults:
            raise ValueError(
                f"{architecture} has no option {name!r}{_hint(name, defaults)}; its options are "
                f"{', '.join(sorted(defaults))}"
            )
    return {
        name: _typed(f"{architecture}: {name}", value, defaults[name])
        for name, value in options.items()
    }


def _typed(what: str, value: Any, default: Any) -> Any:
    wanted = type(default)
    if wanted not in KINDS or (wanted in (bool, str) and isinstance(value, wanted)):
        return value
    try:
        if wanted is int and not isinstance(value, bool):
            return operator.index(value)
        if wanted is float and not isinstance(value, (bool, str)):
            return float(value)
        if wanted is tuple and not isinstance(value, str):
            return tuple(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{what} must be {KINDS[wanted]} like {default!r}, got {value!r}")


def _elements(elements: Iterable[int | str]) -> tuple[int, ...]:
    listed = [elements] if isinstance(elements, (int, str)) else list(elements)
    if not listed:
        raise ValueError("elements is empty: name at least one, e.g. ['H', 'C', 'N', 'O']")
    return tuple(atomic_number(element) for element in listed)


def atomic_number(element: int | str) -> int:
    """Atomic number of a symbol or number."""
    if isinstance(element, str) and element in NUMBERS:
        return NUMBERS[element]
    try:
        number = operator.index(element)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if not 1 <= number <= 118 or isinstance(element, bool):
        raise ValueError(f"{element!r} is neither a chemical symbol nor an atomic number 1..118")
    return number


# --- terms ---------------------------------------------------------------------------------------


def _term(term: str | Mapping[str, Any] | nn.Module, elements: tuple[int, ...]) -> nn.Module:
    if isinstance(term, nn.Module):
        return term
    if not isinstance(term, (str, Mapping)):
        raise ValueError(f"a term is a name, a dictionary or a module, not {term!r}")
    given: dict[str, Any] = {"name": term} if isinstance(term, str) else dict(term)
    name = given.pop("name", None)
    if name not in TERMS:
        raise ValueError(
            f"unknown term {name!r}{_hint(name, TERMS)}; a term is one of {', '.join(TERMS)}, a "
            "dictionary with its name and settings, or a module"
        )
    kind, settings = TERMS[name]
    if kind is AtomicEnergies:
        raise ValueError("atomic energies are numbers: pass atomic_energies={'H': -13.6, ...}")
    unknown = sorted(set(given) - set(settings))
    if unknown:
        raise ValueError(
            f"the term {name} has no setting {unknown[0]!r}{_hint(unknown[0], settings)}; it takes "
            f"{', '.join(settings)}"
        )
    if kind is D3:
        given.setdefault("elements", elements)
        given["tables"] = reference_tables(given["elements"])
    needed = [
        parameter.name
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.default is parameter.empty and parameter.name not in given
    ]
    if needed:
        raise ValueError(
            f"the term {name} needs {', '.join(needed)}: {{'name': {name!r}, {needed[0]!r}: ...}}"
        )
    try:
        module: nn.Module = kind(**given)
    except TypeError as error:
        raise ValueError(f"the term {name}: {error}") from error
    return module


def _energies(energies: Mapping[int | str, float], elements: tuple[int, ...]) -> dict[int, float]:
    numbered = {atomic_number(element): float(energy) for element, energy in energies.items()}
    missing = [element_symbol(z) for z in elements if z not in numbered]
    if missing:
        raise ValueError(f"atomic_energies lacks {', '.join(missing)}; give all elements, in eV")
    return {z: numbered[z] for z in elements}


def _has_charges(core: nn.Module) -> bool:
    """Whether the network returns partial charges, tried on one atom."""
    numbers: Any = core.elements
    one = torch.ones(1)
    with torch.no_grad():
        output: dict[str, Any] = core(
            torch.tensor(numbers[:1]),
            torch.zeros((2, 0), dtype=torch.int64),
            torch.zeros((0, 3)),
            torch.zeros(0),
            torch.zeros(1, dtype=torch.int64),
            0.0 * one,
            one,
            0.0 * one,
        )
    return "charges" in output
