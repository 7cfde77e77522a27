"""Atoms held fixed, and hydrogen made heavier so that the time step can be longer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase import Atoms
from ase.constraints import FixAtoms
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.md.bonds import relative_distances
from nnpcalc.state import element_symbol, system_label

#: A hydrogen atom belongs to the nearest heavier atom within this many sums of covalent radii.
BONDED = 1.3


def mobile_atoms(structures: Sequence[Atoms]) -> Tensor | None:
    """bool [N], False for the atoms that `ase.constraints.FixAtoms` holds; None if all may move.

    Raises:
        ValueError: any other constraint; these integrators would not honour it.
    """
    parts = []
    for k, atoms in enumerate(structures):
        mobile = torch.ones(len(atoms), dtype=torch.bool)
        for constraint in atoms.constraints:
            if not isinstance(constraint, FixAtoms):
                raise ValueError(
                    f"{system_label(atoms, k)} has the constraint {type(constraint).__name__}; "
                    "only FixAtoms is supported here. Remove it, or use ASE's own dynamics"
                )
            mobile[torch.from_numpy(constraint.get_indices())] = False
        if len(atoms) and not bool(mobile.any()):
            raise ValueError(f"{system_label(atoms, k)}: FixAtoms holds every atom")
        parts.append(mobile)
    together = torch.cat(parts) if parts else torch.ones(0, dtype=torch.bool)
    return None if bool(together.all()) else together


def heavier_hydrogen(atoms: AtomsBatch, masses: Tensor, hydrogen_mass: float = 3.0) -> Tensor:
    """Masses [N] with mass moved from heavy atoms to the hydrogen bound to them.

    The sum of the masses, and with it every average over positions, stays the same, while the
    fastest vibrations become slower: Hopkins, Le Grand, Walker and Roitberg, J. Chem. Theory
    Comput. 11, 1864 (2015).

    Args:
        atoms: float64.
        masses: [N], amu.
        hydrogen_mass: amu of each hydrogen atom afterwards; one without a heavier atom within
            bonding distance (H2, a proton) keeps its mass.

    Raises:
        ValueError: a heavy atom would become lighter than its hydrogen.
    """
    if not hydrogen_mass > 0:
        raise ValueError(f"the mass of hydrogen must be positive (amu), not {hydrogen_mass}")
    neighbors, relative = relative_distances(atoms, BONDED)
    i, j = neighbors.pairs
    result = masses.clone()
    candidates = torch.nonzero((atoms.numbers[i] == 1) & (atoms.numbers[j] > 1))[:, 0].tolist()
    nearest: dict[int, tuple[float, int]] = {}
    for p in candidates:
        hydrogen, found = int(i[p]), (float(relative[p]), int(j[p]))
        nearest[hydrogen] = min(nearest.get(hydrogen, found), found)
    for hydrogen, (_, heavy) in nearest.items():
        moved = hydrogen_mass - float(result[hydrogen])
        result[hydrogen] += moved
        result[heavy] -= moved
    light = (atoms.numbers > 1) & (result < hydrogen_mass) & (result != masses)
    if bool(light.any()):
        k = int(light.to(torch.int64).argmax())
        raise ValueError(
            f"atom {k} ({element_symbol(int(atoms.numbers[k]))}) would be left with "
            f"{float(result[k]):.3g} amu when its hydrogen gets {hydrogen_mass:g}; take less"
        )
    return result
