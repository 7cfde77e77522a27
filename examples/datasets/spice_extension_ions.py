"""Ions from neutral SMILES, and the skeletons that keep a validation set unseen.

Protons are moved by rule: a pattern finds the site, its weight says how often it is taken. The
weights follow the order of acidity and basicity roughly; improbable sites stay possible, because a
potential should know them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from rdkit import Chem

# (weight, SMARTS); the first atom of the match changes.
BASES = [
    # amines that are not amides, sulfonamides, cyanamides, anilines, enamines or N-N, N-O, N-B
    (10.0, "[NX3;+0;!$(N~[!#6]);!$(N-[#6]=[O,S,N]);!$(N-[#6]#N);!$(N-a);!$(N-C=C)]"),
    (6.0, "[nX2;+0]"),
    (6.0, "[NX2;+0]=[#6]"),
    (1.0, "[NX3;+0;$(N-a);!$(N-[#6]=[O,S,N]);!$(N~[!#6])]"),
    (1.0, "[NX3;+0;$(N-[N,O]);!$(N-[#6]=[O,S,N]);!$(N=*)]"),
    (0.5, "[NX1;+0]#[#6]"),
    (1.5, "[OX1;+0]=[#6,P]"),
    (0.7, "[OX1;+0]=[SX3,SX4]"),
    (0.7, "[OX2;+0;!$(O~[!#6]);!$(O-C=[O,S,N])]"),
    (1.0, "[SX1;+0]=[#6]"),
    (1.0, "[SX2;+0;!$(S~[!#6])]"),
    (2.0, "[PX3;+0]"),
]
ACIDS = [
    (10.0, "[OX2;+0;!H0]-[C,S,P,N]=[O,S]"),
    (6.0, "[OX2;+0;!H0]-[c,$(C=C),$([CX3]=N),$(N=C)]"),
    (1.0, "[OX2;+0;!H0]-[CX4,Si,B,O,NX3]"),
    (6.0, "[SX2;+0;!H0]"),
    (3.0, "[NX3;+0;!H0]-[C,S,P]=[O,S,N]"),
    (4.0, "[nX3;+0;!H0]"),
    (1.0, "[NX3;+0;!H0;$(N-a);!$(N-[C,S,P]=[O,S,N])]"),
    (0.3, "[NX3;+0;!H0;!$(N-a);!$(N-[C,S,P]=[O,S,N])]"),
    (1.0, "[PX3;+0;!H0]"),
]
# (weight, SMARTS) of C-H beside X=Y: the charge goes to Y as in the enolate, C=X-Y(-).
CARBON_ACIDS = [
    (1.0, "[CX4;+0;!H0]-[CX3;+0]=[O,S;+0]"),
    (1.0, "[CX4;+0;!H0]-[N+]=[O;+0]"),
    (1.0, "[CX4;+0;!H0]-[CX2]#[NX1;+0]"),
]
SEPARATION = 3  # fewest bonds between two sites
STRONG = 10.0  # weight of the strongest acids and bases


@dataclass(frozen=True)
class Site:
    """Where a proton may come or go: ``atoms`` is (atom,) or, for a carbon acid, (C, X, Y)."""

    weight: float
    atoms: tuple[int, ...]


def read(smiles: str) -> Chem.Mol | None:
    """A molecule without explicit hydrogen and atom maps, which would hide sites, or None."""
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        return None
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
    return Chem.RemoveHs(mol)


def _compiled(patterns: list[tuple[float, str]]) -> list[tuple[float, Chem.Mol]]:
    return [(weight, Chem.MolFromSmarts(smarts)) for weight, smarts in patterns]


_BASES, _ACIDS, _CARBON_ACIDS = map(_compiled, (BASES, ACIDS, CARBON_ACIDS))


def sites(mol: Chem.Mol, sign: int) -> list[Site]:
    """Sites for gaining (sign +1) or losing (sign -1) a proton, at most one per atom."""
    found: dict[int, Site] = {}
    for weight, pattern in _BASES if sign > 0 else _ACIDS:
        for match in mol.GetSubstructMatches(pattern):
            found.setdefault(match[0], Site(weight, match[:1]))
    for weight, pattern in _CARBON_ACIDS if sign < 0 else []:
        for match in mol.GetSubstructMatches(pattern):
            found.setdefault(match[0], Site(weight, match))
    return [found[atom] for atom in sorted(found)]


def move_protons(mol: Chem.Mol, chosen: Iterable[Site], sign: int) -> str | None:
    """Canonical SMILES after the proton moves, or None where that is no valid closed shell."""
    ion = Chem.RWMol(mol)
    Chem.Kekulize(ion, clearAromaticFlags=True)
    for site in chosen:
        atom = ion.GetAtomWithIdx(site.atoms[0])
        hydrogens = atom.GetTotalNumHs() + sign
        atom.SetNumExplicitHs(hydrogens)
        atom.SetNoImplicit(True)
        atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
        charged = atom
        if len(site.atoms) == 3:
            carbon, middle, end = site.atoms
            old = ion.GetBondBetweenAtoms(middle, end)
            old.SetBondType(
                Chem.BondType.DOUBLE if old.GetBondTypeAsDouble() == 3 else Chem.BondType.SINGLE
            )
            ion.GetBondBetweenAtoms(carbon, middle).SetBondType(Chem.BondType.DOUBLE)
            charged = ion.GetAtomWithIdx(end)
        charged.SetFormalCharge(charged.GetFormalCharge() + sign)
    try:
        Chem.SanitizeMol(ion)
        smiles = Chem.MolToSmiles(ion)
        again = Chem.MolFromSmiles(smiles)
    except (ValueError, RuntimeError):
        return None
    if again is None or any(atom.GetNumRadicalElectrons() for atom in again.GetAtoms()):
        return None
    return Chem.MolToSmiles(again)


def ionise(
    smiles: str, charge: int, generator: np.random.Generator
) -> tuple[str, float] | tuple[None, float]:
    """One ion of the wanted total charge, or None where the molecule has no sites for it.

    A molecule that has the charge already is returned as it is, so permanent ions are kept. Up to
    two protons are moved; of two sites those many bonds apart are preferred. The second value, from
    0 to 1, says how probable the ion is.
    """
    mol = read(smiles)
    if mol is None:
        return None, 0.0
    missing = charge - Chem.GetFormalCharge(mol)
    if missing == 0:
        return Chem.MolToSmiles(mol), 1.0
    if abs(missing) > 2:
        return None, 0.0
    sign = 1 if missing > 0 else -1
    found = sites(mol, sign)
    bonds = Chem.GetDistanceMatrix(mol)
    choices: list[tuple[float, tuple[Site, ...]]] = []
    if abs(missing) == 1:
        choices = [(site.weight / STRONG, (site,)) for site in found]
    else:
        for one, two in combinations(found, 2):
            apart = min(bonds[a, b] for a in one.atoms for b in two.atoms)
            if apart >= SEPARATION:
                weight = one.weight * two.weight / STRONG**2 * min(apart, 8.0) / 8.0
                choices.append((weight, (one, two)))
    while choices:
        weights = np.array([weight for weight, _ in choices])
        pick = int(generator.choice(len(choices), p=weights / weights.sum()))
        weight, moved = choices.pop(pick)
        ion = move_protons(mol, moved, sign)
        if ion is not None:
            return ion, weight
    return None, 0.0


def skeleton(smiles: str) -> str | None:
    """Canonical SMILES of the heavy atoms and which are bonded, and nothing else.

    Without hydrogen, charge, bond order, aromaticity and stereochemistry an acid and its anion, a
    ketone and its enol, and all protonation states are one skeleton. None if it does not parse.
    """
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        return None
    bare = Chem.RWMol()
    index: dict[int, int] = {}
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() > 1:
            new = Chem.Atom(atom.GetAtomicNum())
            new.SetNoImplicit(True)
            index[atom.GetIdx()] = bare.AddAtom(new)
    for bond in mol.GetBonds():
        begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if begin in index and end in index:
            bare.AddBond(index[begin], index[end], Chem.BondType.SINGLE)
    return Chem.MolToSmiles(bare)


def skeletons(smiles: Iterable[str]) -> set[str]:
    """The skeletons of all lines.

    Raises:
        ValueError: a line does not parse; a guard with holes is none.
    """
    result = set()
    for line in smiles:
        bare = skeleton(line)
        if bare is None:
            raise ValueError(f"the molecule to exclude {line!r} is not valid SMILES: correct it")
        result.add(bare)
    return result


def unseen(smiles: Iterable[str], excluded: set[str]) -> Iterator[str]:
    """The molecules whose skeleton is not excluded; unreadable ones are left out."""
    for line in smiles:
        bare = skeleton(line)
        if bare is not None and bare not in excluded:
            yield line
