"""Other programs' models -> model directories: what `nnpcalc convert` does.

The readers are in `nnpcalc.interop`. Here a file's format is found out, what the file does not say
is asked for, and the model is written with a card and golden values, which are then recomputed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnpcalc.factory import atomic_number
from nnpcalc.interop import aimnet2, ani, schnetpack, torchmdnet
from nnpcalc.potential import Potential
from nnpcalc.state import element_symbol
from nnpcalc.testing import sample_structures
from nnpcalc.torchscript import CARD_FILE
from nnpcalc.units import HARTREE, KCAL_PER_MOL, KJ_PER_MOL
from nnpcalc.verify import verify
from nnpcalc.weights import (
    WeightsError,
    find_model,
    list_models,
    make_golden,
    save_potential,
)

#: Formats and their readers; what else a reader takes are options of the format.
READERS: dict[str, Callable[..., Potential]] = {
    "torchmd-net": torchmdnet.load_checkpoint,
    "schnetpack": schnetpack.load_checkpoint,
    "aimnet2": aimnet2.load,
    "ani": ani.load,
}
UNITS = {"eV": 1.0, "Hartree": HARTREE, "kcal/mol": KCAL_PER_MOL, "kJ/mol": KJ_PER_MOL}
UNKNOWN = "unknown: the source does not say"
#: Arguments of readers that are not options of a format.
COMMON = {"trust", "elements", "energy_unit", "length_unit", "device", "dtype"}


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        directory: the model's directory, which `NNPCalculator` takes.
        format: one of `READERS`.
        card: the card as written.
        assumed: what neither the source nor the caller said, in words.
        checks: golden values that were recomputed from the files.
    """

    directory: Path
    format: str
    card: dict[str, Any]
    assumed: tuple[str, ...]
    checks: int


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    format: str | None = None,
    trust: bool = False,
    elements: Iterable[int | str] | None = None,
    charges: Iterable[int] | None = None,
    multiplicities: Iterable[int] | None = None,
    energy_unit: float | str | None = None,
    options: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Conversion:
    """Write another program's model as a model directory.

    Args:
        source: a torchmd-net checkpoint, a SchNetPack state dict, an AIMNet2 file (Auto3D, aimnet),
            NeuroChem's ANI directory or a TorchANI state dict.
        target: the directory to make, or a model's name: a directory of that name in the first one
            of NNPCALC_WEIGHTS, where models are found by name, or else in the current one.
        format: one of `READERS`; found out if not given.
        trust: open a TorchScript file, which can run code.
        elements: symbols or atomic numbers it was trained on, where the format does not say.
        charges, multiplicities: the states it was trained on. A network that sees neither gets
            neutral singlets.
        energy_unit: "eV", "Hartree", "kcal/mol", "kJ/mol" or a number of eV, where the format does
            not say.
        options: more arguments of the format's reader, e.g. {"member": 1}.
        card: further keys of the card: licence, citation, reference_method, training_data.
        dtype: torch.float32 or torch.float64, of the parameters as saved.

    Raises:
        ValueError: an unknown format or option, something the source does not say and nobody else
            did, or a target that is there already; the text says what to do.
    """
    origin, directory = Path(source).expanduser(), resolve_target(target)
    if (directory / CARD_FILE).exists():
        raise WeightsError(f"{directory} holds a model already: choose another name or remove it")
    kind = detect(origin) if format is None else format
    if kind not in READERS:
        raise ValueError(f"unknown format {kind!r}; known are {', '.join(READERS)}")
    potential = _read(origin, kind, trust, elements, energy_unit, dict(options or {}), dtype)
    states, assumed = _states(potential, charges, multiplicities)
    given = {key: value for key, value in (card or {}).items() if value is not None}
    unsaid = {key: UNKNOWN for key in ("licence", "reference_method", "training_data")}
    core: Any = potential.core
    full = {
        "summary": f"{type(core).__name__} converted from {origin.name} ({kind})",
        **unsaid,
        **given,
        **states,
        "source": {"format": kind, "file": origin.name, "sha256": _hash(origin)},
        "golden": make_golden(potential, _structures(potential, states)),
    }
    assumed += [f"{key} unknown" for key in unsaid if key not in given]
    written = save_potential(potential, directory, full)
    checks = verify(directory, dtype=torch.float64) if full["golden"] else []
    wrong = [check.label for check in checks if not check.passed]
    if wrong:
        raise RuntimeError(f"{directory} does not give the energies of its source: {wrong}")
    return Conversion(directory, kind, written, tuple(assumed), len(checks))


