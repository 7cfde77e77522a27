"""Labelled structures from HDF5 files in the layouts of SPICE and of ModelForge.

SPICE (Eastman et al., Sci. Data 10, 11 (2023); J. Chem. Theory Comput. 20, 8583 (2024)): one group
per molecule with ``atomic_numbers`` [N], ``conformations`` [C, N, 3], ``dft_total_energy`` or
``formation_energy`` [C], ``dft_total_gradient`` [C, N, 3], ``smiles``, ``subset`` and, in some,
``mbis_charges`` [C, N, 1]. Units stand in the attribute ``units``; without it they are atomic.

ModelForge (choderalab/modelforge, files of its curation): one group per molecule, or per size,
with ``atomic_numbers`` [N, 1] (grouped: [G, N, 1] with ``grouped_indices`` [C]), ``positions``
[C, N, 3], energies [C, 1] and forces [C, N, 3] under the names of the original data set, in some
``total_charge`` [C, 1], a spin multiplicity [C, 1] and ``partial_charges`` [C, N, 1]. Units stand
in the attribute ``u``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnpcalc.state import resolve_state
from nnpcalc.train.data import UNDECIDED, Part
from nnpcalc.train.read_xyz import another_key
from nnpcalc.units import BOHR, HARTREE, KCAL_PER_MOL, KJ_PER_MOL, NM

LENGTHS = {"bohr": BOHR, "nanometer": NM, "nm": NM, "angstrom": 1.0, "ang": 1.0, "å": 1.0}
ENERGIES = {
    "hartree": HARTREE,
    "kilojoule_per_mole": KJ_PER_MOL,
    "kilojoule/mole": KJ_PER_MOL,
    "kj/mol": KJ_PER_MOL,
    "kilocalorie_per_mole": KCAL_PER_MOL,
    "kilocalorie/mole": KCAL_PER_MOL,
    "kcal/mol": KCAL_PER_MOL,
    "electron_volt": 1.0,
    "electronvolt": 1.0,
    "ev": 1.0,
}
CHARGES = {"elementary_charge": 1.0, "e": 1.0, "dimensionless": 1.0}

#: Names that are looked for, in this order; a gradient is turned into forces.
NAMES = {
    "energy": ("dft_total_energy", "energies", "energy", "formation_energy"),
    "forces": ("dft_total_gradient", "dft_total_force", "forces"),
    "charges": ("mbis_charges", "partial_charges"),
    "charge": ("charge", "total_charge"),
    "multiplicity": ("spin_multiplicities_per_system", "per_system_spin_multiplicity",
                     "spin_multiplicities", "spin_multiplicity", "multiplicity"),
}  # fmt: skip


def read_hdf5(path: str | Path, labels: Mapping[str, str]) -> Part:
    """Read every group of a file.

    The total charge is that of a dataset ``charge`` or ``total_charge``, else that of the SMILES
    (which needs RDKit), else 0. The multiplicity is the lowest that the electrons allow unless a
    dataset gives it. The source is the group's ``subset``, or the file's name; the molecule is the
    group's name; no conformer has a split.

    Args:
        path: the file.
        labels: names of the datasets to use, by "energy", "forces" and "charges"; a name with
            "gradient" in it gives minus the forces.

    Raises:
        ImportError: h5py, or RDKit where it is needed, is not installed.
        ValueError: a group in neither layout, without a label, with an unknown unit, a state that
            cannot exist or a value that is not finite; the text names the group.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} needs h5py: pip install 'nnpcalc[train]'") from error
    rows: list[dict[str, np.ndarray]] = []
    with h5py.File(path, "r") as file:
        chosen: dict[str, str] = dict(labels)
        for name, group in _molecules(h5py, file):
            where = f"{path}, group {name}"
            try:
                rows.append(_read(group, where, name, chosen, Path(path).stem))
            except (ValueError, IndexError) as error:
                if str(error).startswith(where):
                    raise
                raise ValueError(f"{where}: {error}") from error  # numpy's own
    if not rows:
        raise ValueError(f"{path} holds no conformer")
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


def _molecules(h5py: Any, file: Any) -> Iterator[tuple[str, Any]]:
    for name, group in file.items():
        if not isinstance(group, h5py.Group) or not {"conformations", "positions"} & set(group):
            raise ValueError(
                f"{file.filename}, {name}: neither a group of SPICE (with a dataset conformations) "
                f"nor of ModelForge (positions)"
            )
        where = "conformations" if "conformations" in group else "positions"
        if group[where].shape[0]:  # SPICE keeps molecules of which every conformer was left out
            yield name, group


