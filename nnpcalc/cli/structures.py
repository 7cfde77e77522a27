"""Structure files: all structures of a file, with the charge and the multiplicity that it states.

ASE reads most formats, and drops what some of them say about the charge, or all molecules but the
first. Read here, so that nothing is lost:

- SDF and molfiles: every record; formal charges and radicals (`nnpcalc.cli.molfile`);
- Gaussian input: every job with a molecule; its line of charge and multiplicity;
- XYZ: ``charge=`` and ``spin=`` of extended XYZ, or a comment line of exactly two integers, charge
  and multiplicity; empty lines between frames are no end;
- PDB: every model; formal charges in columns 79-80;
- databases of ASE, JSON too: the key-value pairs ``charge`` and ``spin``.

Other formats state neither, or ASE keeps them in `info`, as in its trajectories.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict
from ase.io.formats import filetype, ioformats, open_with_compression, string2index

from nnpcalc.cli.molfile import read_molfile, split_sdf
from nnpcalc.state import CHARGE_KEYS, MULTIPLICITY_KEYS, as_integer

#: Keys that say something about the state and are not read, without case, spaces, - and _.
CHARGE_NAMES = frozenset(
    "charge q chrg netcharge totcharge totalcharge molecularcharge molcharge moleculecharge "
    "formalcharge totalformalcharge systemcharge ioncharge pubchemtotalcharge".split()
)
MULTIPLICITY_NAMES = frozenset(
    "spin s multiplicity mult multip spinmult spinmultiplicity totalspin totspin uhf nuhf 2s 2s+1 "
    "unpaired nunpaired unpairedelectrons nunpairedelectrons numunpairedelectrons".split()
)
_STATE_KEYS = (*CHARGE_KEYS, *MULTIPLICITY_KEYS)
_TWO_INTEGERS = re.compile(r"\s*([+-]?\d+)\s+([+-]?\d+)\s*")
_GAUSSIAN_STATE = re.compile(r"\s*([+-]?\d+)[\s,]+(\d+)([\s,]+[+-]?\d+[\s,]+\d+)*\s*")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Found:
    """A structure of a file.

    Attributes:
        atoms: charge and multiplicity in `info`, if the file states them.
        where: its file and place there, for errors.
        unread: what the file says besides, in which other names of the charge may hide.
    """

    atoms: Atoms
    where: str
    unread: Mapping[str, Any]


def read_file(file: str, index: str = ":") -> list[Atoms]:
    """Structures of a file in any format of ASE, or of extended XYZ on stdin (-).

    Args:
        file: its name.
        index: which structures, as in ASE.

    Raises:
        ValueError: it cannot be read as a structure, or has none at this index.
        OSError: the file cannot be opened; names it.
    """
    return [found.atoms for found in find(file, index)]


def read_states(
    file: str, index: str = ":", charge: int | None = None, multiplicity: int | None = None
) -> list[Atoms]:
    """As `read_file`, for computing: whatever is said of the state has been understood.

    Args:
        file, index: see `read_file`.
        charge, multiplicity: take the place of what the file says.

    Raises:
        ValueError: see `read_file`; or the charge or the spin stands under a name that is not read.
        OSError: see `read_file`.
    """
    structures = find(file, index)
    for found in structures:
        set_state(found, charge, multiplicity)
    return [found.atoms for found in structures]


def set_state(found: Found, charge: int | None = None, multiplicity: int | None = None) -> None:
    """Put a charge and a multiplicity into `info`, or see that the file has no other name for them.

    Whether the state can exist is for the calculator to say.

    Args:
        found: its `atoms.info` is changed; read by this program, not the user's.
        charge, multiplicity: what the user says; None leaves it to the file.

    Raises:
        ValueError: see `read_states`.
    """
    _override(found, CHARGE_KEYS, CHARGE_NAMES, charge)
    _override(found, MULTIPLICITY_KEYS, MULTIPLICITY_NAMES, multiplicity)
    if charge is None:
        _refuse_other_charges(found)
    if multiplicity is None:
        _refuse_other_multiplicities(found)


# --- the state -----------------------------------------------------------------------------------


def _override(
    found: Found, keys: tuple[str, ...], names: frozenset[str], value: int | None
) -> None:
    """Put a value under the first of several spellings, remove the others; None does nothing."""
    if value is not None:
        info = found.atoms.info
        for key in [*keys, *dict(_unread(found, names))]:
            info.pop(key, None)
        info[keys[0]] = value


def _refuse_other_charges(found: Found) -> None:
    """Another name of the charge is an error, unless it repeats what is stated."""
    stated = [found.atoms.info[key] for key in CHARGE_KEYS if key in found.atoms.info]
    for key, value in _unread(found, CHARGE_NAMES):
        if not stated:
            raise ValueError(
                f"{found.where}: the charge stands under {key!r}, which is not read: call it "
                "charge=, or give --charge"
            )
        if not _same(value, stated[0]):
            raise ValueError(
                f"{found.where}: {key!r} says {value}, but the charge is {stated[0]}: remove "
                "one of the two, or give --charge"
            )


def _refuse_other_multiplicities(found: Found) -> None:
    """Another name of a spin is an error, unless the multiplicity is stated."""
    if any(key in found.atoms.info for key in MULTIPLICITY_KEYS):
        return
    for key, _ in _unread(found, MULTIPLICITY_NAMES):
        raise ValueError(
            f"{found.where}: the spin stands under {key!r}, which is not read, for it may mean S, "
            "2S or 2S + 1: state 2S + 1 as spin=, or give --spin"
        )


def _unread(found: Found, names: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Keys that are such a name, in whatever spelling, and their values."""
    keys = [str(key) for key in found.unread]
    for key, value, following in zip(keys, found.unread.values(), [*keys, ""][1:], strict=True):
        # ASE makes a word of a comment a key that is True: "Charge: -2", but not "charge transfer"
        word = value is True and not key.endswith(":") and not re.fullmatch(r"[+-]?\d+", following)
        if re.sub(r"[\s_:-]", "", key.lower()) in names and np.size(value) == 1 and not word:
            yield key, value


