"""Building blocks that two or more architectures share; all of them compile to TorchScript."""

from nnpcalc.layers.atoms import (
    DEFAULT_ELEMENTS,
    STATES,
    AtomEmbedding,
    check_sizes,
    check_system,
    conditions,
    element_table,
    state_columns,
)
from nnpcalc.layers.cutoffs import cosine_cutoff, polynomial_cutoff
from nnpcalc.layers.mlp import check_activation, dense, mlp, pair_sum, shifted_softplus
from nnpcalc.layers.radial import BesselBasis, ExpNormalBasis, GaussianBasis
from nnpcalc.layers.spherical import SphericalBesselBasis, legendre
from nnpcalc.layers.state_embedding import StateEmbedding

__all__ = [
    "DEFAULT_ELEMENTS",
    "STATES",
    "AtomEmbedding",
    "BesselBasis",
    "ExpNormalBasis",
    "GaussianBasis",
    "SphericalBesselBasis",
    "StateEmbedding",
    "check_activation",
    "check_sizes",
    "check_system",
    "conditions",
    "cosine_cutoff",
    "dense",
    "element_table",
    "legendre",
    "mlp",
    "pair_sum",
    "polynomial_cutoff",
    "shifted_softplus",
    "state_columns",
]
