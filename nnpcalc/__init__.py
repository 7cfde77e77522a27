"""Neural network potentials that know charge and spin, as an ASE calculator.

>>> import nnpcalc
>>> "NNPCalculator" in nnpcalc.__all__
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch
    from nnpcalc.calculator import NNPCalculator
    from nnpcalc.factory import build_potential
    from nnpcalc.neighbors import list_backends, neighbor_list
    from nnpcalc.normal_modes import vibrations
    from nnpcalc.optimizer import optimize
    from nnpcalc.potential import Potential, Results
    from nnpcalc.state import State, resolve_state
    from nnpcalc.states import state_energies, vertical_energies
    from nnpcalc.weights import export_torchscript, list_models, load_potential

__version__ = "0.1.0"

__all__ = [
    "AtomsBatch",
    "NNPCalculator",
    "Potential",
    "Results",
    "State",
    "build_potential",
    "export_torchscript",
    "list_backends",
    "list_models",
    "load_potential",
    "neighbor_list",
    "optimize",
    "resolve_state",
    "state_energies",
    "vertical_energies",
    "vibrations",
]

#: Where each name comes from. They are imported when first used: `import nnpcalc` costs nothing.
_HOMES = {
    "AtomsBatch": "batch",
    "NNPCalculator": "calculator",
    "Potential": "potential",
    "Results": "potential",
    "State": "state",
    "build_potential": "factory",
    "export_torchscript": "weights",
    "list_backends": "neighbors",
    "list_models": "weights",
    "load_potential": "weights",
    "neighbor_list": "neighbors",
    "optimize": "optimizer",
    "resolve_state": "state",
    "state_energies": "states",
    "vertical_energies": "states",
    "vibrations": "normal_modes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nnpcalc' has no attribute {name!r}")
    value = getattr(import_module(f"nnpcalc.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
