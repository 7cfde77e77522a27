"""Coordinates held fixed by the constraints of a structure."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from numpy.typing import NDArray

from nnpcalc.state import system_label


def mobile_coordinates(atoms: Atoms, system: int | None = None) -> NDArray[np.float64]:
    """[n, 3], 1, or 0 for the coordinates that `FixAtoms` and `FixCartesian` hold fixed.

    Args:
        atoms: the structure.
        system: its place in a list, named in errors.

    Raises:
        ValueError: any other constraint; it would not be honoured.
    """
    mobile = np.ones((len(atoms), 3))
    for constraint in atoms.constraints:
        if not isinstance(constraint, (FixAtoms, FixCartesian)):
            raise ValueError(
                f"{system_label(atoms, system)} has the constraint {type(constraint).__name__}; "
                "only FixAtoms and FixCartesian are supported here. Remove it, or use ASE's own "
                "programs"
            )
        constraint.adjust_forces(atoms, mobile)  # a fixed component of a force becomes zero
    return mobile
