"""Is a network helped more by fixed partial charges than by the total charge?

    python partial_charges.py --data spice-aimnet2-*.npz --molecules molecules.txt --output runs

The same small TensorNets learn the same conformers and are told nothing of the state, the total
charge, or Gasteiger partial charges (Gasteiger and Marsili, Tetrahedron 36, 3219 (1980)), which
follow from the bonds alone and are the same for all conformers of a molecule. No model has an
energy term of the charge. Molecules whose elements have no Gasteiger parameters are left out.

``molecules`` is the file of SMILES that the corpus numbers its molecules by; the atoms of a
conformer come in the order of RDKit's AddHs. Needs rdkit.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem, RDLogger
from rdkit.Chem import rdPartialCharges
from records import is_made, sums
from state_variants import (
    Settings,
    Variant,
    choose,
    compare,
    groups,
    markdown,
    mean_errors,
    save,
)

from nnpcalc.train.data import Dataset, read_corpus
from nnpcalc.train.predict import Errors

BLIND: dict[str, Any] = {"attributes": (), "attribute_weights": ()}
COLUMNS = {
    "energy_per_atom": "energy MAE, meV/atom",
    "force_mae": "force MAE, eV/Å",
    "energy_per_atom_neutral": "energy, neutral",
    "force_mae_neutral": "forces, neutral",
    "energy_per_atom_charged": "energy, charged",
    "force_mae_charged": "forces, charged",
}


def told(*attributes: str, weight: float = 0.1) -> dict[str, Any]:
    """Options of a network that sees these attributes with a fixed prefactor."""
    return {"attributes": attributes, "attribute_weights": (weight,) * len(attributes)}


VARIANTS = (
    Variant("nothing", BLIND),
    Variant("total charge, λ = 0.1", told("charge")),
    Variant("total charge, embedding", {**BLIND, "state_embedding": ("charge",)}),
    Variant("Gasteiger charges, λ = 0.1", told("partial_charges")),
    Variant("Gasteiger charges, λ = 1.0", told("partial_charges", weight=1.0)),
    Variant("total and Gasteiger charges, λ = 0.1", told("charge", "partial_charges")),
)


def gasteiger(smiles: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Atomic numbers and Gasteiger charges of the atoms, hydrogens last; None if there are none."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return None
    molecule = Chem.AddHs(molecule)
    rdPartialCharges.ComputeGasteigerCharges(molecule)
    atoms = list(molecule.GetAtoms())
    charges = np.array([float(atom.GetProp("_GasteigerCharge")) for atom in atoms])
    if not np.isfinite(charges).all():
        return None
    return np.array([atom.GetAtomicNum() for atom in atoms]), charges


def with_gasteiger(dataset: Dataset, smiles: list[str], count: int, seed: int) -> Dataset:
    """The conformers of molecules that have Gasteiger charges, up to `count`, drawn by molecule.

    Raises:
        ValueError: the atoms of a conformer are not those of its SMILES.
    """
    order = np.random.default_rng(seed).permutation(np.unique(dataset.molecule))
    rows_of_molecule = {int(dataset.molecule[rows[0]]): rows for rows in groups(dataset.molecule)}
    rows: list[np.ndarray] = []
    charges: list[np.ndarray] = []
    total = 0
    for molecule in order.tolist():
        found = gasteiger(smiles[molecule])
        if found is None:
            continue
        chosen = rows_of_molecule[molecule]
        for row in chosen:
            begin, end = dataset.offsets[row : row + 2]
            if not np.array_equal(dataset.numbers[begin:end], found[0]):
                raise ValueError(f"conformer {row} is not {smiles[molecule]}")
        rows.append(chosen)
        charges += [found[1]] * chosen.size
        total += chosen.size
        if total >= count:
            break
    part = dataset.take(np.concatenate(rows))
    return replace(part, given_charges=np.concatenate(charges).astype(np.float32))


def write(path: Path, training: Dataset, validation: Dataset) -> None:
    """Both sets as one npz corpus."""
    parts = []
    for split, dataset in enumerate((training, validation)):
        part = {name: getattr(dataset, name) for name in dataset.__dataclass_fields__}
        part["charges"] = part.pop("partial_charges")
        part["split"] = np.full(len(dataset), split)
        parts.append(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def measure(dataset: Dataset, errors: Errors) -> dict[str, float]:
    """Mean absolute errors of all, of the neutral and of the charged conformers."""
    charged = dataset.charge != 0
    atom = np.repeat(charged, dataset.n_atoms)
    per_atom = 1e3 * np.abs(errors.energy) / dataset.n_atoms
    forces = np.abs(errors.forces)
    return {
        **mean_errors(dataset, errors),
        "energy_per_atom": float(per_atom.mean()),
        "energy_per_atom_neutral": float(per_atom[~charged].mean()),
        "energy_per_atom_charged": float(per_atom[charged].mean()),
        "force_mae_neutral": float(forces[~atom].mean()),
        "force_mae_charged": float(forces[atom].mean()),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, help="npz files of the corpus")
    parser.add_argument("--molecules", required=True, help="its SMILES, one a line")
    parser.add_argument("--output", required=True, help="directory of runs and tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--variants", nargs="+", help="rows of the table")
    parser.add_argument("--conformers", type=int, default=20_000, help="for training")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    RDLogger.DisableLog("rdApp.*")

    output = Path(given.output)
    corpus = output / f"corpus-{given.conformers}.npz"
    made_of = {"data": sums(given.data), "molecules": sums([given.molecules])}
    record = corpus.with_suffix(".json")
    if not is_made(record, made_of):
        smiles = Path(given.molecules).read_text().split("\n")
        training, validation = read_corpus(given.data)
        write(
            corpus,
            with_gasteiger(training, smiles, given.conformers, seed=1),
            with_gasteiger(validation, smiles, len(validation), seed=1),
        )
        record.write_text(json.dumps(made_of, indent=1))
    training, validation = read_corpus([corpus])
    settings = replace(
        Settings(), epochs=given.epochs, layers=given.layers, channels=given.channels,
        atoms_per_batch=600, learning_rate=2e-3,
    )  # fmt: skip
    chosen = choose(VARIANTS, given.variants)
    results = compare(chosen, corpus, settings, given.seeds, output, measure)
    title = (
        f"Partial charges: {results[0]['steps']} steps of {settings.channels} channels and "
        f"{settings.layers} layer(s), {len(given.seeds)} seeds; {len(training)} conformers, "
        f"{int((training.charge != 0).sum())} of them charged; validated on {len(validation)} of "
        f"other molecules, {int((validation.charge != 0).sum())} charged"
    )
    save(output, title, markdown(results, COLUMNS, {}), results, {})


if __name__ == "__main__":
    main()