def _same(value: Any, stated: Any) -> bool:
    try:
        return float(value) == as_integer(stated, "charge")
    except (TypeError, ValueError):
        return False


# --- files ---------------------------------------------------------------------------------------


def find(file: str, index: str = ":") -> list[Found]:
    """The structures of a file at an index; see `read_file`."""
    name = "stdin" if file == "-" else file
    try:
        structures = list(_find(file, name, index))
    except Exception as error:  # every format of ASE has errors of its own
        if isinstance(error, OSError) and error.filename is not None:
            raise
        if isinstance(error, _PlacedError):
            raise ValueError(str(error)) from error
        raise ValueError(
            f"{name} cannot be read as a structure: {type(error).__name__}: {error}"
        ) from error
    if not structures:
        raise ValueError(f"{name} has no structure at index {index!r}")
    return structures


class _PlacedError(ValueError):
    """An error that names the structure."""


def _find(file: str, name: str, index: str) -> Iterator[Found]:
    kind = "extxyz" if file == "-" else filetype(file)
    if kind in _TEXTS:
        split, parse = _TEXTS[kind]
        records = split(_text(file))
        for k, record in _at(records, index):
            where = f"{name}, structure at --index {k}" if len(records) > 1 else name
            try:
                atoms, unread = parse(record)
            except Exception as error:
                raise _PlacedError(f"{where} cannot be read: {error}") from error
            yield Found(atoms, where, unread)
    elif kind in ("db", "json", "mysql", "postgresql"):
        yield from _rows(file, index)
    else:
        found: Any
        if kind in ioformats and ioformats[kind].single:
            found = [atoms for _, atoms in _at([ase.io.read(file, format=kind)], index)]
        else:
            found = ase.io.read(file, index, kind, do_not_split_by_at_sign=True)
        for k, atoms in enumerate([found] if isinstance(found, Atoms) else found):
            yield Found(atoms, f"{name}, structure {k} of those taken", _not_state(atoms.info))


def _at(items: Sequence[_Item], index: str) -> list[tuple[int, _Item]]:
    """The items at an index of ASE, with their numbers."""
    place = string2index(index)
    if isinstance(place, str):
        raise ValueError(f"--index {place!r} is no number and no slice such as 0:10")
    if isinstance(place, int):
        inside = -len(items) <= place < len(items)
        place = slice(place, place + 1 or None) if inside else slice(0)
    return [(k, items[k]) for k in range(len(items))[place]]


def _text(file: str) -> str:
    """All of a file; compressed, if its name says so."""
    if file == "-":
        return sys.stdin.read()
    with open_with_compression(file, "rb") as opened:
        return str(opened.read().decode("utf-8", "replace"))


def _not_state(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _STATE_KEYS}


# --- formats -------------------------------------------------------------------------------------

_Parsed = tuple[Atoms, Mapping[str, Any]]


def _parse_mdl(record: str) -> _Parsed:
    molecule = read_molfile(record)
    atoms = Atoms(molecule.symbols, molecule.positions, info={"charge": molecule.charge})
    if molecule.multiplicity is not None:
        atoms.info["spin"] = molecule.multiplicity
    return atoms, molecule.fields


