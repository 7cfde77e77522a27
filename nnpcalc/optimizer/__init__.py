"""Minima of many structures at once.

    import nnpcalc
    for result in nnpcalc.optimize(molecules, "tensornet-spice"):
        print(result.energy, result.converged or result.reason)

`nnpcalc.optimize` is `nnpcalc.optimizer.optimize`.
"""

from nnpcalc.optimizer.fire import FIRE
from nnpcalc.optimizer.lbfgs import LBFGS
from nnpcalc.optimizer.run import Optimized, optimize
from nnpcalc.optimizer.search import Method, Search

__all__ = ["FIRE", "LBFGS", "Method", "Optimized", "Search", "optimize"]
