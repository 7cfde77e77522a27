"""Carbenes R-C-R' and nitrenes R-N, singlet and triplet at the same geometries.

    python carbenes.py --output carbenes

Labels: spin-polarised GFN2-xTB. Needs tblite, ase, numpy, rdkit.

In the spirit of QMspin (Schwilk, Tahchieva and von Lilienfeld, arXiv 2004.10600), which holds
multireference energies of carbenes in both states at geometries optimised in each: here every
molecule is embedded and relaxed in each state; its geometries are the last one, and others from
along the way with Gaussian noise. Geometries whose bonds are not those of the molecule any more
(many singlets rearrange without a barrier) are left out, and so is a geometry that does not
converge in both states. The split is by molecule. ``source`` is 22 for a carbene and 23 for a
nitrene; ``molecule`` is the line of ``molecules.txt`` in the output directory.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
from rdkit import Chem, RDLogger
from xtb import XTB, Frame, Made, Unusable, bonds, embed, label, make_shards, relax

CARBENE, NITRENE = 22, 23
MULTIPLICITIES = (1, 3)
MAX_HEAVY = 9

#: Substituents by the SMILES that follows the carbene or nitrene centre.
SUBSTITUENTS = (
    "[H]", "C", "CC", "C(C)C", "C1CC1", "C=C", "C#C", "C=O", "C(C)=O", "C(N)=O", "C(=O)OC", "C#N",
    "CF", "C(F)(F)F", "C(Cl)(Cl)Cl", "CO", "CN", "c1ccccc1", "c1ccco1", "c1cc[nH]c1", "F", "Cl",
    "Br", "O", "OC", "OC=C", "N", "NC", "N(C)C", "N1CC1", "[N+](=O)[O-]", "S", "SC", "P", "P(C)C",
    "[SiH3]", "[Si](C)(C)C", "B", "B(C)C", "B(O)O",
)  # fmt: skip
CYCLIC = (
    "[C]1NC=CN1", "[C]1NCCN1", "CN1[C]N(C)C=C1", "[C]1OC=CO1", "[C]1NC=CO1", "[C]1NC=CS1",
    "[C]1SC=CS1", "[C]1C=C1", "[C]1CC1", "[C]1CCC1", "[C]1CCCC1", "[C]1CCCCC1", "[C]1C=CC=C1",
    "[C]1C=CCC1", "[C]1CCC=C1", "[C]1COC1", "[C]1CCCO1", "[C]1CCCN1", "[C]1CCCS1", "[C]1CC1C",
    "[C]1C(C)(C)C1", "[C]1N=NN1", "[C]1NN=CN1", "[C]1C(=O)CC1", "[C]1C=CC(=O)C=C1",
)  # fmt: skip
AROMATIC = ("Fc1ccc({})cc1", "Cc1ccc({})cc1", "c1cc({})ccn1", "c1ccc({})cn1", "Oc1ccc({})cc1")


def candidates() -> list[str]:
    """SMILES of all molecules, each once, smallest first."""
    texts = [f"[C]({a}){b}" for k, a in enumerate(SUBSTITUENTS) for b in SUBSTITUENTS[k:]]
    texts += CYCLIC
    texts += [f"[N]{a}" for a in SUBSTITUENTS]
    texts += [ring.format(centre) for ring in AROMATIC for centre in ("[CH]", "[N]")]
    unique = {Chem.CanonSmiles(text) for text in texts}
    small = [s for s in unique if Chem.MolFromSmiles(s).GetNumHeavyAtoms() <= MAX_HEAVY]
    return sorted(small, key=lambda s: (Chem.MolFromSmiles(s).GetNumHeavyAtoms(), s))


def centre_of(molecule: Chem.Mol) -> Chem.Atom:
    """The divalent carbon or monovalent nitrogen.

    Raises:
        ValueError: there is not exactly one.
    """
    open_atoms = [atom for atom in molecule.GetAtoms() if atom.GetNumRadicalElectrons()]
    if len(open_atoms) != 1 or open_atoms[0].GetNumRadicalElectrons() != 2:
        raise ValueError(f"{Chem.MolToSmiles(molecule)} is not a carbene or nitrene")
    return open_atoms[0]


def bond_matrix(molecule: Chem.Mol) -> np.ndarray:
    """Which atoms the SMILES binds: [N, N], bool."""
    return Chem.GetAdjacencyMatrix(molecule).astype(bool)


def carbene_frames(
    task: list[tuple[int, str, int]], geometries: int, steps: int, noise: float, seed: int
) -> Made:
    """Both states of several molecules: (line, SMILES, split) each."""
    RDLogger.DisableLog("rdApp.*")
    frames: list[Frame] = []
    left_out: Counter[str] = Counter()
    for row, smiles, split in task:
        generator = np.random.default_rng([seed, row])
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
        source = CARBENE if centre_of(molecule).GetAtomicNum() == 6 else NITRENE
        expected = bond_matrix(molecule)
        for multiplicity in MULTIPLICITIES:
            try:
                start = embed(molecule, int(generator.integers(2**31 - 1)))
                surface = XTB(numbers, 0, multiplicity, restart=True)
                path = [start, *relax(surface, start, steps)]
            except Unusable as reason:
                left_out[f"{reason} (relaxation)"] += geometries * len(MULTIPLICITIES)
                continue
            for k in range(geometries):
                place = -1 if k == 0 else int(generator.integers(len(path) // 2, len(path)))
                positions = path[place]
                if (bonds(numbers, positions) != expected).any():
                    left_out["rearranged"] += len(MULTIPLICITIES)
                    continue
                if k:
                    spread = generator.uniform(0.0, noise)
                    positions = positions + generator.normal(scale=spread, size=positions.shape)
                try:
                    frames += [
                        label(numbers, positions, 0, one, molecule=row, source=source, split=split)
                        for one in MULTIPLICITIES
                    ]
                except Unusable as reason:
                    left_out[str(reason)] += len(MULTIPLICITIES)
    return frames, dict(left_out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--output", required=True, help="directory of the shards")
    parser.add_argument("--geometries", type=int, default=6, help="from each state of a molecule")
    parser.add_argument("--steps", type=int, default=100, help="of relaxation")
    parser.add_argument("--noise", type=float, default=0.08, help="largest deviation, Å")
    parser.add_argument("--held", type=float, default=0.15, help="fraction for validation")
    parser.add_argument("--limit", type=int, default=500, help="molecules used, drawn at random")
    parser.add_argument("--molecules", type=int, default=25, help="in a shard")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args(arguments)

    RDLogger.DisableLog("rdApp.*")
    generator = np.random.default_rng(given.seed)
    every = candidates()
    chosen = generator.permutation(len(every))[: given.limit]
    texts = [every[k] for k in chosen]
    split = (generator.random(len(texts)) < given.held).astype(int).tolist()
    rows = list(zip(range(len(texts)), texts, split, strict=True))
    print(f"{len(every)} molecules, {len(texts)} used, {sum(split)} for validation", flush=True)
    tasks = {
        f"carbenes-{k:03d}": rows[start : start + given.molecules]
        for k, start in enumerate(range(0, len(rows), given.molecules))
    }
    options = {name: getattr(given, name) for name in ("geometries", "steps", "noise", "seed")}
    make_shards(carbene_frames, options, tasks, given.output, given.jobs, texts)


if __name__ == "__main__":
    main()