def run(options: argparse.Namespace) -> int:
    """The command line's `nnpcalc convert`; its options are explained in `nnpcalc.cli`."""
    done = convert(
        options.source,
        options.to,
        format=options.format,
        trust=options.trust,
        elements=options.elements,
        charges=options.charges,
        multiplicities=options.multiplicities,
        energy_unit=options.energy_unit,
        options=dict(map(_name_and_value, options.option)),
        card={
            "licence": options.licence,
            "citation": options.citation,
            "reference_method": options.method,
            "training_data": options.data,
        },
        dtype=getattr(torch, options.dtype),
    )
    card = done.card
    print(
        f"{options.source}: {card['architecture']} of {done.format}, cutoff {card['cutoff']:g} Å, "
        f"elements {' '.join(map(element_symbol, sorted(card['elements'])))}, charges "
        f"{card['charges']}, multiplicities {card['multiplicities']}"
    )
    if done.assumed:
        print(f"not stated, look into card.json: {', '.join(done.assumed)}")
    print(f"{done.directory}: written, {done.checks} golden values recomputed from it")
    name = done.directory.name
    found = name in list_models() and find_model(name).resolve() == done.directory.resolve()
    print(f"NNPCalculator({name if found else os.path.join('.', done.directory)!r})")
    return 0


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option takes NAME=VALUE, not {text!r}")
    return name, value


def resolve_target(target: str | os.PathLike[str]) -> Path:
    """The directory of a target, which is a path or a name."""
    text = os.fspath(target)
    if isinstance(target, os.PathLike) or any(mark in text for mark in "/\\"):
        return Path(text).expanduser()
    places = [part for part in os.environ.get("NNPCALC_WEIGHTS", "").split(os.pathsep) if part]
    return Path(places[0] if places else ".") / text


# --- finding out the format -----------------------------------------------------------------------


def detect(source: Path) -> str:
    """Name of the format in `READERS`, from the contents; no code of a file is run.

    Raises:
        WeightsError: not there, nnpcalc's own, or none that is known.
    """
    if not source.exists():
        raise WeightsError(f"{source} does not exist")
    own = f"{source} is a model of nnpcalc already: NNPCalculator({str(source)!r})"
    if source.is_dir():
        if (source / CARD_FILE).is_file():
            raise WeightsError(own)
        if any(source.glob("*.params")):
            return "ani"
        raise WeightsError(
            f"{source} holds no .params file: the only directories that can be read are those of "
            "NeuroChem; give the file for other formats"
        )
    if source.suffix == ".safetensors":
        raise WeightsError(f"{source}: no other program's safetensors file can be read")
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        names = []
    if any(name.endswith(f"/extra/{CARD_FILE}") for name in names):
        raise WeightsError(own)
    if any("/code/" in name for name in names):
        return "aimnet2"
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise WeightsError(
            f"{source} cannot be read without running its code, or is no file of PyTorch. "
            "SchNetPack and TorchANI: torch.save(model.state_dict(), 'parameters.pt') where the "
            f"program is installed. --format ({', '.join(READERS)}) tells more"
        ) from error
    return _kind_of(content, source)


def _kind_of(content: Any, source: Path) -> str:
    if isinstance(content, dict) and {"coulomb_mode", "implemented_species"} <= content.keys():
        return "aimnet2"
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    names = [str(name).removeprefix("model.") for name in state] if isinstance(state, dict) else []
    for kind, prefix in (
        ("torchmd-net", "representation_model."),
        ("schnetpack", "representation.embedding."),
    ):
        if any(name.startswith(prefix) for name in names):
            return kind
    if any("aev_computer." in name for name in names):
        return "ani"
    raise WeightsError(
        f"{source} is of no format known here: torchmd-net's TensorNet checkpoints, SchNetPack's "
        "state dicts of SchNet and PaiNN, AIMNet2 files of Auto3D or aimnet, ANI networks of "
        "NeuroChem or TorchANI"
    )


# --- reading --------------------------------------------------------------------------------------


