"""Cheap, hot conformers: distance geometry once, then MMFF94 (or UFF) Langevin dynamics.

Energies of the force fields are in kcal/mol inside this file; positions are in Å, time in fs.
"""

from __future__ import annotations

import math

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

BOLTZMANN = 0.0019872043  # kcal/mol/K
ACCELERATION = 4.184e-4  # Å/fs² per kcal/mol/Å/amu
# Which conformers are drawn as in the corpus that this extends; the rest are minimised ones.
DYNAMICS, NOISE, STRETCH = 0.75, 0.17, 0.05
TEMPERATURES = (200.0, 1000.0)
STEPS = (100, 200)  # of 1 fs between two frames
# Configurations at a temperature do not depend on masses; heavy hydrogen allows steps of 1 fs.
LEAST_MASS = 4.0
FRICTION = 0.03  # 1/fs: forgets its velocity within a frame

_TABLE = Chem.GetPeriodicTable()


class Failed(ValueError):
    """A molecule without conformers; the message is a short reason to be counted."""


def conformers(smiles: str, count: int, generator: np.random.Generator) -> tuple[np.ndarray, list]:
    """``count`` conformers of a molecule.

    Returns:
        Atomic numbers [N] and a list of positions [N, 3] in Å.

    Raises:
        Failed: no embedding, no force field knows the molecule, or its minimiser gives up.
    """
    try:
        return _conformers(smiles, count, generator)
    except RuntimeError as error:  # an invariant of RDKit, hardly ever
        raise Failed("force field failed") from error


def _conformers(smiles: str, count: int, generator: np.random.Generator) -> tuple[np.ndarray, list]:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8)
    options = rdDistGeom.ETKDGv3()
    options.randomSeed = int(generator.integers(2**31 - 1))
    options.maxIterations = 20
    if rdDistGeom.EmbedMolecule(mol, options) != 0:
        options.useRandomCoords = True
        if rdDistGeom.EmbedMolecule(mol, options) != 0:
            raise Failed("not embedded")
    spread_fragments(mol, generator)
    field, bonded = force_field(mol)
    field.Minimize(maxIts=int(generator.integers(30, 200)))
    start = np.array(mol.GetConformer().GetPositions())
    minimised = None
    sampler = Langevin(field, numbers, start, generator)
    frames = []
    for kind in generator.random(count):
        if kind < DYNAMICS:
            frame = sampler.run(int(generator.integers(STEPS[0], STEPS[1] + 1)))
        else:
            if minimised is None:
                minimised = minimise(mol, field, start)
            frame = minimised
            if kind < DYNAMICS + NOISE:
                width = generator.uniform(0.01, 0.1)
                frame = frame + generator.normal(scale=width, size=frame.shape)
            elif kind < DYNAMICS + NOISE + STRETCH:
                frame = frame * generator.uniform(0.93, 1.08)
        # UFF knows neither the ions nor boron well and may tear them into something else.
        if not np.isfinite(frame).all() or not (bonded or same_bonds(mol, frame)):
            continue
        frames.append(frame)
    if not frames:
        raise Failed("torn by UFF")
    return numbers, frames


def force_field(mol: Chem.Mol):
    """The force field of a molecule with a conformer, and whether it is MMFF94."""
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    field = None
    if properties is not None:
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(
            mol, properties, ignoreInterfragInteractions=False
        )
    else:
        field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol, ignoreInterfragInteractions=False)
    if field is None:
        raise Failed("no force field")
    field.Initialize()
    return field, properties is not None


def minimise(mol: Chem.Mol, field, start: np.ndarray) -> np.ndarray:
    """A minimum near ``start`` [N, 3]."""
    mol.GetConformer().SetPositions(start)
    field.Minimize(maxIts=500)
    return np.array(mol.GetConformer().GetPositions())


class Langevin:
    """Langevin dynamics of one molecule by the splitting BAOAB (Leimkuhler and Matthews 2013).

    Args:
        field: an RDKit force field.
        numbers: [N].
        positions: [N, 3], Å.
        generator: of the noise and of the temperature, which is drawn once.
    """

    def __init__(
        self,
        field,
        numbers: np.ndarray,
        positions: np.ndarray,
        generator: np.random.Generator,
    ) -> None:
        self.field, self.generator = field, generator
        self.positions = positions.ravel().copy()
        masses = [max(_TABLE.GetAtomicWeight(int(z)), LEAST_MASS) for z in numbers]
        temperature = generator.uniform(*TEMPERATURES)
        self.kick = 0.5 * ACCELERATION / np.repeat(masses, 3)
        self.spread = np.sqrt(2.0 * self.kick * BOLTZMANN * temperature)
        self.velocities = self.spread * generator.normal(size=self.spread.size)
        self.gradient = self._gradient()

    def _gradient(self) -> np.ndarray:
        positions = self.positions.tolist()
        # RDKit keeps distances between calls; only CalcEnergy renews them, CalcGrad does not.
        self.field.CalcEnergy(positions)
        return np.array(self.field.CalcGrad(positions))

    def run(self, steps: int) -> np.ndarray:
        """Positions [N, 3] after so many steps of 1 fs."""
        keep = math.exp(-FRICTION)
        noise = math.sqrt(1.0 - keep * keep) * self.spread
        for _ in range(steps):
            self.velocities -= self.kick * self.gradient
            self.positions += 0.5 * self.velocities
            self.velocities *= keep
            self.velocities += noise * self.generator.normal(size=noise.size)
            self.positions += 0.5 * self.velocities
            self.gradient = self._gradient()
            self.velocities -= self.kick * self.gradient
        return self.positions.reshape(-1, 3).copy()


def spread_fragments(mol: Chem.Mol, generator: np.random.Generator) -> None:
    """Put the fragments of a complex beside each other, at 0.8 to 1.5 of van der Waals contact."""
    fragments = Chem.GetMolFrags(mol)
    if len(fragments) == 1:
        return
    conformer = mol.GetConformer()
    positions = np.array(conformer.GetPositions())
    radii = np.array([_TABLE.GetRvdw(atom.GetAtomicNum()) for atom in mol.GetAtoms()])
    placed = list(fragments[0])
    for fragment in map(list, fragments[1:]):
        direction = generator.normal(size=3)
        direction /= np.linalg.norm(direction)
        positions[fragment] += positions[placed].mean(axis=0) - positions[fragment].mean(axis=0)
        contact = generator.uniform(0.8, 1.5) * (radii[placed][:, None] + radii[fragment])
        while True:
            between = positions[placed][:, None] - positions[fragment]
            if (np.linalg.norm(between, axis=2) >= contact).all():
                break
            positions[fragment] += 0.1 * direction
        placed += fragment
    conformer.SetPositions(positions)


def same_bonds(mol: Chem.Mol, positions: np.ndarray) -> bool:
    """Whether covalent radii find every bond of ``mol``, and no other between heavy atoms."""
    radii = np.array([_TABLE.GetRcovalent(atom.GetAtomicNum()) for atom in mol.GetAtoms()])
    ratio = np.linalg.norm(positions[:, None] - positions, axis=2) / (radii[:, None] + radii)
    bonded = Chem.GetAdjacencyMatrix(mol).astype(bool)
    apart = ~bonded & (Chem.GetDistanceMatrix(mol) > 2)
    return bool((ratio[bonded] < 1.4).all() and (ratio[apart] > 1.15).all())
