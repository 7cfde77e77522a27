"""SMILES -> a structure with charge and multiplicity; needs rdkit."""

from __future__ import annotations

from typing import Any

from ase import Atoms


def from_smiles(smiles: str, seed: int = 0) -> Atoms:
    """A conformer of the molecule that a SMILES string describes.

    Hydrogen atoms are added, the geometry is embedded by ETKDGv3 (Wang, Witek, Landrum and Riniker,
    J. Chem. Inf. Model. 60, 2044 (2020)) and relaxed by MMFF94, or UFF where MMFF94 lacks
    parameters. Molecules that dots separate become one complex.

    Args:
        smiles: e.g. "CC(=O)[O-]", "[CH3]", "C[NH3+]".
        seed: of the embedding, 0 or more; the same seed gives the same conformer.

    Returns:
        Atoms with `info["charge"]`, the sum of the formal charges, `info["spin"]`, 2S + 1 with all
        unpaired electrons of the string parallel, and `info["smiles"]`. The string says what is
        unpaired, not nature: O=O is a singlet, [O][O] a triplet.

    Raises:
        ValueError: no SMILES, no atoms, a wildcard, or a molecule for which no geometry is found.
        ImportError: rdkit is not installed.

    >>> from_smiles("CC(=O)[O-]").info["charge"]
    -1
    """
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise ImportError("SMILES need rdkit: pip install 'nnpcalc[smiles]'") from error
    with rdBase.BlockLogs():  # what rdkit would print in several lines is said in ours
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raise ValueError(f"{smiles!r} is no SMILES string: {_problem(smiles)}")
        if not molecule.GetNumAtoms():
            raise ValueError("an empty SMILES string has no atoms")
        if any(not atom.GetAtomicNum() for atom in molecule.GetAtoms()):
            raise ValueError(f"{smiles!r} has a wildcard (*): put an element in its place")
        molecule = Chem.AddHs(molecule)
        _embed(molecule, smiles, seed)
        _relax(molecule)
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    return Atoms(
        numbers=[atom.GetAtomicNum() for atom in molecule.GetAtoms()],
        positions=molecule.GetConformer().GetPositions(),
        info={"charge": Chem.GetFormalCharge(molecule), "spin": 1 + unpaired, "smiles": smiles},
    )


def _problem(smiles: str) -> str:
    """Why rdkit refuses a string."""
    from rdkit import Chem

    raw = Chem.MolFromSmiles(smiles, sanitize=False)
    problems = [] if raw is None else Chem.DetectChemistryProblems(raw)
    if problems:
        return str(problems[0].Message())
    return "look for unclosed rings, brackets and branches"


def _embed(molecule: Any, smiles: str, seed: int) -> None:
    """Give the molecule a geometry; from random coordinates where distances alone do not do."""
    from rdkit.Chem import rdDistGeom

    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed
    for parameters.useRandomCoords in (False, True):
        if rdDistGeom.EmbedMolecule(molecule, parameters) == 0:
            return
    raise ValueError(
        f"no geometry was found for {smiles!r}: check its stereochemistry, or give a structure file"
    )


def _relax(molecule: Any) -> None:
    """Relax the geometry, molecules of a complex against each other as well."""
    from rdkit.Chem import rdForceFieldHelpers as fields

    # complexes: molecules would otherwise lie on top of each other
    if fields.MMFFHasAllMoleculeParams(molecule):
        fields.MMFFOptimizeMolecule(molecule, maxIters=2000, ignoreInterfragInteractions=False)
    elif fields.UFFHasAllMoleculeParams(molecule):
        fields.UFFOptimizeMolecule(molecule, maxIters=2000, ignoreInterfragInteractions=False)