def _split_xyz(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    frames: list[str] = []
    k = 0
    while k < len(lines):
        if not lines[k].strip():
            k += 1
            continue
        try:
            end = k + 2 + int(lines[k])
        except ValueError:
            raise ValueError(
                f"line {k + 1} should count the atoms of another frame, not be {lines[k].strip()!r}"
            ) from None
        while end < len(lines) and lines[end].lstrip().startswith("VEC"):
            end += 1
        frames.append("".join(lines[k:end]))
        k = end
    return frames


def _parse_xyz(frame: str) -> _Parsed:
    atoms = ase.io.read(
        io.StringIO(frame), index=0, format="extxyz", properties_parser=_parse_comment
    )
    assert isinstance(atoms, Atoms)
    return atoms, _not_state(atoms.info)


def _parse_comment(line: str) -> dict[str, Any]:
    if state := _TWO_INTEGERS.fullmatch(line):
        return {"charge": int(state[1]), "spin": int(state[2])}
    return dict(key_val_str_to_dict(line))


def _split_pdb(text: str) -> list[str]:
    """Models; what stands before the first, such as the cell, holds for all."""
    models: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("END"):  # ENDMDL, and END after the last or, in some programs, each
            models.append([])
        else:
            models[-1].append(line)
    head = [line for line in models[0] if line.startswith(("CRYST1", "ORIGX"))]
    return [
        "\n".join([*head, *model, "END\n"])
        for model in models
        if any(line.startswith(("ATOM", "HETATM")) for line in model)
    ]


def _parse_pdb(model: str) -> _Parsed:
    atoms = ase.io.read(io.StringIO(model), index=0, format="proteindatabank")
    assert isinstance(atoms, Atoms)
    charges = []
    for line in model.splitlines():
        text = line[78:80].strip() if line.startswith(("ATOM", "HETATM")) else ""
        if not text or not line[76:78].strip().isalpha():  # before 1996 other things stood there
            continue
        if not (sign := re.fullmatch(r"(\d)([+-])|([+-])(\d)|(0)", text)):
            raise ValueError(
                f"{text!r} in columns 79-80 of {line[:27].strip()!r} is no charge such as 2+ or 1-"
            )
        charges.append(int(f"{sign[2] or sign[3] or ''}{sign[1] or sign[4] or 0}"))
    if charges:
        atoms.info["charge"] = sum(charges)
    return atoms, {}


def _split_gaussian(text: str) -> list[str]:
    """Jobs; those that take their geometry from a checkpoint are of a molecule seen before."""
    jobs = re.split(r"(?im)^[ \t]*--link1--[ \t]*$", text.replace("\r\n", "\n"))
    geometry = re.compile(r"(?i)\bgeom\s*=?[^#\n]*check")
    return [job for job in jobs if job.strip() and (_molecule(job) or not geometry.search(job))]


def _molecule(job: str) -> list[str]:
    """The lines of a Gaussian job from charge and multiplicity on, or none."""
    for block in re.split(r"\n(?:[ \t]*\n)+", job.strip())[1:]:
        lines = block.splitlines()
        if len(lines) > 1 and _GAUSSIAN_STATE.fullmatch(lines[0].partition("!")[0]):
            return lines
    return []


def _parse_gaussian(job: str) -> _Parsed:
    lines = _molecule(job)
    if not lines:
        raise ValueError("no line of charge and multiplicity, such as -1 1, followed by atoms")
    state = _GAUSSIAN_STATE.fullmatch(lines[0].partition("!")[0])
    assert state is not None
    geometry = "\n".join(_with_points(line) for line in lines[1:])
    atoms = ase.io.read(
        io.StringIO(f"# sp\n\nmolecule\n\n0 1\n{geometry}\n\n"), format="gaussian-in"
    )
    assert isinstance(atoms, Atoms)
    atoms.info.update(charge=int(state[1]), spin=int(state[2]))
    return atoms, {}


def _with_points(line: str) -> str:
    """ASE takes ``H 0 0 1`` for another line of charge and multiplicity, or for a Z-matrix."""
    symbol, *numbers = line.partition("!")[0].replace(",", " ").split() or [""]
    return f"{symbol} {' '.join(str(float(x)) for x in numbers)}" if len(numbers) == 3 else line


_TEXTS: dict[str, tuple[Callable[[str], list[str]], Callable[[str], _Parsed]]] = {
    "sdf": (split_sdf, _parse_mdl),
    "mol": (split_sdf, _parse_mdl),
    "extxyz": (_split_xyz, _parse_xyz),
    "proteindatabank": (_split_pdb, _parse_pdb),
    "gaussian-in": (_split_gaussian, _parse_gaussian),
}


def _rows(file: str, index: str) -> Iterable[Found]:
    """Rows of a database of ASE, which may be asked for by a query too."""
    place = string2index(index)
    with ase.db.connect(file, serial=True) as database:
        query = place if isinstance(place, str) else ""
        rows = list(database.select(query))
    for _, row in _at(rows, ":" if query else index):
        atoms = row.toatoms()
        # row.charge is the sum of the initial charges, even where "charge" is among the pairs
        pairs = {key: vars(row).get(key, value) for key, value in row.key_value_pairs.items()}
        atoms.info.update({key: pairs[key] for key in _STATE_KEYS if key in pairs})
        yield Found(atoms, f"{file}, row {row.id}", {**row.data, **_not_state(pairs)})