def _read(
    source: Path,
    kind: str,
    trust: bool,
    elements: Iterable[int | str] | None,
    energy_unit: float | str | None,
    options: dict[str, Any],
    dtype: torch.dtype,
) -> Potential:
    """The potential, with what the format does not say taken from the caller."""
    reader = READERS[kind]
    takes = {
        name: parameter.default
        for name, parameter in inspect.signature(reader).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    known = sorted(set(takes) - COMMON)
    arguments: dict[str, Any] = {"dtype": dtype}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"the format {kind} has no option {name!r}; it has {', '.join(known)}")
        arguments[name] = value if isinstance(takes[name], str) else _literal(name, value)
    if "trust" in takes:
        arguments["trust"] = trust
    for name, value, remedy in (
        ("elements", elements, "elements it was trained on: pass elements (--elements H C N O)"),
        ("energy_unit", energy_unit, "unit of energy: pass energy_unit (--energy-unit eV)"),
    ):
        if name in takes and value is None:
            raise ValueError(f"{source}: the format {kind} does not state the {remedy}")
        if name not in takes and value is not None:
            raise ValueError(f"{source}: the format {kind} states its own {name}: leave it out")
    if elements is not None:
        arguments["elements"] = [atomic_number(element) for element in elements]
    if energy_unit is not None:
        arguments["energy_unit"] = _unit(energy_unit)
    return reader(source, **arguments)


def _literal(name: str, value: Any) -> Any:
    """A number, True or False from the command line's text; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise ValueError(
            f"the option {name} takes a number, True or False, not {value!r}"
        ) from None


def _unit(unit: float | str) -> float:
    if unit in UNITS:
        return UNITS[str(unit)]
    try:
        value = float(unit)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise ValueError(f"energy_unit must be {', '.join(UNITS)} or a number of eV, not {unit!r}")
    return value


def _hash(source: Path) -> str:
    """sha256 of a file, or of the names and contents of all files in a directory."""
    digest = hashlib.sha256()
    if source.is_file():
        digest.update(source.read_bytes())
    else:
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(source).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


# --- what the card says ---------------------------------------------------------------------------


def _states(
    potential: Potential, charges: Iterable[int] | None, multiplicities: Iterable[int] | None
) -> tuple[dict[str, list[int]], list[str]]:
    """The states for the card, and what of them was assumed."""
    core: Any = potential.core
    seen = set(core.conditions_on)
    for term in potential.terms:
        seen |= set(getattr(term, "conditions_on", ()))
    states: dict[str, list[int]] = {}
    assumed = []
    for key, name, given, default in (
        ("charges", "charge", charges, 0),
        ("multiplicities", "multiplicity", multiplicities, 1),
    ):
        # what the architecture, or the reader, knows of itself
        possible = getattr(core, key, ()) or (getattr(potential, "card", None) or {}).get(key, ())
        if given is not None:
            states[key] = sorted(set(given))
        elif name in seen:
            raise ValueError(
                f"the energy depends on the {name}, and the source does not state the {key} it was "
                f"trained on: pass {key} (--{key} {'-1 0 1' if default == 0 else '1 2 3'})"
            )
        else:
            states[key] = list(possible or [default])
            assumed += [] if possible else [f"{name} {default} only"]
        if possible and not set(states[key]) <= set(possible):
            raise ValueError(f"{type(core).__name__} knows the {key} {list(possible)} only")
    return states, assumed


def _structures(potential: Potential, states: dict[str, list[int]]) -> list[Any]:
    """Small structures of the model's elements in its states, for golden values."""
    samples = sample_structures(sorted(potential.elements))
    molecules_only = any(getattr(term, "periodic", "") == "none" for term in potential.terms)
    wanted = [("molecule", charge) for charge in states["charges"]]
    if 0 in states["charges"] and not molecules_only:
        wanted.append(("crystal", 0))
    found = [_in_state(samples[name], charge, states["multiplicities"]) for name, charge in wanted]
    return [atoms for atoms in found if atoms is not None]


def _in_state(atoms: Any, charge: int, multiplicities: list[int]) -> Any:
    """The structure, or the one without its first odd atom, in a state that it can have."""
    odd = [k for k, z in enumerate(atoms.numbers) if z % 2][:1]
    for left_out in [[], odd]:
        trial = atoms[[k for k in range(len(atoms)) if k not in left_out]]
        electrons = int(trial.numbers.sum()) - charge
        fitting = [m for m in multiplicities if (electrons - m) % 2 and m <= electrons + 1]
        if fitting:
            trial.info = {"charge": charge, "spin": fitting[0]}
            trial.arrays.pop("partial_charges", None)
            return trial
    return None
