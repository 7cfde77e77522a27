"""Building blocks that two or more architectures share; all of them compile to TorchScript."""

from nnpcalc.layers.cutoffs import cosine_cutoff, polynomial_cutoff
from nnpcalc.layers.radial import ExpNormalBasis
from nnpcalc.layers.state_embedding import StateEmbedding

__all__ = ["ExpNormalBasis", "StateEmbedding", "cosine_cutoff", "polynomial_cutoff"]
