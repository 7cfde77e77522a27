"""Integrators: each one a frozen dataclass of settings with `init`, `step` and `conserved`."""

from nnpcalc.md.integrators.barostat import CellRescaling
from nnpcalc.md.integrators.bussi import Bussi
from nnpcalc.md.integrators.common import Integrator
from nnpcalc.md.integrators.langevin import Langevin
from nnpcalc.md.integrators.nose_hoover import NoseHoover
from nnpcalc.md.integrators.nve import NVE
from nnpcalc.md.integrators.respa import Respa

__all__ = ["NVE", "Bussi", "CellRescaling", "Integrator", "Langevin", "NoseHoover", "Respa"]
