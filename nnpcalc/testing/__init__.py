"""What every potential and every charge-aware calculator must satisfy, as functions to call.

    from nnpcalc.testing import check_calculator, check_potential
    check_potential(Potential(MyCore(config)))    # random weights will do
    check_calculator(AnyASECalculator(), atoms)

Both run a list of checks and raise one AssertionError that names every violated property with the
numbers found. The package's own tests run them over every architecture in
`nnpcalc.models.ARCHITECTURES`; adding an architecture adds it to them.
"""

from __future__ import annotations

from nnpcalc.testing.calculator import CALCULATOR_CHECKS, check_calculator
from nnpcalc.testing.potential import POTENTIAL_CHECKS, check_potential
from nnpcalc.testing.structures import sample_structures
from nnpcalc.testing.tolerances import TOLERANCES, tolerance

__all__ = [
    "CALCULATOR_CHECKS",
    "POTENTIAL_CHECKS",
    "TOLERANCES",
    "check_calculator",
    "check_potential",
    "sample_structures",
    "tolerance",
]
