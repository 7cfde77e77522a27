"""A corpus of open shells: radicals, radical ions, triplets and quartets beside closed shells.

    python open_shell.py molecules.txt --output open --parts corpus-0.npz corpus-1.npz

Labels: spin-polarised GFN2-xTB, several states at every geometry. Needs tblite, ase, numpy, rdkit.

Molecules come from a file of SMILES, one a line; ``molecule`` of a conformer is the line (from 0).
A geometry is that of the molecule, or of the radical that is left when one hydrogen is taken away.
It starts with an embedding, a minimisation and Langevin dynamics on MMFF94 (UFF where MMFF94 lacks
an element); 40 % of the geometries then follow a FIRE relaxation on GFN2-xTB in one of their own
states for up to 30 steps, the others get Gaussian noise. ``source`` is 20 for a molecule and 21
for a radical made from one.

The split is by molecule. With ``--parts`` (corpora with arrays ``molecule`` and ``split`` for the
same lines) it is theirs, and lines that none of them has are kept out. Either way a training
molecule is left out if it differs from one that is not for training only in bond orders, hydrogens
or charges: its radicals and ions could be the other's.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem
from xtb import (
    XTB,
    Frame,
    Made,
    Surface,
    Unusable,
    embed,
    label,
    langevin,
    make_shards,
    relax,
)

ELEMENTS = frozenset((1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53))
KCAL_PER_MOL = 0.0433641  # eV; MMFF94 only moves atoms about, no label depends on it
MOLECULE, RADICAL = 20, 21
MAX_CHARGE = 2


def parse(smiles: str, max_heavy: int = 12, max_atoms: int = 26) -> Chem.Mol | None:
    """The molecule with its hydrogens, or None if it is not wanted here."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or "." in smiles or molecule.GetNumHeavyAtoms() > max_heavy:
        return None
    molecule = Chem.AddHs(molecule)
    known = all(atom.GetAtomicNum() in ELEMENTS for atom in molecule.GetAtoms())
    open_shell = any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    charge = abs(Chem.GetFormalCharge(molecule))
    small = 2 <= molecule.GetNumAtoms() <= max_atoms
    return molecule if small and known and not open_shell and charge <= MAX_CHARGE else None


def skeleton(molecule: Chem.Mol) -> str:
    """Which heavy atoms are bound to which, whatever their bond orders, hydrogens and charges."""
    plain = Chem.RWMol()
    index = {}
    for atom in molecule.GetAtoms():
        if atom.GetAtomicNum() > 1:
            index[atom.GetIdx()] = plain.AddAtom(Chem.Atom(atom.GetAtomicNum()))
    for bond in molecule.GetBonds():
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if all(end in index for end in ends):
            plain.AddBond(index[ends[0]], index[ends[1]], Chem.BondType.SINGLE)
    for atom in plain.GetAtoms():
        atom.SetNoImplicit(True)
    return Chem.MolToSmiles(plain)


def assign(
    skeletons: dict[int, str], parts: dict[int, int] | None, held: float, seed: int
) -> dict[int, int]:
    """Split of every line that is used: 0 train, 1 validation.

    Args:
        skeletons: of the lines that could be used.
        parts: split of lines by other corpora; a line that is missing is kept out.
        held: without ``parts``, the fraction of skeletons for validation.
        seed: of that choice.
    """
    if parts is None:
        names = sorted(set(skeletons.values()))
        chosen = np.random.default_rng(seed).random(len(names)) < held
        part = dict(zip(names, chosen.astype(int).tolist(), strict=True))
        return {row: part[name] for row, name in skeletons.items()}
    others = {name for row, name in skeletons.items() if parts.get(row) != 0}
    return {
        row: parts[row]
        for row, name in skeletons.items()
        if parts.get(row) == 1 or (parts.get(row) == 0 and name not in others)
    }


