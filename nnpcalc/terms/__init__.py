"""Energy terms beside the network; each gives an energy per atom in eV.

A term is a module ``forward(inputs: TermInputs) -> [N]`` that compiles to TorchScript;
`nnpcalc.potential.Potential` adds its terms up. It sees positions, cells, pairs and, if the core
network has them, partial charges; all derivatives are taken of the sum. It may declare

    cutoff             Å up to which it needs pairs; without, or 0, it gets those of the core
    full_periodicity   True if it cannot compute systems that are periodic in one or two directions
    conditions_on      which of "charge", "multiplicity" its energy depends on
"""

from nnpcalc.terms.atomic_energies import AtomicEnergies
from nnpcalc.terms.dispersion import D3, D3Tables, reference_tables
from nnpcalc.terms.electrostatics import Coulomb
from nnpcalc.terms.inputs import TermInputs
from nnpcalc.terms.state_energy import StateEnergy
from nnpcalc.terms.system_energy import SystemEnergy
from nnpcalc.terms.zbl import ZBL

__all__ = [
    "D3",
    "ZBL",
    "AtomicEnergies",
    "Coulomb",
    "D3Tables",
    "StateEnergy",
    "SystemEnergy",
    "TermInputs",
    "reference_tables",
]
