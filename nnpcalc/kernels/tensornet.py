"""TensorNet on the fast path: tabulated radial functions, pair sums that store nothing per pair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnpcalc.kernels.forms import EMBEDDING, MESSAGE, Topology, partial
from nnpcalc.kernels.nodes import (
    ANTICOMMUTATOR,
    DOUBLE_PRODUCT,
    MIX,
    NORM,
    PART_NORMS,
    SCALE,
    SCALE_PARTS,
    apply,
)
from nnpcalc.kernels.table import Grid, hermite_weights
from nnpcalc.models.tensornet import TensorNet, pair_tensors


class FusedTensorNet(nn.Module):
    """The same function as the `TensorNet` it shares its parameters with, several times faster.

    Radial functions depend on a distance alone. They are evaluated on a grid and interpolated by
    cubic Hermite splines, whose error at 512 knots is some 1e-7 of their size. In training the
    table is rebuilt, with its graph, from the current parameters at every call; `freeze` builds it
    once for inference.

    Args:
        core: the network; parameters are shared, not copied.
        n_knots: size of the table.
    """

    def __init__(self, core: TensorNet, n_knots: int = 512) -> None:
        super().__init__()
        self.core = core
        self.cutoff = core.cutoff
        self.elements = core.elements
        self.conditions_on = core.conditions_on
        self.grid = Grid(self.cutoff, n_knots)
        self._tables: list[Tensor] | None = None

    def tables(self) -> list[Tensor]:
        """One table [2 K, 3F] for the embedding and one for each layer."""
        if self._tables is not None:
            return self._tables
        weight = self.core.linear.weight
        stages = [self.core.embedding, *self.core.layers]
        return [self.grid.table(stage.radial_functions, weight) for stage in stages]

    def freeze(self) -> FusedTensorNet:
        """Build the tables now and keep them; the parameters must not change afterwards."""
        self._tables = [table.detach() for table in self.tables()]
        return self

    def forward(
        self,
        numbers: Tensor,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """As `TensorNet.forward`; pairs must be sorted by receiver."""
        core = self.core
        attributes = core.attributes(system, charge, multiplicity, partial_charges)
        n_knots = self.grid.n_knots
        w, knot = hermite_weights(self.grid.places(distances), n_knots)
        tables = self.tables()
        topology = Topology(
            pairs[0].numpy(), pairs[1].numpy(), knot.numpy(), numbers.shape[0], n_knots
        )
        state = core.embedded_state(charge, multiplicity)
        receiver, sender = core.embedding.atom_features(numbers, state, system)
        features = torch.stack([receiver, sender])
        geometry = pair_tensors(vectors, distances)
        summed = partial(EMBEDDING, "g", topology, w, tables[0], features, geometry, None)
        x = embed(core.embedding, summed, receiver + sender)
        for layer, table in zip(core.layers, tables[1:], strict=True):
            x = normalise(x)
            y = mix(layer.mix_before, x)
            message = partial(MESSAGE, "g", topology, w, table, y, None)
            x = update(layer, x, y, message, attributes)
        norms = apply(PART_NORMS, x, x)
        return {"energies": core.readout_of_norms(norms)}


def mix(linear: Any, x: Tensor) -> Tensor:
    """`TensorLinear.forward`."""
    return partial(MIX, "g", None, x, linear.weight, None)


def normalise(x: Tensor) -> Tensor:
    """`nnpcalc.models.tensornet.normalise`."""
    return apply(SCALE, x, 1.0 / (apply(NORM, x, x) + 1.0))


def embed(embedding: Any, summed: Tensor, self_pair: Tensor) -> Tensor:
    """`Embedding.update`."""
    x = embedding.add_self(summed, self_pair)
    return apply(SCALE_PARTS, mix(embedding.mix, x), embedding.scales(apply(NORM, x, x).squeeze(1)))


def update(layer: Any, x: Tensor, y: Tensor, summed: Tensor, attributes: Tensor) -> Tensor:
    """`Interaction.update`."""
    message = summed + layer.at_zero(y) * y
    g = layer.prefactor(attributes)
    if layer.parity:
        mixed = g * apply(ANTICOMMUTATOR, y, message)
    else:
        mixed = apply(DOUBLE_PRODUCT, y, message)
    change = mix(layer.mix_after, normalise(mixed))
    return x + change + (0.5 * g) * apply(ANTICOMMUTATOR, change, change)
