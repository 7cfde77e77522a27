"""Energy terms beside the network; each gives an energy per atom in eV.

A term is a module ``forward(numbers, pairs, vectors, distances, system, charge, multiplicity)
-> [N]`` that compiles to TorchScript; `nnpcalc.potential.Potential` adds its terms up.
"""

from nnpcalc.terms.atomic_energies import AtomicEnergies
from nnpcalc.terms.state_energy import StateEnergy
from nnpcalc.terms.system_energy import SystemEnergy
from nnpcalc.terms.zbl import ZBL

__all__ = ["ZBL", "AtomicEnergies", "StateEnergy", "SystemEnergy"]