def states_of(
    numbers: np.ndarray, charge: int, how_many: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    """Charges and multiplicities to label a geometry in; the ground state's guess comes first.

    Every change of the charge by up to two electrons within -2 ... +2, each with the two lowest
    multiplicities that it allows; the likelier, the fewer electrons are moved or unpaired.
    """
    electrons = int(numbers.sum()) - charge
    weights: dict[tuple[int, int], float] = {}
    for change, weight in ((0, 8.0), (1, 4.0), (-1, 4.0), (2, 1.0), (-2, 1.0)):
        odd = (electrons - change) % 2
        if abs(charge + change) <= MAX_CHARGE:
            weights[charge + change, 1 + odd] = weight
            if electrons - change >= 2 + odd:
                weights[charge + change, 3 + odd] = 0.3 * weight
    first, *others = weights
    chance = np.array([weights[state] for state in others])
    picked = generator.choice(
        len(others), min(how_many - 1, len(others)), replace=False, p=chance / chance.sum()
    )
    return [first, *(others[k] for k in picked)]


def force_field(molecule: Chem.Mol) -> Surface:
    """MMFF94 of an embedded molecule, or UFF.

    Raises:
        Unusable: neither knows the molecule.
    """
    properties = AllChem.MMFFGetMoleculeProperties(molecule)
    if properties is not None:
        field = AllChem.MMFFGetMoleculeForceField(molecule, properties)
    elif AllChem.UFFHasAllMoleculeParams(molecule):
        field = AllChem.UFFGetMoleculeForceField(molecule)
    else:
        raise Unusable("no force field")
    field.Initialize()

    def surface(positions: np.ndarray) -> tuple[float, np.ndarray]:
        flat = positions.ravel().tolist()
        # The energy first: RDKit keeps distances between calls, and only this renews them.
        energy = field.CalcEnergy(flat)
        gradient = np.array(field.CalcGrad(flat)).reshape(-1, 3)
        return KCAL_PER_MOL * energy, -KCAL_PER_MOL * gradient

    return surface


def molecule_frames(
    row: int, smiles: str, split: int, geometries: int, states: int, seed: int
) -> Made:
    """All labels of one molecule and of the radicals made from it."""
    generator = np.random.default_rng([seed, row])
    molecule = parse(smiles, 99, 999)
    assert molecule is not None
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    charge = Chem.GetFormalCharge(molecule)
    frames: list[Frame] = []
    left_out: Counter[str] = Counter()
    try:
        start = embed(molecule, int(generator.integers(2**31 - 1)))
        surface = force_field(molecule)
        *_, start = (start, *relax(surface, start, 300))
        dynamics = langevin(surface, numbers, start, generator.uniform(200.0, 900.0), generator)
    except Unusable as reason:
        return [], {str(reason): geometries * states}
    for _ in range(geometries):
        for _ in range(150):
            positions = next(dynamics)
        atoms, source = numbers, MOLECULE
        hydrogens = np.flatnonzero(numbers == 1)
        if len(numbers) > 2 and hydrogens.size and generator.random() < 0.5:
            gone = generator.choice(hydrogens)
            atoms, source = np.delete(numbers, gone), RADICAL
            positions = np.delete(positions, gone, axis=0)
        chosen = states_of(atoms, charge, states, generator)
        try:
            if generator.random() < 0.4:
                state = chosen[generator.integers(len(chosen))]
                surface = XTB(atoms, *state, restart=True)
                *_, positions = (positions, *relax(surface, positions, generator.integers(5, 31)))
            else:
                positions = positions + generator.normal(
                    scale=generator.uniform(0.0, 0.06), size=positions.shape
                )
        except Unusable as reason:
            left_out[f"{reason} (relaxation)"] += len(chosen)
            continue
        for state in chosen:
            try:
                frames.append(
                    label(atoms, positions, *state, molecule=row, source=source, split=split)
                )
            except Unusable as reason:
                left_out[str(reason)] += 1
    return frames, dict(left_out)


def shard(tasks: list[tuple[int, str, int]], **options: Any) -> Made:
    """All labels of several molecules: (line, SMILES, split) each."""
    RDLogger.DisableLog("rdApp.*")
    frames: list[Frame] = []
    left_out: Counter[str] = Counter()
    for task in tasks:
        more, without = molecule_frames(*task, **options)
        frames += more
        left_out.update(without)
    return frames, dict(left_out)


def read_parts(paths: list[str]) -> dict[int, int]:
    """Split of every line that the corpora hold."""
    parts: dict[int, int] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            parts.update(zip(data["molecule"].tolist(), data["split"].tolist(), strict=True))
    return parts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("smiles", help="file with one SMILES a line")
    parser.add_argument("--output", required=True, help="directory of the shards")
    parser.add_argument("--parts", nargs="*", help="corpora that say how the lines are split")
    parser.add_argument("--held", type=float, default=0.05, help="fraction held without --parts")
    parser.add_argument("--max-heavy", type=int, default=12)
    parser.add_argument("--max-atoms", type=int, default=26)
    parser.add_argument("--small", type=int, default=9, help="heavy atoms up to which all are used")
    parser.add_argument("--larger", type=float, default=0.3, help="fraction used of those above")
    parser.add_argument("--geometries", type=int, default=3, help="of each molecule")
    parser.add_argument("--states", type=int, default=4, help="of each geometry")
    parser.add_argument("--molecules", type=int, default=30, help="in a shard")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args(arguments)

    RDLogger.DisableLog("rdApp.*")
    lines = [line.split()[0] for line in Path(given.smiles).read_text().splitlines()]
    parsed = {row: parse(text, given.max_heavy, given.max_atoms) for row, text in enumerate(lines)}
    kept = {row: molecule for row, molecule in parsed.items() if molecule is not None}
    skeletons = {row: skeleton(molecule) for row, molecule in kept.items()}
    parts = read_parts(given.parts) if given.parts else None
    split = assign(skeletons, parts, given.held, given.seed)
    generator = np.random.default_rng(given.seed)
    lot = generator.random(len(lines))
    rows = [
        row
        for row in generator.permutation(len(lines)).tolist()
        if row in split and (kept[row].GetNumHeavyAtoms() <= given.small or lot[row] < given.larger)
    ]
    print(f"{len(lines)} lines, {len(kept)} of the wanted kind, {len(rows)} used", flush=True)
    tasks = {
        f"open-shell-{k:04d}": [(row, lines[row], split[row]) for row in rows[start : start + n]]
        for n in (given.molecules,)
        for k, start in enumerate(range(0, len(rows), n))
    }
    options = {"geometries": given.geometries, "states": given.states, "seed": given.seed}
    make_shards(shard, options, tasks, given.output, given.jobs)


if __name__ == "__main__":
    main()
