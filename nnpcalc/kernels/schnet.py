"""SchNet on the fast path: tabulated filters, pair sums that store nothing per pair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnpcalc.kernels.filters import FILTER
from nnpcalc.kernels.forms import Topology, partial
from nnpcalc.kernels.table import hermite_weights, tabulate
from nnpcalc.layers import cosine_cutoff
from nnpcalc.models.schnet import SchNet

#: Knots per radial function that the error of a table needs to be 1e-7 of a filter.
KNOTS_PER_FUNCTION = 24


class FusedSchNet(nn.Module):
    """The same function as the `SchNet` it shares its parameters with; see `FusedTensorNet`.

    Args:
        core: the network; parameters are shared, not copied.
        n_knots: size of the table; more are taken for more than 21 radial functions.
    """

    def __init__(self, core: SchNet, n_knots: int = 512) -> None:
        super().__init__()
        self.core = core
        self.cutoff = core.cutoff
        self.elements = core.elements
        self.conditions_on = core.conditions_on
        self.n_knots = max(n_knots, KNOTS_PER_FUNCTION * core.config.radial_functions)
        self.step = self.cutoff / (self.n_knots - 1)
        self._tables: list[Tensor] | None = None

    def tables(self) -> list[Tensor]:
        """One table [2 K, F] for each layer."""
        if self._tables is not None:
            return self._tables
        return [
            filter_table(self.core, layer.filter, self.n_knots, self.step)  # type: ignore[arg-type]
            for layer in self.core.layers
        ]

    def freeze(self) -> FusedSchNet:
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
        """As `SchNet.forward`; pairs must be sorted by receiver."""
        core: Any = self.core
        x = core.embedding(numbers, charge, multiplicity, system)
        w, topology = interpolation(distances, pairs, x.shape[0], self.step, self.n_knots)
        for layer, table in zip(core.layers, self.tables(), strict=True):
            y = layer.linear(x).unsqueeze(1)
            summed = partial(FILTER, "g", topology, w, table, y, None)
            x = x + layer.update(summed.squeeze(1))
        return {"energies": core.readout(x).squeeze(-1)}


def filter_table(core: Any, network: nn.Module, n_knots: int, step: float) -> Tensor:
    """Table [2 K, F] of ``network(basis(d)) f_c(d)``."""
    weight = next(network.parameters())
    knots = torch.arange(n_knots, device=weight.device).to(weight.dtype) * step

    def filters(d: Tensor) -> Tensor:
        # sin(k d) / d has no value at 0 in floating point, and no pair is nearer than this
        d = d.clamp(min=1e-3)
        return (network(core.basis(d)) * cosine_cutoff(d, core.cutoff).unsqueeze(-1)).unsqueeze(1)

    return tabulate(filters, knots, torch.full_like(knots, step))


def interpolation(
    distances: Tensor, pairs: Tensor, n_atoms: int, step: float, n_knots: int
) -> tuple[Tensor, Topology]:
    """Hermite weights [P, 4] of the pairs and where they belong."""
    w, knot = hermite_weights(distances / step, n_knots)
    i, j = pairs[0].contiguous().numpy(), pairs[1].contiguous().numpy()
    return w, Topology(i, j, knot.numpy(), n_atoms, n_knots)
