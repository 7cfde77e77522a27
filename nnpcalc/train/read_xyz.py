"""Labelled structures from extended XYZ files and ASE trajectories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnpcalc.state import resolve_state
from nnpcalc.train.data import UNDECIDED, Part

#: Names under which a label is looked for, in the calculator's results and in info or arrays. The
#: second is what people write to keep ASE from taking the first for itself.
NAMES = {
    "energy": ("energy", "REF_energy"),
    "forces": ("forces", "REF_forces"),
    "charges": ("charges", "partial_charges", "REF_charges"),
}
SPLITS = {"train": 0, "training": 0, "0": 0, "val": 1, "valid": 1, "validation": 1, "1": 1,
          "test": 2, "2": 2}  # fmt: skip


def read_xyz(path: str | Path, labels: Mapping[str, str]) -> Part:
    """Read every frame of a file.

    Energies in eV and forces in eV/Å are the calculator's results or stand in info and arrays as
    ``energy`` or ``REF_energy``, ``forces`` or ``REF_forces``; partial charges, if any, as
    ``charges``, ``partial_charges`` or ``REF_charges``. Charge and multiplicity follow
    `nnpcalc.state.resolve_state`. Optional in info: ``split`` (train, validation, test), ``source``
    or ``config_type`` (a name to report errors by; else the file's), ``molecule`` (a name or
    number that conformers of one molecule share; else frames of one formula do).

    Args:
        path: anything that ASE reads as a sequence of frames.
        labels: other names of the labels, by "energy", "forces" and "charges".

    Raises:
        ValueError: a frame that cannot be read, is periodic, or lacks a label or has two that
            differ; the text names the frame.
    """
    rows: dict[str, list[Any]] = {
        name: []
        for name in ("n_atoms", "numbers", "positions", "energy", "forces", "charge",
                     "multiplicity", "source", "molecule", "partial_charges", "split")
    }  # fmt: skip
    for k, atoms in enumerate(_frames(path)):
        where = f"{path}, frame {k} ({atoms.get_chemical_formula()})"
        if atoms.pbc.any():
            raise ValueError(
                f"{where} is periodic, which training does not support yet; set pbc to false if "
                "the cell has no meaning"
            )
        try:
            state = resolve_state(atoms)
        except ValueError as error:
            raise ValueError(f"{path}, frame {k}: {error}") from None
        charges = _label("charges", atoms, labels, where, (len(atoms),), optional=True)
        rows["n_atoms"].append(len(atoms))
        rows["numbers"].append(atoms.numbers)
        rows["positions"].append(atoms.positions)
        rows["energy"].append(_label("energy", atoms, labels, where, ()))
        rows["forces"].append(_label("forces", atoms, labels, where, (len(atoms), 3)))
        rows["charge"].append(state.charge)
        rows["multiplicity"].append(state.multiplicity)
        rows["source"].append(
            str(atoms.info.get("source", atoms.info.get("config_type", Path(path).stem)))
        )
        rows["molecule"].append(str(atoms.info.get("molecule", atoms.get_chemical_formula())))
        rows["partial_charges"].append(np.full(len(atoms), np.nan) if charges is None else charges)
        rows["split"].append(_split(atoms.info, where))
    if not rows["n_atoms"]:
        raise ValueError(f"{path} holds no structure")
    per_atom = ("numbers", "positions", "forces", "partial_charges")
    return {
        name: np.concatenate(values) if name in per_atom else np.asarray(values)
        for name, values in rows.items()
    }


def another_key(kind: str) -> str:
    """How a label gets another name: in the configuration of a training, on the command line."""
    return f"[data.labels] {kind} = NAME, or nnpcalc evaluate --label {kind}=NAME"


def _frames(path: str | Path) -> Iterator[Any]:
    from ase.io import iread

    try:
        yield from iread(str(path), index=":")
    except Exception as error:  # every format of ASE has errors of its own
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _label(
    kind: str,
    atoms: Any,
    labels: Mapping[str, str],
    where: str,
    shape: tuple[int, ...],
    optional: bool = False,
) -> np.ndarray | None:
    names = (labels[kind],) if kind in labels else NAMES[kind]
    results = {} if atoms.calc is None else atoms.calc.results
    own = atoms.arrays if shape else atoms.info
    found = {
        f"{place}[{name!r}]": np.asarray(values[name])
        for place, values in (("results", results), ("arrays" if shape else "info", own))
        for name in names
        if name in values
    }
    if not found:
        if optional and kind not in labels:
            return None
        raise ValueError(
            f"{where} has no {kind}: looked for {', '.join(names)}; another key is named by "
            f"{another_key(kind)}"
        )
    (first, value), *others = found.items()
    for place, other in others:
        if not np.array_equal(value, other):
            raise ValueError(
                f"{where}: {first} and {place} differ; choose one with {another_key(kind)}"
            )
    if value.shape != shape or value.dtype.kind not in "fiu":
        raise ValueError(f"{where}: {first} is a {value.dtype} {value.shape}, not floats {shape}")
    if not optional and not np.isfinite(value).all():
        raise ValueError(f"{where}: {first} is not finite")
    return value


def _split(info: Mapping[str, Any], where: str) -> int:
    if "split" not in info:
        return UNDECIDED
    name = str(info["split"]).lower()
    if name not in SPLITS:
        raise ValueError(f"{where}: split = {info['split']!r}; known are {', '.join(SPLITS)}")
    return SPLITS[name]
