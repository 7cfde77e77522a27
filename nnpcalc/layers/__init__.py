"""Building blocks that two or more architectures share; all of them compile to TorchScript."""

from nnpcalc.layers.cutoffs import cosine_cutoff, polynomial_cutoff
from nnpcalc.layers.radial import ExpNormalBasis

__all__ = ["ExpNormalBasis", "cosine_cutoff", "polynomial_cutoff"]