def _read(
    group: Any, where: str, name: str, chosen: dict[str, str], stem: str
) -> dict[str, np.ndarray]:
    spice = "conformations" in group
    unit = "units" if spice else "u"
    place = "conformations" if spice else "positions"
    positions = group[place][()] * _unit(group[place], unit, "bohr", spice, LENGTHS, where)
    c, n = positions.shape[:2]

    energy = _find(group, "energy", chosen, where)
    energies = energy[()].reshape(c) * _unit(energy, unit, "hartree", spice, ENERGIES, where)
    force = _find(group, "forces", chosen, where)
    sign = -1.0 if "gradient" in chosen["forces"] else 1.0
    scale = _unit(force, unit, "hartree/bohr", spice, None, where)
    forces = (sign * scale) * force[()]
    for label, values, shape in (("positions", positions, (c, n, 3)), ("energy", energies, (c,)),
                                 ("forces", forces, (c, n, 3))):  # fmt: skip
        if values.shape != shape:
            raise ValueError(f"{where}: {label} has the shape {values.shape}, not {shape}")
        if not np.isfinite(values).all():
            bad = int(np.argwhere(~np.isfinite(values))[0][0])
            raise ValueError(f"{where}, conformer {bad}: {label} is not finite")

    numbers = _numbers(group, c, n, where)
    charge, multiplicity = _states(group, numbers, unit, spice, where)
    partial = np.full((c, n), np.nan)
    if "charges" in chosen or any(key in group for key in NAMES["charges"]):
        dataset = _find(group, "charges", dict(chosen), where)
        scale = _unit(dataset, unit, "elementary_charge", spice, CHARGES, where)
        partial = dataset[()].reshape(c, n) * scale
    molecule = np.full(c, name)
    if "grouped_indices" in group:
        names = [_decode(text) for text in group["grouped_names"][()]]
        molecule = np.array(names)[group["grouped_indices"][()]]
    return {
        "n_atoms": np.full(c, n),
        "numbers": numbers.reshape(-1),
        "positions": positions.reshape(-1, 3).astype(np.float32),
        "energy": energies.astype(np.float64),
        "forces": forces.reshape(-1, 3).astype(np.float32),
        "charge": charge,
        "multiplicity": multiplicity,
        "source": np.full(c, _text(group["subset"]) if "subset" in group else stem),
        "molecule": molecule,
        "partial_charges": partial.reshape(-1).astype(np.float32),
        "split": np.full(c, UNDECIDED),
    }


def _find(group: Any, kind: str, chosen: dict[str, str], where: str) -> Any:
    """The dataset of a label; the choice made for the first group holds for the whole file."""
    if kind not in chosen:
        names = [key for key in NAMES[kind] if key in group]
        if not names:
            raise ValueError(
                f"{where} has none of the datasets {', '.join(NAMES[kind])}; name one of its "
                f"{', '.join(sorted(group))} with {another_key(kind)}"
            )
        chosen[kind] = names[0]
    if chosen[kind] not in group:
        raise ValueError(
            f"{where} lacks the dataset {chosen[kind]!r} of the {kind}: all groups of a file must "
            "have the same"
        )
    return group[chosen[kind]]


def _unit(
    dataset: Any, attribute: str, default: str, spice: bool, known: dict[str, float] | None,
    where: str,
) -> float:  # fmt: skip
    """Factor from a dataset's unit into ours; ``known`` None: a force, energy over length."""
    name = dataset.name.rsplit("/", 1)[-1]
    text = dataset.attrs.get(attribute, default if spice else None)
    if text is None:
        raise ValueError(f"{where}: {name} has no attribute {attribute!r} that gives its unit")
    text = _decode(text)
    factor = force_unit(text) if known is None else known.get(_plain(text))
    if factor is None:
        raise ValueError(f"{where}: {name} is in {text!r}, a unit that is not known here")
    return factor


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", text).lower()


def force_unit(text: str) -> float | None:
    """eV/Å per unit of a force such as "hartree / bohr" or "kilojoule / mole / nanometer"."""
    first, *below = _plain(text).split("/")
    for length in below:
        rest = "/".join([first, *[part for part in below if part != length]])
        if length in LENGTHS and rest in ENERGIES:
            return ENERGIES[rest] / LENGTHS[length]
    return None


def _numbers(group: Any, c: int, n: int, where: str) -> np.ndarray:
    """Atomic numbers of every conformer [C, N]."""
    numbers = group["atomic_numbers"][()]
    if "grouped_indices" in group:
        numbers = numbers.reshape(numbers.shape[0], -1)[group["grouped_indices"][()]]
    else:
        numbers = np.tile(numbers.reshape(1, -1), (c, 1))
    if numbers.shape != (c, n):
        raise ValueError(f"{where}: {numbers.shape[1]} atomic numbers for {n} positions")
    return numbers


def _states(
    group: Any, numbers: np.ndarray, unit: str, spice: bool, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Charge and multiplicity of every conformer [C], checked by `resolve_state`."""
    from ase import Atoms

    c = numbers.shape[0]
    charge = np.zeros(c)
    name = next((key for key in NAMES["charge"] if key in group), None)
    if name is not None:
        _unit(group[name], unit, "elementary_charge", spice, CHARGES, where)
        charge = np.broadcast_to(group[name][()].reshape(-1), (c,))
    elif "smiles" in group and "grouped_indices" not in group:
        charge = np.full(c, charge_of_smiles(_text(group["smiles"]), where))
    name = next((key for key in NAMES["multiplicity"] if key in group), None)
    given = None if name is None else np.broadcast_to(group[name][()].reshape(-1), (c,))
    result = np.empty((c, 2), dtype=np.int64)
    known: dict[tuple[bytes, float, Any], tuple[int, int]] = {}
    for k in range(c):
        key = (numbers[k].tobytes(), charge[k], None if given is None else given[k])
        if key not in known:
            info = {"charge": charge[k], **({} if given is None else {"spin": given[k]})}
            try:
                state = resolve_state(Atoms(numbers[k], info=info))
            except ValueError as error:
                raise ValueError(f"{where}, conformer {k}: {error}") from None
            known[key] = (state.charge, state.multiplicity)
        result[k] = known[key]
    return result[:, 0], result[:, 1]


def charge_of_smiles(smiles: str, where: str) -> int:
    """Sum of the formal charges of a SMILES.

    Raises:
        ImportError: RDKit is not installed.
        ValueError: RDKit cannot read the text.
    """
    try:
        from rdkit import Chem
    except ImportError as error:
        raise ImportError(
            f"{where} has no dataset charge; taking the charge from its SMILES needs RDKit: "
            "pip install rdkit"
        ) from error
    molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        raise ValueError(f"{where}: RDKit cannot read the SMILES {smiles!r}")
    return int(Chem.GetFormalCharge(molecule))


def _text(dataset: Any) -> str:
    return _decode(np.asarray(dataset[()]).reshape(-1)[0])


def _decode(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
